"""Which clips make a batch: rows as a pure function of (seed, step), so that a resumed run sees the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asdjax.core import Clips, InputError, UsageError
from asdjax.data.audioset import Tagged


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


def uniform(clips: Clips | Tagged | None, rows: np.ndarray, *, batch_size: int, units: int = 1) -> Sampler:
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
        UsageError: n_target is no whole number from -1 to batch_size - 1, or the clips have tags, and no domains.
    """
    if isinstance(clips, Tagged):
        raise UsageError("sampler domain_mixed: clips with tags have no domains; there is: uniform, tag_balanced")
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


def tag_balanced(clips: Tagged, rows: np.ndarray, *, batch_size: int, units: int = 1) -> Sampler:
    """Every class equally often, however rare: the data balancing of PANNs (Kong et al. 2020).

    The classes take turns, in an order drawn anew for each round, and each class goes through its own clips, in an
    order drawn anew for each pass. A clip of several classes thus comes by each of them.

    Args:
        clips: N clips with their tags.
        rows: (N,) bool, the clips that the network learns from.
        batch_size: clips, or units, per batch.
        units: rows of the store per clip.

    Returns:
        Sampler whose epoch is the steps that draw as many rows as there are, though no longer each once; the note says
        how many clips have no tag and are never drawn.

    Raises:
        UsageError: the clips are none of tags. InputError: no training clip has one.
    """
    if not isinstance(clips, Tagged):
        raise UsageError("sampler tag_balanced: the clips have no tags; it is for config.data.year 'audioset'")
    n, tags = int(np.sum(rows)), clips.tags
    clip = np.repeat(np.arange(len(rows), dtype=np.int32), np.diff(tags.start))
    clip, tag = clip[rows[clip]], tags.column[rows[clip]]
    count = np.bincount(tag)
    if not len(tag):
        raise InputError("sampler tag_balanced: none of the training clips has a tag")
    by_class = np.split(clip[np.argsort(tag, kind="stable")], np.cumsum(count)[:-1])
    pools = [own for own in by_class if len(own)]
    orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}  # of the pass that each class is in: 4 bytes a tag

    @functools.lru_cache(maxsize=16)
    def turns(seed: int, number: int) -> np.ndarray:
        return np.random.default_rng((seed, number, 2)).permutation(len(pools))

    def row(seed: int, which: int, turn: int) -> int:
        """The row of a class at its turn; it has one in each round."""
        number, place = divmod(turn, len(pools[which]) * units)
        held, order = orders.get((seed, which), (-1, None))
        if held != number:
            order = np.random.default_rng((seed, which, number, 3)).permutation(_units_of(pools[which], units))
            orders[seed, which] = number, order
        return order[place]

    def draw(seed: int, step: int) -> np.ndarray:
        number, place = np.divmod(step * batch_size + np.arange(batch_size), len(pools))
        drawn = [row(seed, turns(seed, n)[p], n) for n, p in zip(number.tolist(), place.tolist(), strict=True)]
        return np.array(drawn, np.int32)

    without = n - int(np.sum(np.diff(tags.start)[rows] > 0))
    note = f"{without} of {n} training clips have no tag and are never drawn" if without else ""
    return Sampler(draw, n * units / batch_size, note)


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
