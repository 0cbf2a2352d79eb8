"""Data that fit no memory: arrays of waveforms and of tags whose rows are made when they are asked for.

They stand where a bank's `wave` and its labels stand, in a feed.Store on the host: only the rows of a batch are ever in
memory. To JAX each is a leaf.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import soundfile

from asdjax.core import InputError

TOLD = 10  # files that cannot be decoded are named up to this number, then no more


@dataclasses.dataclass(frozen=True, eq=False)
class Waves:
    """N recordings as an array (N, T) int16 that is never held.

    wave / 32768 is the waveform: longer files lose their end, shorter ones get zeros, several channels are averaged
    and other sample rates converted (librosa.resample), as PANNs packs AudioSet (Kong et al., 2020).

    Attributes:
        path: (N,) str, the audio files.
        samples: T.
        sample_rate: Hz, of the rows.
        workers: threads that decode; None: a few more than there are cores.
        failed: the files that could not be decoded so far; their rows are zeros.
    """

    path: np.ndarray
    samples: int
    sample_rate: int
    workers: int | None = None
    failed: set[str] = dataclasses.field(default_factory=set, init=False, repr=False)

    dtype = np.dtype(np.int16)
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.path), self.samples

    @property
    def nbytes(self) -> int:
        """What the array would take in memory."""
        return len(self.path) * self.samples * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.path)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The rows `index`, an int array, in its order: (len(index), T) int16; each file is decoded once.

        Raises:
            InputError: several files were asked for and none can be decoded: a disk is gone, not a file.
        """
        wanted, place = np.unique(places(index, len(self)), return_inverse=True)
        paths = self.path[wanted].tolist()
        if not paths:
            return np.zeros((0, self.samples), np.int16)
        decode = partial(decoded, samples=self.samples, rate=self.sample_rate)
        with ThreadPoolExecutor(self.workers) as pool:
            rows = list(pool.map(decode, paths))
        wrong = [(path, row) for path, row in zip(paths, rows, strict=True) if isinstance(row, str)]
        if len(wrong) == len(rows) > 1:
            raise InputError(f"{wrong[0][0]}: {wrong[0][1]}, nor can any other of the {len(rows)} files asked for")
        for path, reason in wrong:
            self._tell(path, reason)
        silence = np.zeros(self.samples, np.int16)
        return np.stack([silence if isinstance(row, str) else row for row in rows])[place]

    def _tell(self, path: str, reason: str) -> None:
        if path in self.failed:
            return
        self.failed.add(path)
        if len(self.failed) <= TOLD:
            logging.warning("warning: %s: %s; the clip is taken as silence", path, reason)
        elif len(self.failed) == TOLD + 1:
            logging.warning("warning: more than %d files cannot be decoded; no more are named", TOLD)


@dataclasses.dataclass(frozen=True, eq=False)
class MultiHot:
    """Tags of N clips out of C classes, an array (N, C) float32 of which only the ones are kept.

    Attributes:
        start: (N + 1,) int64; the tags of clip i are column[start[i] : start[i + 1]].
        column: (M,) int32, classes, ascending for each clip and each at most once.
        classes: C.
    """

    start: np.ndarray
    column: np.ndarray
    classes: int

    dtype = np.dtype(np.float32)
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.start) - 1, self.classes

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """The rows that an int array, a mask or a slice selects: (len, C) float32."""
        rows = places(index, len(self))
        count = self.start[rows + 1] - self.start[rows]
        row = np.repeat(np.arange(len(rows)), count)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        out = np.zeros((len(rows), self.classes), np.float32)
        out[row, self.column[self.start[rows][row] + nth]] = 1
        return out

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The ones: clips (M,) int64 in order and their classes (M,) int32."""
        return np.repeat(np.arange(len(self)), np.diff(self.start)), self.column


def multi_hot(tags: Sequence[tuple[int, ...]], classes: int) -> MultiHot:
    """Tags of N clips, tuples of classes, as an array."""
    start = np.cumsum([0, *map(len, tags)], dtype=np.int64)
    return MultiHot(start, np.array([c for own in tags for c in own], np.int32), classes)


def decoded(path: str, samples: int, rate: int) -> np.ndarray | str:
    """The first (samples,) int16 of a file, at `rate` Hz; where it cannot be decoded, why."""
    try:
        with soundfile.SoundFile(path) as file:
            recorded = file.samplerate
            # int16 reads 4 times as fast as float; the samples of these subtypes fit in it
            exact = file.subtype in ("PCM_16", "PCM_U8", "PCM_S8") and recorded == rate
            # a second more than is kept, so that a resampled row ends as that of the whole file
            frames = samples if recorded == rate else math.ceil((samples / rate + 1) * recorded)
            x = file.read(frames, dtype="int16" if exact else "float32", always_2d=True)
        if not len(x):
            return "cannot be decoded (no samples)"
        x = x[:, 0] if x.shape[1] == 1 else x.mean(axis=1, dtype=np.float32)
        if not np.isfinite(x).all():
            return "cannot be decoded (NaN or infinite samples)"
        if recorded != rate:
            import librosa

            x = librosa.resample(x, orig_sr=recorded, target_sr=rate)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        return f"cannot be decoded ({getattr(error, 'error_string', error)})"
    x = x[:samples]
    if x.dtype != np.int16:
        x = np.rint(x if exact else np.clip(x, -1, 1) * 32767).astype(np.int16)
    return np.pad(x, (0, samples - len(x)))


def places(index: np.ndarray | slice, n: int) -> np.ndarray:
    """The rows of n that an int array, a mask or a slice selects, as an int array.

    Raises:
        IndexError: a row that is not there.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(n))
    index = np.asarray(index)
    if index.dtype == bool and index.shape == (n,):
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and not (0 <= index.min() and index.max() < n)):
        raise IndexError(f"rows {index} of {n}, expected an array of numbers from 0 to {n - 1}")
    return index.astype(np.int64)
