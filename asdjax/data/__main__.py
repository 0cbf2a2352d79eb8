"""`python -m asdjax.data ROOT`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import re
import soundfile
from rich import progress
from rich.console import Console
from rich.table import Table

from asdjax.core import Clips, InputError, UsageError
from asdjax.data import dcase

FULL_SCALE = 1 - 2**-15  # the largest positive sample of 16 bits
CLIPPED = 1e-3  # share of a clip's samples


class Facts(NamedTuple):
    """What one file holds; `seconds` is None where it cannot be read."""

    seconds: float | None
    rate: int
    channels: int
    digest: bytes
    problems: list[str]


def facts(path: str) -> Facts:
    """Reads a recording and says what is wrong with it, whatever the file holds."""
    try:
        content = Path(path).read_bytes()
        x, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # libsndfile's are RuntimeErrors
        return Facts(None, 0, 0, b"", [f"unreadable ({getattr(error, 'error_string', error)})"])
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Facts(len(x) / rate, rate, x.shape[1], digest, wave_problems(x))


def wave_problems(x: np.ndarray) -> list[str]:
    """What is wrong with the samples (T, C) of a recording."""
    if not len(x):
        return ["empty: no samples"]
    if bad := np.count_nonzero(~np.isfinite(x)):
        return [f"{bad} samples are NaN or infinite"]
    problems = []
    silent = np.ptp(x, axis=0) <= 2**-15  # at most one step of 16 bits
    if silent.any():
        problems.append("silent" if silent.all() else f"channel {np.argmax(silent)} is silent")
    clipped = 0.0
    for top in (x >= FULL_SCALE, x <= -FULL_SCALE):
        both = top[1:] & top[:-1]  # a lone sample may touch full scale unharmed
        runs = np.concatenate([both, both[:0] | False, np.zeros_like(x[:1], bool)])[: len(x)]
        runs[1:] |= both
        clipped = clipped + runs.mean(0)
    if (share := np.max(clipped)) >= CLIPPED:
        problems.append(f"clipped: {100 * share:.1f} % of the samples lie in runs at full scale")
    return problems


def guess(root: str) -> tuple[str, str]:
    """The newest year whose file names and machines those of `root` are, else 'plain'; and a sentence that says so."""
