"""Reconstruct normal sound through a narrow layer: what cannot be reconstructed is abnormal (official baselines)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asdjax.core import Batch, Parts, System, TrainState, UsageError
from asdjax.systems.updates import next_state


def reconstruct(parts: Parts) -> System:
    """An autoencoder of short runs of frames, trained on their mean squared error.

    Args:
        parts: the built pieces; the backbone maps units (B, w, F) to units. It learns from a bank of features, whose
            rows are units: frames of many clips in every batch.

    Returns:
        System whose embed gives of each clip, over all its units and their frames (M rows of F bins):
            score (B, 1, 1): the mean squared error;
            residual (B, 1, F): the mean of the rows of (reconstruction - features);
            scatter (B, 1, F, F): the mean of their outer products;
            vectors, rows (B, 1, 1): the numbers of units and of their frames, M.
        From residual and scatter follow both forms of the Mahalanobis score, see detectors.selective_mahalanobis.
    """
    if None in (parts.cut, parts.backbone, parts.tx) or parts.cut.at != "frames":
        raise UsageError("system reconstruct needs config.cut (at='frames'), config.backbone and config.optim")
    if parts.head is not None or parts.wave_ops or parts.feature_ops:
        raise UsageError("system reconstruct has no use for config.head, config.wave_ops and config.feature_ops")
    cut, backbone = parts.cut, parts.backbone

    def features(batch: Batch) -> jax.Array:
        if "features" not in batch:
            raise UsageError("system reconstruct learns from features: set config.data.bank='features'")
        return batch["features"]

    def init(key: jax.Array, sample: Batch) -> TrainState:
        stats = dict(backbone.init(key, features(sample)[:1], train=False))
        params = stats.pop("params")
        return TrainState(jnp.zeros((), jnp.int32), params, stats, parts.tx.init(params))

    def update(state: TrainState, key: jax.Array, batch: Batch):
        x = features(batch)

        def mean_loss(params):
            y, stats = backbone.apply({"params": params, **state.stats}, x, train=True, mutable=list(state.stats))
            return jnp.mean(jnp.square(y - x)), stats

        (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        state, norm = next_state(parts.tx, state, grads, stats)
        return state, {"loss": loss, **norm}

    def embed(state: TrainState, wave: jax.Array) -> dict[str, jax.Array]:
        x = cut.units(parts.frontend(wave))  # (B, V, w, F)
        clips, vectors, width, bins = x.shape
        x = x.reshape(-1, width, bins)
        residual = backbone.apply({"params": state.params, **state.stats}, x, train=False) - x
        rows = residual.reshape(clips, vectors * width, bins)
        scatter = jnp.einsum("bmi,bmj->bij", rows, rows, precision="highest") / rows.shape[1]
        return {
            "score": jnp.square(rows).mean((1, 2)).reshape(clips, 1, 1),
            "residual": rows.mean(1)[:, None],
            "scatter": scatter[:, None],
            "vectors": jnp.full((clips, 1, 1), vectors, rows.dtype),
            "rows": jnp.full((clips, 1, 1), vectors * width, rows.dtype),
        }

    return System(init, update, embed)
