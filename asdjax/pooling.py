"""Pooling over axis 1 (units or frames): (N, U, D) -> (N, D); of jax and of numpy arrays alike."""

from __future__ import annotations

import jax
import numpy as np


def mean(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Mean over axis 1: (N, U, D) -> (N, D)."""
    return x.mean(axis=1)


def std(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Population standard deviation (ddof 0) over axis 1, the second merge of Morita 2021: (N, U, D) -> (N, D)."""
    return x.std(axis=1)
