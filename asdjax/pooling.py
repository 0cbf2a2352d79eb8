"""Pooling over axis 1 (units or frames): (N, U, D) -> (N, D); of jax and of numpy arrays alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdjax.core import UsageError


def mean(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Mean over axis 1: (N, U, D) -> (N, D)."""
    return x.mean(axis=1)


def std(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Population standard deviation (ddof 0) over axis 1, the second merge of Morita 2021: (N, U, D) -> (N, D)."""
    return x.std(axis=1)


def maximum(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Maximum over axis 1: (N, U, D) -> (N, D)."""
    return x.max(axis=1)


def quantile(x: jax.Array | np.ndarray, q: float) -> jax.Array | np.ndarray:
    """Quantile over axis 1, interpolated linearly as by numpy.quantile: (N, U, D) -> (N, D).

    Args:
        x: (N, U, D).
        q: 0 (minimum) to 1 (maximum).
    """
    if not 0 <= q <= 1:
        raise UsageError(f"pooling: quantile {q}; expected 0 to 1")
    place = q * (x.shape[1] - 1)
    below = int(place)
    above = min(below + 1, x.shape[1] - 1)
    ranked = _ascending(x)
    return ranked[:, below] + (place - below) * (ranked[:, above] - ranked[:, below])


def gwrp(x: jax.Array | np.ndarray, r: float) -> jax.Array | np.ndarray:
    """Global weighted rank pooling over axis 1 (Kolesnikov and Lampert, ECCV 2016, section 3.2): (N, U, D) -> (N, D).

    The values of each dimension in descending order have the weights r^0, ..., r^(U - 1), normalised.

    Args:
        x: (N, U, D).
        r: 0 (maximum) to 1 (mean).
    """
    if not 0 <= r <= 1:
        raise UsageError(f"pooling: gwrp with r={r}; expected 0 to 1")
    weight = np.float64(r) ** np.arange(x.shape[1])[::-1]
    weight = (weight / weight.sum()).astype(x.dtype)
    return (_ascending(x) * weight[:, None]).sum(axis=1)


def _ascending(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """x (N, U, D) with axis 1 sorted.

    XLA:CPU sorts floats five times as slowly as whole numbers: it asks about NaN and signed zeros in each comparison.
    The bits of floats, read as whole numbers, are in their order, but for negative ones, where it is reversed.
    """
    if isinstance(x, np.ndarray):
        return np.sort(x, axis=1)
    integer = jnp.dtype(f"int{8 * x.dtype.itemsize}")

    def flip(bits):
        return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)

    bits = flip(lax.bitcast_convert_type(x, integer)).swapaxes(1, 2)
    return lax.bitcast_convert_type(flip(jnp.sort(bits, axis=-1).swapaxes(1, 2)), x.dtype)
