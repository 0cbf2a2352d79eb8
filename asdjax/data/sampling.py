"""Which clips make a batch: rows as a pure function of (seed, step), so that a resumed run sees the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asdjax.core import Clips, UsageError


class Sampler(NamedTuple):
    """How batches are drawn.

    Attributes:
        draw: (seed, step) -> (B,) int32 rows of the store.
        epoch: the steps in which every row (every source row, where domains are mixed) comes once.
        note: '' or a sentence for the user: what was changed, and why.
    """

    draw: Callable[[int, int], np.ndarray]
    epoch: float
    note: str


def uniform(clips: Clips | None, rows: np.ndarray, *, batch_size: int, units: int = 1) -> Sampler:
    """Every clip once per epoch, in an order drawn anew for each; batches run on across the end of an epoch.

    Args:
        clips: not looked at; all samplers get them.
        rows: (N,) bool, the clips that the network learns from.
        batch_size: clips, or units, per batch.
        units: rows of the store per clip; more than 1 where it holds features, each unit then comes once per epoch.
    """
    pool = _units_of(np.flatnonzero(rows), units)
    return Sampler(_shuffled(pool, batch_size), len(pool) / batch_size, "")


def domain_mixed(clips: Clips, rows: np.ndarray, *, batch_size: int, units: int = 1, n_target: int = -1) -> Sampler:
    """So many rows of the target domain in every batch, since ordinary batches often hold none (Bai 2022, section 2.1).

    The other rows, those of the source domain and of none, come once per epoch. Those of the target domain are drawn
    with replacement: a section, uniform over those that have such clips, then one of its clips, then a unit. The report
    gives neither the number nor the rule, both are our choice.

    Args:
        clips: the N clips of the store.
        rows: (N,) bool, the clips that the network learns from.
        batch_size: clips, or units, per batch.
        units: rows of the store per clip.
        n_target: target rows per batch; -1: an eighth of the batch, 0: ordinary shuffling of all rows.

    Returns:
        Sampler; its batches are as `uniform` makes them, and the note says so, where there are not both domains.

    Raises:
        UsageError: n_target is no whole number from -1 to batch_size - 1.
    """
    if not isinstance(n_target, int) or not -1 <= n_target < batch_size:
        raise UsageError(f"sampler domain_mixed: n_target={n_target}; expected a whole number, -1 to {batch_size - 1}")
    wanted = batch_size // 8 if n_target == -1 else n_target
    is_target = clips.domain == "target"
    target, source = np.flatnonzero(rows & is_target), np.flatnonzero(rows & ~is_target)
    why = ""
    if not len(target) or not len(source):
        why = f"there are no training clips of the {'source' if len(target) else 'target'} domain"
    elif not wanted:
        why = f"an eighth of a batch of {batch_size} is none"
    if n_target == 0 or why:
        note = f"{why}: batches do not mix domains, all training clips are shuffled alike" if n_target else ""
        return uniform(clips, rows, batch_size=batch_size, units=units)._replace(note=note)

    places = np.array([f"{m} section {s}" if s else m for m, s in zip(clips.machine, clips.section, strict=True)])
    found, count = np.unique(places[target], return_counts=True)
    by_place = target[np.argsort(places[target], kind="stable")]
    first = np.cumsum(count) - count
    pool = _units_of(source, units)
    others = _shuffled(pool, batch_size - wanted)

    def draw(seed: int, step: int) -> np.ndarray:
        rng = np.random.default_rng((seed, step, 1))  # the 1 keeps it apart from the epochs' (seed, number)
        place = rng.integers(len(found), size=wanted)
        clip = by_place[first[place] + rng.integers(count[place])]
        chosen = clip * units + rng.integers(units, size=wanted)
        return rng.permutation(np.concatenate([others(seed, step), chosen.astype(np.int32)]))

    without = sorted(set(places[source]) - set(found))
    lacking = f"no training clips of the target domain in {', '.join(without)}: those of the others are drawn"
    return Sampler(draw, len(pool) / (batch_size - wanted), lacking if without else "")


def _units_of(chosen: np.ndarray, units: int) -> np.ndarray:
    """All rows of the store that belong to these clips: (n,) -> (n * units,) int32."""
    return (chosen[:, None] * units + np.arange(units)).ravel().astype(np.int32)


def _shuffled(pool: np.ndarray, size: int) -> Callable[[int, int], np.ndarray]:
    """(seed, step) -> (size,) rows of the pool, each once per epoch, running on across the end of an epoch."""

    @functools.lru_cache(maxsize=16)  # the members of an ensemble share a sampler, each with its own seed
    def epoch(seed: int, number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).permutation(pool)

    def draw(seed: int, step: int) -> np.ndarray:
        number, place = np.divmod(step * size + np.arange(size), len(pool))
        return np.concatenate([epoch(seed, int(n))[place[number == n]] for n in np.unique(number)])

    return draw
