"""From scores to what is read: results.csv and decision thresholds. What is handed in is results.submission.

What results.csv calls 'mean' and 'std' are those of the members' results, not results of mean scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax import metrics, threshold
from asdjax.core import InputError, UsageError
from asdjax.results.handing_in import Thresholds, decisions, table_of, write_submission
from asdjax.scoretable import ENSEMBLE, RMS, Scores, systems, write_csv

__all__ = ["Result", "Thresholds", "select", "summarise", "thresholds", "write_results", "write_submission"]


class Result(NamedTuple):
    """A row of results.csv: a metrics.Row and whose it is; over several members, 'mean' or 'std' is the member."""

    scorer: str
    member: str
    machine: str
    section: str
    domain: str
    metric: str
    value: float


def thresholds(scores: Mapping[str, np.ndarray]) -> Thresholds:
    """Decision threshold of every (scorer, member, machine), from its training clips; NaN where there are none."""
    found = {}
    for scorer, members in systems(scores):
        for member, rows in members.items():
            for machine in np.unique(scores["machine"][rows]).tolist():
                train = rows[(scores["machine"][rows] == machine) & (scores["split"][rows] == "train")]
                if np.isfinite(scores["score"][train]).any():
                    limit = threshold.gamma_threshold(scores["score"][train])
                else:
                    limit = (np.nan, "no finite score of a training clip, hence no decisions")
                found[scorer, member, machine] = limit
    return found


def summarise(scores: Mapping[str, np.ndarray], year: int | str, limits: Thresholds) -> tuple[list[Result], list[str]]:
    """Everything in results.csv: the official metrics of every scorer and member, and the AUC of loudness beside.

    Where a scorer has several members, those have no intervals of the official score, the ensemble alone has: over 16
    machines they take 0.6 s, all else 0.02 s. Rows 'mean' and 'std' (ddof = 1) over the numbered members follow, of
    the values that every one of them has.

    Args:
        scores: the columns of scores.csv.
        year: 2020 to 2026, or 'plain'.
        limits: `thresholds(scores)`.

    Returns:
        the rows (none when no test clip has a label), and notes: sentences on what was left out or unusual.
    """
    test = scores["split"] == "test"
    if not (scores["label"][test] >= 0).any():
        clips = len(set(zip(*(scores[name][test].tolist() for name in ("machine", "section", "file")), strict=True)))
        where = "scores are in scores.csv, decisions in submission/SCORER/decision_result_*.csv"
        return [], [f"none of {clips} test clips has a label: no metrics; {where}"]
    rows, notes = [], _unusual(limits)
    loud = np.flatnonzero(test & (scores["scorer"] == RMS))
    if not len(loud):
        notes.append(f"no scores named {RMS!r}: what loudness alone gives away is not known")
    found, _ = metrics.official(year, table_of(scores, loud), n_bootstrap=0)
    loudness = [row._replace(metric=f"{RMS} AUC") for row in found if row.metric == "AUC"]
    for scorer, members in systems(scores):
        numbered = []
        for member, own in members.items():
            table = table_of(scores, own[test[own]])
            table = table._replace(decision=decisions(table, limits, scorer, member))
            intervals = {} if len(members) == 1 or member == ENSEMBLE else {"n_bootstrap": 0}
            found, more = metrics.official(year, table, **intervals)
            rows += [Result(scorer, member, *row) for row in found + loudness]
            notes += more
            numbered += [] if member == ENSEMBLE else [found]
        if len(numbered) > 1:
            rows += _over_members(scorer, numbered) + [Result(scorer, "mean", *row) for row in loudness]
    return rows, list(dict.fromkeys(notes))


def write_results(path: str | Path, rows: Iterable[Result]) -> None:
    """Writes results.csv, whole or not at all."""
    write_csv(path, [Result._fields, *([*row[:-1], repr(float(row.value))] for row in rows)])


def select(
    scores: Mapping[str, np.ndarray],
    *,
    name: str,
    source: str,
    target: str,
    by_machine: Mapping[str, Mapping[str, str]] | tuple = (),
) -> Scores:
    """A scorer put together from others, per machine and domain (Morita 2021, submission 3).

    Different scorers for the two domains need the domain of test clips, which only the protocol of 2021 gives: it is
    for the caller to refuse them elsewhere. There each score is counted from its scorer's own decision threshold, so
    that one threshold fits both; the order within a domain, all that the metrics of 2021 see, stays. A clip without
    domain counts as source.

    Args:
        scores: those of the other scorers.
        name: of the new scorer.
        source, target: scorers of the clips of that domain.
        by_machine: {machine: dict(source=..., target=...)}, for the machines that have others, in these data or not.

    Returns:
        the rows of the new scorer, to be joined to the scores.

    Raises:
        UsageError: a name that is taken, or no such scorer. InputError: a scorer without a part's clips.
    """
    machines, special = np.unique(scores["machine"]).tolist(), dict(by_machine)
    chosen_of = {machine: special.get(machine, dict(source=source, target=target)) for machine in machines}
    rules = {machine: (rule["source"], rule["target"]) for machine, rule in chosen_of.items()}
    named = sorted({scorer for rule in rules.values() for scorer in rule})
    known = np.unique(scores["scorer"])
    if name in known or not set(named) <= set(known):
        raise UsageError(
            f"select {name!r} of scorers {named}: the name must be new, the rest known; there is: {', '.join(known)}"
        )
    take, mixed = np.zeros(len(scores["score"]), bool), []
    for machine, rule in rules.items():
        mixed += [machine] if rule[0] != rule[1] else []
        here = scores["machine"] == machine
        for domain, scorer in zip(metrics.DOMAINS, rule, strict=True):
            clips = here & ((scores["domain"] == "target") == (domain == "target"))
            chosen = clips & (scores["scorer"] == scorer)
            if clips.any() and not chosen.any():
                raise InputError(f"select {name!r}: {scorer!r} has no scores of {machine}, {domain}")
            take |= chosen
    counted = np.isin(scores["machine"], mixed) & np.isin(scores["scorer"], named)
    limits = thresholds({key: column[counted] for key, column in scores.items()})
    chosen = {key: column[take] for key, column in scores.items()}
    systems = zip(*(chosen[key].tolist() for key in ("scorer", "member", "machine")), strict=True)
    shift = np.array([limits[system][0] if system[2] in mixed else 0.0 for system in systems])
    score = chosen["score"] - np.where(np.isnan(shift), 0.0, shift)
    return chosen | {"scorer": np.full(len(score), name), "score": score}


NAMED = 6  # scorers and machines that a note names


def _unusual(limits: Thresholds) -> list[str]:
    """A note for everything unusual about thresholds: of which scorers and machines, and of how many of the members."""
    several = Counter((scorer, machine) for scorer, _, machine in limits)
    found: dict[str, Counter] = {}
    for (scorer, _, machine), (_, note) in limits.items():
        if note:
            found.setdefault(note, Counter())[scorer, machine] += 1
    notes = []
    for note, counts in found.items():
        share = (f" ({n} of {several[key]} members)" if several[key] > 1 else "" for key, n in counts.items())
        names = list(map("{0[0]} {0[1]}{1}".format, counts, share))
        rest = [f"and {len(names) - NAMED} more (thresholds.json has all)"] if len(names) > NAMED else []
        notes.append(f"{note}: " + ", ".join(names[:NAMED] + rest))
    return notes


def _over_members(scorer: str, numbered: Sequence[Sequence[metrics.Row]]) -> list[Result]:
    """Rows 'mean' and 'std' of the values that each member has."""
    values = [{row[:4]: row.value for row in rows} for rows in numbered]
    keys = [key for key in values[0] if all(key in own for own in values)]
    table = np.array([[own[key] for key in keys] for own in values])
    spread = {"mean": np.mean(table, axis=0), "std": np.std(table, axis=0, ddof=1)}
    rows = ((name, key, value) for name, row in spread.items() for key, value in zip(keys, row.tolist(), strict=True))
    return [Result(scorer, name, *key, value) for name, key, value in rows]
