"""Reconstruct masked units and classify them by one network: either tells what is abnormal, and both together do."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdjax.core import Batch, Parts, System, TrainState, UsageError
from asdjax.models import DualPathTransformer
from asdjax.systems.classify import accuracy, augmented, first_unit, mean_cosine
from asdjax.systems.updates import next_state

MASKED = float(np.finfo(np.float64).eps)  # what the released code multiplies by in place of 0


def dual_path(
    parts: Parts,
    *,
    masks: int = 3,
    mask_size: int = 5,
    target: str = "normalised",
    reconstruction_weight: float = 1.0,
    classification_weight: float = 1.0,
) -> System:
    """A dual-path transformer that learns from its reconstruction of units and from classes (Bai et al. 2022, 3.3).

    The loss of an example is classification_weight * head's loss + reconstruction_weight * mean squared error.

    Args:
        parts: the built pieces; the backbone is models.DualPathTransformer, whose input needs no other normalisation.
        masks: patches of each example that are hidden in training; 0 hides nothing.
        mask_size: frames and bins of a patch.
        target: what the reconstruction is held against: 'normalised', the units as the network's first layer normalises
            them, before the mask; or 'raw', the features as they come in, as in the authors' released code. That
            compares decibels with the output of a normalisation: weights near 0.001 belong to it.
        reconstruction_weight, classification_weight: of the two losses.

    Returns:
        System whose embed gives embedding (B, U, D), logits (B, U, C) and mse (B, U, 1), the mean squared error of each
        unit, nothing masked.
    """
    if target not in ("normalised", "raw"):
        raise UsageError(f"system.target is {target!r}; there is: normalised, raw")
    if masks < 0 or mask_size < 1:
        raise UsageError(f"system.masks={masks} must be 0 at least, and system.mask_size={mask_size} 1 at least")
    if None in (parts.cut, parts.backbone, parts.head, parts.tx):
        raise UsageError("system dual_path needs config.cut, config.backbone, config.head and config.optim")
    if not isinstance(parts.backbone, DualPathTransformer):
        raise UsageError(
            f"system dual_path needs config.backbone DualPathTransformer, not {type(parts.backbone).__name__}"
        )
    cut, backbone, head = parts.cut, parts.backbone, parts.head

    def init(key: jax.Array, sample: Batch) -> TrainState:
        unit, one = first_unit(parts, sample, key)
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", "head"))}
        (embedding, *_), body = backbone.init_with_output(keys, unit, train=False)
        body, top = dict(body), dict(head.init(keys, embedding, one, train=False))
        params = {"backbone": body.pop("params"), "head": top.pop("params")}
        return TrainState(jnp.zeros((), jnp.int32), params, {"backbone": body, "head": top}, parts.tx.init(params))

    def error(x: jax.Array, reconstruction: jax.Array, normalised: jax.Array) -> jax.Array:
        """Mean squared error (B,) against the target."""
        # The normalisation has a learnt scale and bias. Were the target to learn, both it and the reconstruction could
        # shrink to a constant, with no error and nothing learnt: only the network's input may move them.
        wanted = x if target == "raw" else lax.stop_gradient(normalised)
        return jnp.square(reconstruction - wanted).mean((1, 2))

    def network(params, stats, x, mask, label, keys):
        """Training mode: loss (B,), mean squared error (B,), logits (B, C), embedding (B, D), new stats."""
        rngs = {"head": next(keys)}
        variables = {"params": params["backbone"], **stats["backbone"]}
        (embedding, *units), body = backbone.apply(variables, x, train=True, mask=mask, mutable=list(stats["backbone"]))
        variables = {"params": params["head"], **stats["head"]}
        (loss, logits), top = head.apply(
            variables, embedding, label, train=True, mutable=list(stats["head"]), rngs=rngs
        )
        mse = error(x, *units)
        loss = classification_weight * loss + reconstruction_weight * mse
        return loss, mse, logits, embedding, {"backbone": body, "head": top}

    def update(state: TrainState, key: jax.Array, batch: Batch):
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        x, label = augmented(parts, {}, batch, state.step, keys)
        mask = random_mask(next(keys), x, masks, mask_size) if masks else None

        def mean_loss(params):
            loss, mse, *rest = network(params, state.stats, x, mask, label, keys)
            return loss.mean(), (mse.mean(), *rest)

        (loss, (mse, logits, embedding, stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        state, norm = next_state(parts.tx, state, grads, stats)
        told = {"accuracy": accuracy(logits, label["class"]), "embedding_cosine": mean_cosine(embedding), "mse": mse}
        return state, {"loss": loss, **norm, **told}

    def embed(state: TrainState, wave: jax.Array) -> dict[str, jax.Array]:
        x = cut.units(wave if cut.at == "wave" else parts.frontend(wave))
        batch, units = x.shape[:2]
        x = x.reshape(batch * units, *x.shape[2:])
        x = parts.frontend(x) if cut.at == "wave" else x
        variables = {"params": state.params["backbone"], **state.stats["backbone"]}
        embedding, *restored = backbone.apply(variables, x, train=False)
        variables = {"params": state.params["head"], **state.stats["head"]}
        _, logits = head.apply(variables, embedding, None, train=False)
        out = {"embedding": embedding, "logits": logits, "mse": error(x, *restored)}
        return {k: v.reshape(batch, units, -1) for k, v in out.items()}

    return System(init, update, embed)


def random_mask(key: jax.Array, x: jax.Array, masks: int, size: int) -> jax.Array:
    """A mask (B, L, F) for units of that shape: each hides `masks` patches of its own, which may overlap."""
    batch, frames, bins = x.shape
    starts = jax.random.randint(key, (batch, masks, 2), 0, jnp.array([frames, bins]))
    return patch_mask(starts, (frames, bins), size)


def patch_mask(starts: jax.Array, shape: tuple[int, int], size: int) -> jax.Array:
    """MASKED within square patches, 1 elsewhere (the authors' SSDPT code, random_mask).

    Args:
        starts: (..., K, 2) int, first frame and first bin of K patches; what lies past the border is cut off.
        shape: L and F.
        size: frames and bins of a patch.

    Returns:
        (..., L, F) float.
    """
    first = starts[..., None]
    rows, columns = (
        (first[..., axis, :] <= jnp.arange(n)) & (jnp.arange(n) < first[..., axis, :] + size)
        for axis, n in enumerate(shape)
    )
    hidden = (rows[..., :, None] & columns[..., None, :]).any(-3)
    return jnp.where(hidden, MASKED, 1.0)
