"""Augmentations: factories of (key, x, label) -> (x, label), pure and fixed in shape, run inside the jitted step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from asdjax.core import UsageError

Op = Callable[[jax.Array, jax.Array, dict], tuple[jax.Array, dict]]


def blend(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
    """lam x + (1 - lam) x[partner] per example: x (B, ...), partner (B,) int, lam (B,)."""
    lam = lam.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    return lam * x + (1 - lam) * x[partner]


def mixup(*, p: float = 0.5, alpha: float = 1.0) -> Op:
    """Blends each example and its label with another of the batch (Zhang et al., mixup, 2018).

    Every example draws its own lam ~ Beta(alpha, alpha) and is left alone with probability 1 - p. All leaves of the
    label are blended.
    """
    if not 0 <= p <= 1 or alpha <= 0:
        raise UsageError(f"mixup: p must lie in [0, 1] and alpha be positive; found p={p}, alpha={alpha}")

    def op(key, x, label):
        k_order, k_lam, k_apply = jax.random.split(key, 3)
        partner = jax.random.permutation(k_order, x.shape[0])
        lam = jax.random.beta(k_lam, alpha, alpha, (x.shape[0],))
        lam = jnp.where(jax.random.bernoulli(k_apply, p, lam.shape), lam, 1.0)
        return blend(x, partner, lam), {k: blend(v, partner, lam) for k, v in label.items()}

    return op
