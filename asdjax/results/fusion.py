"""Fusion without labels: scores of several scorers or runs as one, on the scale of the normal training clips or raw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from asdjax.core import InputError, UsageError
from asdjax.scoretable import BESIDE, COLUMNS, ENSEMBLE, RMS, Scores, concatenate, systems

CLIP = ("machine", "section", "domain", "split", "file")
RULES = {"mean": np.mean, "max": np.max, "sum": np.sum, "product": np.prod}
RAW = ("sum", "product")  # of the scores as they are
FEW = 5  # training clips of a section, whose deviation says little

Rows = dict[str, np.ndarray]  # of each scorer, in the table of scores


def fuse(scores: Mapping[str, np.ndarray], *, name: str, scorers: Sequence[str] = (), how: str = "mean") -> Scores:
    """A scorer made of others.

    The rule is the same for all machines and sees neither labels nor test clips (the pattern of arXiv 2606.19269). With
    'sum' and 'product' the scores are taken as they are (Zeng 2023, section 4). With 'mean' and 'max' they are first
    standardised by those of the normal training clips: in each section a scorer's scores lose the mean of the section's
    training clips, and are divided by their standard deviation (ddof 0). These scores must be of detectors that were
    fitted without the clip, as in scores.csv. Where a section has fewer than FEW, or all are equal, those of all the
    machine's sections together serve; where these are all equal too, scores keep their unit. Infinite scores are left
    out of mean and deviation. A scorer without any score of a section's test clips has no part in that section.

    Args:
        scores: the columns of scores.csv.
        name: of the new scorer.
        scorers: which to fuse; (): all but the loudness.
        how: 'mean', 'max', 'sum' or 'product' over the scorers.

    Returns:
        the rows of the new scorer, to be joined to the scores: of each test clip, and of the training clips that all
        scorers score.

    Raises:
        UsageError: a name that is taken, no such scorer, or an unknown rule.
        InputError: members, or some of a section's test clips, that not all of the scorers have, no score of a
            machine's training clips, or a product of negative scores.
    """
    known = dict(systems(scores))
    scorers = list(scorers) or list(known)
    if how not in RULES:
        raise UsageError(f"fuse {name!r}: how={how!r}; expected one of {', '.join(RULES)}")
    if name in (*known, RMS):
        raise UsageError(f"fuse: a scorer {name!r} is there already; expected another name for the fused one")
    if odd := [scorer for scorer in scorers if scorer not in known or scorers.count(scorer) > 1]:
        raise UsageError(f"fuse {name!r}: no scorer {odd[0]!r}, or twice; there is: {', '.join(known)}")
    parts = []
    for member in known[scorers[0]]:
        if lacking := [scorer for scorer in scorers if member not in known[scorer]]:
            raise InputError(f"fuse {name!r}: {lacking[0]!r} has no member {member}, {scorers[0]!r} has")
        rows = {scorer: known[scorer][member] for scorer in scorers}
        for machine, own in _by(scores, rows, "machine"):
            for _, here in _by(scores, own, "section"):
                parts.append(_fused(scores, own, here, f"fuse {name!r}, {machine}", how))
    every = concatenate(parts)
    return every | {"scorer": np.full(len(every["score"]), name)}


def _by(scores: Mapping[str, np.ndarray], rows: Rows, column: str) -> Iterator[tuple[str, Rows]]:
    """The rows of each machine or section, in order; a scorer without any is left out."""
    values = {scorer: scores[column][own] for scorer, own in rows.items()}
    for value in sorted({v for found in values.values() for v in found.tolist()}):
        chosen = {scorer: own[values[scorer] == value] for scorer, own in rows.items()}
        yield value, {scorer: own for scorer, own in chosen.items() if (scores["split"][own] == "test").any()}


def _fused(scores: Mapping[str, np.ndarray], machine: Rows, section: Rows, where: str, how: str) -> Scores:
    """The fused scores of a section's clips, from the rows of those scorers that have the section."""
    rows = _aligned(scores, section, where)
    of = {column: scores[column][rows[0]] for column in COLUMNS}
    if how in RAW:
        found = [scores["score"][own] for own in rows]
        if how == "product" and (odd := [name for name, own in zip(section, found, strict=True) if (own < 0).any()]):
            raise InputError(
                f"{where}: {odd[0]!r} has negative scores, whose product orders nothing; take another rule"
            )
        return of | {"score": RULES[how](found, axis=0)}
    standard = []
    for scorer, own in zip(section, rows, strict=True):
        here, everywhere = (at[scores["split"][at] == "train"] for at in (own, machine[scorer]))
        train = scores["score"][here], scores["score"][everywhere]
        standard.append(_standardised(scores["score"][own], *train, f"{where}: scorer {scorer!r}"))
    return of | {"score": RULES[how](standard, axis=0)}


def unheard(scores: Mapping[str, np.ndarray], scorers: Sequence[str] = ()) -> list[str]:
    """A sentence for each section in which some of the scorers (all by default) have no score of a test clip."""
    test = scores["split"] == "test"
    scorers = list(scorers) or [name for name, _ in systems(scores)]
    there = set(zip(*(scores[name][test].tolist() for name in ("machine", "section", "scorer")), strict=True))
    said = []
    for machine, section in sorted({place[:2] for place in there}):
        if missing := [name for name in scorers if (machine, section, name) not in there]:
            said.append(f"{machine} section {section} is without {', '.join(missing)}")
    return said


def check(rules: Sequence[Mapping], names: Sequence[str]) -> None:
    """Raises UsageError for a rule of `config.score.fusions` that does not fit scorers of these names.

    A rule may take what those before it have made.
    """
    single = [*names]
    for rule in rules:
        if set(rule) != {"name", "scorers", "how"}:
            raise UsageError(f"score.fusions: found keys {sorted(rule)}, expected ['how', 'name', 'scorers']")
        if rule["how"] not in RULES or not set(rule["scorers"]) <= set(names):
            odd = [name for name in rule["scorers"] if name not in names]
            found = f"no scorer {odd[0]!r}" if odd else f"how is {rule['how']!r}"
            raise UsageError(
                f"score.fusions {rule['name']!r}: {found}; expected {', '.join(RULES)} of some of "
                f"{', '.join(names)}, or () for all scorers of the config"
            )
        names = [*names, rule["name"]]
    taken = [*single, *BESIDE, *(rule["name"] for rule in rules)]
    if len(set(taken)) < len(taken):
        named = [rule["name"] for rule in rules]
        raise UsageError(f"score.fusions: names must differ, also from scorers, {' and '.join(BESIDE)}; found {named}")


def fuse_runs(
    runs: Mapping[str, Mapping[str, np.ndarray]],
    *,
    name: str = "fusion",
    scorers: Sequence[str] = (),
    how: str = "mean",
) -> Scores:
    """Fuses the scorers of several runs over the same clips.

    Of a run with several members the ensemble takes part. Scorers of one name are called RUN/SCORER in every run that
    has it. The loudness and the training-free baseline, which are of the clips and of no run, come once.

    Args:
        runs: {name of a run: the columns of its scores.csv}.
        name: of the new scorer.
        scorers: which to fuse, as they are called here; (): all but the loudness.
        how: as in `fuse`.

    Returns:
        the runs' scores and those of the new scorer; the one member is '0'.

    Raises:
        UsageError, InputError: as `fuse`; several members without ensemble; test clips, or their labels, that differ
            between runs: the first is named, with runs and line.
    """
    scores = joined({run: _one_member(run, scores) for run, scores in runs.items()}, runs)
    return concatenate([scores, fuse(scores, name=name, scorers=scorers, how=how)])


def joined(
    tables: Mapping[str, Mapping], files: Mapping[str, Mapping] | None = None, *, prefix: bool = False
) -> Scores:
    """The scores of several runs over the same clips as one table.

    Args:
        tables: {name of a run: the columns of its scores}.
        files: whole scores.csv, where the tables are parts of them: messages name their lines.
        prefix: call all scorers RUN/SCORER; else only those of a name that several runs have.

    Raises:
        UsageError, InputError: as `fuse_runs`.
    """
    if not tables:
        raise UsageError("fuse: no runs given; expected at least one")
    first, *others = tables
    for run in others:
        _check_same_clips(files or tables, tables, first, run)
    runs_of = Counter(scorer for table in tables.values() for scorer in set(table["scorer"].tolist()))
    parts, come = [], set()
    for run, table in tables.items():
        kept = ~np.isin(table["scorer"], [*come & set(BESIDE)])
        come |= set(table["scorer"].tolist())
        own = [s not in BESIDE and (prefix or runs_of[s] > 1) for s in table["scorer"].tolist()]
        called = [f"{run}/{s}" if mine else s for s, mine in zip(table["scorer"].tolist(), own, strict=True)]
        parts.append({column: values[kept] for column, values in (table | {"scorer": np.array(called)}).items()})
    return concatenate(parts)


def _aligned(scores: Mapping[str, np.ndarray], rows: dict[str, np.ndarray], where: str) -> list[np.ndarray]:
    """For each scorer its row numbers, clip by clip in the order of the first scorer's."""
    place = {}
    for scorer, own in rows.items():
        place[scorer] = dict(zip(zip(*(scores[name][own].tolist() for name in CLIP), strict=True), own, strict=True))
        if len(place[scorer]) < len(own):
            raise InputError(f"{where}: {scorer!r} scores a clip twice; expected one score of each")
    common = set.intersection(*map(set, place.values()))
    for clip in dict.fromkeys(clip for found in place.values() for clip in found):
        if clip not in common and clip[3] == "test":
            lacks = next(scorer for scorer, found in place.items() if clip not in found)
            raise InputError(f"{where}: {lacks!r} has no score of test clip {clip[-1]}, others have")
    first = next(iter(place.values()))
    return [np.array([found[clip] for clip in first if clip in common], int) for found in place.values()]


def _standardised(score: np.ndarray, section: np.ndarray, machine: np.ndarray, where: str) -> np.ndarray:
    """Scores (M,) in standard deviations from the mean of the section's training scores, or else of the machine's."""
    section, machine = (train[np.isfinite(train)] for train in (section, machine))
    usual = section if len(section) >= FEW and _spread(section) else machine
    if not len(usual):
        raise InputError(f"{where} has no score of a training clip; expected at least one, to standardise by")
    return (score - usual.mean()) / (_spread(usual) or 1.0)


def _spread(score: np.ndarray) -> float:
    """Standard deviation; exactly 0 of equal numbers, whose mean is rounded."""
    return float(score.std()) if np.ptp(score) > 0 else 0.0


def _one_member(run: str, scores: Mapping[str, np.ndarray]) -> Scores:
    """The run's scores by its only member or its ensemble, and the loudness."""
    take = scores["scorer"] == RMS
    for scorer, members in systems(scores):
        member = ENSEMBLE if ENSEMBLE in members else next(iter(members))
        if member != ENSEMBLE and len(members) > 1:
            raise InputError(f"{run}: {scorer!r} has members {', '.join(members)} and no ensemble; expected one")
        take[members[member]] = True
    return {name: scores[name][take] for name in COLUMNS} | {"member": np.full(take.sum(), "0")}


def _check_same_clips(runs: Mapping, tables: Mapping[str, Scores], first: str, run: str) -> None:
    """Raises InputError where two runs score other test clips, or say otherwise of them."""
    one, two = (_test_clips(tables[name]) for name in (first, run))
    odd = min(one.keys() ^ two.keys(), default=None)
    if odd:
        has, lacks = (first, run) if odd in one else (run, first)
        line = 2 + list(_clips(runs[has])).index(odd)  # of the file, whose first line is the header
        raise InputError(
            f"scores.csv of run {lacks!r}: no row for test clip {odd[-1]} ({', '.join(filter(None, odd[:3]))}), "
            f"which that of {has!r} has in line {line}; expected runs over the same data set"
        )
    odd = min((clip for clip in one if one[clip] != two[clip]), default=None)
    if odd:
        line = 2 + list(_clips(runs[run])).index(odd)
        raise InputError(
            f"scores.csv of run {run!r} line {line}: label {two[odd]} of test clip {odd[-1]} "
            f"({', '.join(filter(None, odd[:3]))}), which is {one[odd]} in that of {first!r}; expected the same labels "
            "(-1 is none)"
        )


def _clips(scores: Mapping[str, np.ndarray]) -> Iterator[tuple[str, ...]]:
    return zip(*(scores[name].tolist() for name in CLIP), strict=True)


def _test_clips(scores: Mapping[str, np.ndarray]) -> dict[tuple[str, ...], int]:
    """The label of each."""
    return {
        clip: label for clip, label in zip(_clips(scores), scores["label"].tolist(), strict=True) if clip[3] == "test"
    }
