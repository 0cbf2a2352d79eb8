"""Which clips make a batch: rows as a pure function of (seed, step), so that a resumed run sees the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Sampler = Callable[[int, int], np.ndarray]


def uniform(rows: np.ndarray, *, batch_size: int) -> Sampler:
    """Every clip once per epoch, in an order drawn anew for each; batches run on across the end of an epoch.

    Args:
        rows: (N,) bool, the clips that the network learns from.
        batch_size: clips per batch.

    Returns:
        (seed, step) -> (B,) int32 rows.
    """
    pool = np.flatnonzero(rows).astype(np.int32)

    @functools.lru_cache(maxsize=4)
    def epoch(seed: int, number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).permutation(pool)

    def sample(seed: int, step: int) -> np.ndarray:
        positions = step * batch_size + np.arange(batch_size)
        order = {n: epoch(seed, int(n)) for n in np.unique(positions // len(pool))}
        return np.array([order[p // len(pool)][p % len(pool)] for p in positions], np.int32)

    return sample
