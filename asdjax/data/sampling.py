"""Which clips make a batch: rows as a pure function of (seed, step), so that a resumed run sees the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Sampler = Callable[[int, int], np.ndarray]


def uniform(rows: np.ndarray, *, batch_size: int, units: int = 1) -> Sampler:
    """Every clip once per epoch, in an order drawn anew for each; batches run on across the end of an epoch.

    Args:
        rows: (N,) bool, the clips that the network learns from.
        batch_size: clips, or units, per batch.
        units: rows of the store per clip; more than 1 where it holds features, each unit then comes once per epoch.

    Returns:
        (seed, step) -> (B,) int32 rows of the store.
    """
    pool = (np.flatnonzero(rows)[:, None] * units + np.arange(units)).ravel().astype(np.int32)

    @functools.lru_cache(maxsize=4)
    def epoch(seed: int, number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).permutation(pool)

    def sample(seed: int, step: int) -> np.ndarray:
        number, place = np.divmod(step * batch_size + np.arange(batch_size), len(pool))
        return np.concatenate([epoch(seed, int(n))[place[number == n]] for n in np.unique(number)])

    return sample
