"""Chunks of a run: the clips of S steps at a time, and the rows by which each step takes its batch from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from asdjax.data.sampling import Sampler


class Store(NamedTuple):
    """What a batch is gathered from, on the host or on the device.

    Attributes:
        wave: (N, T) int16.
        gain: (N,) float32; wave * gain is the waveform that the network hears.
        label: dict of (N, ...) float32.
    """

    wave: np.ndarray
    gain: np.ndarray
    label: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Store:
        return Store(self.wave[rows], self.gain[rows], {k: v[rows] for k, v in self.label.items()})


def chunks(
    store: Store, sampler: Sampler, *, seed: int, start: int, stop: int, chunk: int
) -> Iterator[tuple[Store, np.ndarray]]:
    """The run's batches from step `start` to `stop`, gathered on the host `chunk` steps at a time.

    Yields:
        a Store of just the chunk's clips (S * B, ...) and the rows (S, B) int32 into it.
    """
    for first in range(start, stop, chunk):
        rows = np.stack([sampler(seed, step) for step in range(first, first + chunk)])
        yield store.take(rows.ravel()), np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
