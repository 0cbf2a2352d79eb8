"""The end of every update: from gradients to the next state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from asdjax.core import TrainState


def next_state(
    tx: optax.GradientTransformation, state: TrainState, gradients: Any, stats: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step along the gradients, and their norm as a metric."""
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients)))
    return TrainState(state.step + 1, params, stats, opt_state), {"gradient_norm": norm}
