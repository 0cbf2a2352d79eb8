"""Classify normal clips by machine, section or attribute; the embedding that this teaches is what detectors compare."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from asdjax.core import Batch, Parts, System, TrainState, UsageError
from asdjax.systems.updates import next_state


def classify(parts: Parts, *, standardise: str = "none") -> System:
    """A network trained on auxiliary classes of normal sound ('outlier exposure', the form of all five reports).

    Args:
        parts: the built pieces.
        standardise: 'none', or 'bins': subtract the mean of each feature bin and divide by its standard deviation, both
            over the sample of training clips that `init` gets.

    Returns:
        System whose embed gives embedding (B, U, D) and logits (B, U, C).
    """
    if standardise not in ("none", "bins"):
        raise UsageError(f"system.standardise is {standardise!r}; there is: none, bins")
    if None in (parts.cut, parts.backbone, parts.head, parts.tx):
        raise UsageError("system classify needs config.cut, config.backbone, config.head and config.optim")
    cut, backbone, head = parts.cut, parts.backbone, parts.head

    def init(key: jax.Array, sample: Batch) -> TrainState:
        x = sample["features"] if "features" in sample else parts.frontend(sample["wave"])
        # a bin that never changes (beyond the band of the recording, say) must not divide by zero
        data = {"mean": x.mean((0, 1)), "std": jnp.maximum(x.std((0, 1)), 1e-3)} if standardise == "bins" else {}
        unit, one = first_unit(parts, sample, key)
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", "head", "dropout"))}
        body = dict(backbone.init(keys, unit, train=False))
        embedding = backbone.apply(body, unit, train=False)
        if isinstance(embedding, tuple):
            raise UsageError(f"system classify: {type(backbone).__name__} gives more than an embedding; see dual_path")
        top = dict(head.init(keys, embedding, one, train=False))
        params = {"backbone": body.pop("params"), "head": top.pop("params")}
        stats = {"backbone": body, "head": top, "data": data}
        return TrainState(jnp.zeros((), jnp.int32), params, stats, parts.tx.init(params))

    def network(params, stats, x, label, keys):
        """Training mode: loss (B,), logits (B, C), embedding (B, D), new stats."""
        rngs = {"head": next(keys), "dropout": next(keys)}
        variables = {"params": params["backbone"], **stats["backbone"]}
        embedding, body = backbone.apply(variables, x, train=True, mutable=list(stats["backbone"]), rngs=rngs)
        variables = {"params": params["head"], **stats["head"]}
        (loss, logits), top = head.apply(
            variables, embedding, label, train=True, mutable=list(stats["head"]), rngs=rngs
        )
        return loss, logits, embedding, {**stats, "backbone": body, "head": top}

    def update(state: TrainState, key: jax.Array, batch: Batch):
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        x, label = augmented(parts, state.stats["data"], batch, state.step, keys)

        def mean_loss(params):
            loss, logits, embedding, stats = network(params, state.stats, x, label, keys)
            return loss.mean(), (logits, embedding, stats)

        (loss, (logits, embedding, stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        state, norm = next_state(parts.tx, state, grads, stats)
        told = {"accuracy": accuracy(logits, label["class"]), "embedding_cosine": mean_cosine(embedding)}
        return state, {"loss": loss, **norm, **told}

    def embed(state: TrainState, wave: jax.Array) -> dict[str, jax.Array]:
        def features(x):
            return standard(state.stats["data"], parts.frontend(x))

        x = cut.units(wave if cut.at == "wave" else features(wave))
        batch, units = x.shape[:2]
        x = x.reshape(batch * units, *x.shape[2:])
        x = features(x) if cut.at == "wave" else x
        variables = {"params": state.params["backbone"], **state.stats["backbone"]}
        embedding = backbone.apply(variables, x, train=False)
        variables = {"params": state.params["head"], **state.stats["head"]}
        _, logits = head.apply(variables, embedding, None, train=False)
        out = {"embedding": embedding, "logits": logits}
        return {k: v.reshape(batch, units, -1) for k, v in out.items()}

    return System(init, update, embed)


def standard(data: dict, x: jax.Array) -> jax.Array:
    """Features (..., F) by the training clips' mean and deviation of each bin, or as they are where there are none."""
    return (x - data["mean"]) / data["std"] if data else x


def training_units(parts: Parts, data: dict, batch: Batch, keys: Iterator[jax.Array]) -> tuple[jax.Array, dict]:
    """What the feature ops get: a unit (B, w, F) of every example, and its label after the wave ops.

    Args:
        parts: frontend, cut and wave ops are used.
        data: statistics of the training clips, see `standard`.
        batch: waves, or units of a bank of features.
        keys: one is taken for each wave op, and one for the cut.
    """
    if "features" in batch:
        return standard(data, batch["features"]), batch["label"]
    x, label = batch["wave"], batch["label"]
    for op in parts.wave_ops:
        x, label = op(next(keys), x, label)
    if parts.cut.at == "wave":
        return standard(data, parts.frontend(parts.cut.draw(next(keys), x))), label
    return parts.cut.draw(next(keys), standard(data, parts.frontend(x))), label


def first_unit(parts: Parts, sample: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
    """A unit (1, w, F) of the sample's first clip, without any ops, and its label: what a network is made by."""
    first = jax.tree.map(lambda v: v[:1], sample)
    return training_units(parts._replace(wave_ops=()), {}, first, iter([key]))


def augmented(
    parts: Parts, data: dict, batch: Batch, step: jax.Array, keys: Iterator[jax.Array]
) -> tuple[jax.Array, dict]:
    """What the network gets in training: units (B, w, F) after all ops, and their label, with 'step' (B,) among it.

    Args:
        parts, data, batch, keys: as of `training_units`; a key is taken for each feature op too.
        step: () updates done, for ops that go by it.
    """
    n = jax.tree.leaves(batch)[0].shape[0]
    batch = {**batch, "label": {**batch["label"], "step": jnp.full(n, step, jnp.float32)}}
    x, label = training_units(parts, data, batch, keys)
    for op in parts.feature_ops:
        x, label = op(next(keys), x, label)
    return x, label


def accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Share of the examples with a label (B, C) whose largest logit is at its largest entry, or at one of these."""
    has_label = label.sum(-1) > 0
    found = jnp.take_along_axis(label, logits.argmax(-1, keepdims=True), axis=-1)[:, 0]
    hit = (found == label.max(-1)) & has_label
    return hit.sum() / jnp.maximum(has_label.sum(), 1)


def mean_cosine(embedding: jax.Array) -> jax.Array:
    """Mean cosine between the embeddings (B, D) of a batch; near 1 the network has collapsed to one point."""
    unit = embedding / jnp.maximum(jnp.linalg.norm(embedding, axis=-1, keepdims=True), 1e-12)
    n = embedding.shape[0]
    return (jnp.sum(jnp.square(unit.sum(0))) - n) / (n * (n - 1))
