"""From scores to what is handed in and what is read: scores.csv, results.csv, submission files.

Scores are a dict of equal-length arrays, one entry per (scorer, member, clip), with the columns of scores.csv. The
scorer 'rms-only' is the loudness of the same clips: what a system must beat to have heard more than the volume.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax import metrics, threshold
from asdjax.core import InputError, UsageError

COLUMNS = ("scorer", "member", "machine", "section", "domain", "split", "file", "label", "score")
RMS = "rms-only"

Scores = dict[str, np.ndarray]  # COLUMNS: str, but member int, label int8 (-1 unknown), score float64
Thresholds = dict[tuple[str, int, str], tuple[float, str]]  # (scorer, member, machine) -> threshold, what was unusual


class Result(NamedTuple):
    """A row of results.csv: a metrics.Row and whose it is."""

    scorer: str
    member: int
    machine: str
    section: str
    domain: str
    metric: str
    value: float


def write_scores(path: str | Path, scores: Mapping[str, np.ndarray]) -> None:
    """Writes scores.csv, whole or not at all.

    Raises:
        InputError: a NaN score.
    """
    bad = np.flatnonzero(np.isnan(scores["score"]))
    if len(bad):
        first = ", ".join(str(scores[name][bad[0]]) for name in ("scorer", "machine", "section", "file"))
        raise InputError(f"{path}: {len(bad)} scores are NaN, the first of {first}; expected numbers")
    label = np.where(scores["label"] < 0, "", scores["label"].astype(str))
    texts = {**scores, "label": label, "score": [repr(float(score)) for score in scores["score"]]}
    _write_csv(path, [COLUMNS, *zip(*(texts[name] for name in COLUMNS), strict=True)])


def read_scores(path: str | Path) -> Scores:
    """Reads scores.csv.

    Raises:
        InputError: no such file, a missing column, or a malformed row; the message names file, line and column.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a scores.csv")
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise InputError(f"{path}: no column {', '.join(missing)}; found {header}, expected {list(COLUMNS)}")
        rows = [_parse(path, lines.line_num, line, header) for line in lines]
    types = {"member": np.int64, "label": np.int8, "score": np.float64}
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    return {name: np.array(column, types.get(name, np.str_)) for name, column in zip(COLUMNS, columns, strict=True)}


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> Scores:
    """The rows of several scores, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def thresholds(scores: Mapping[str, np.ndarray]) -> Thresholds:
    """Decision threshold of every (scorer, member, machine), from its training clips; NaN where there are none."""
    found = {}
    for scorer, member, own in _systems(scores):
        for machine in np.unique(scores["machine"][own]):
            train = own & (scores["machine"] == machine) & (scores["split"] == "train")
            if np.isfinite(scores["score"][train]).any():
                limit = threshold.gamma_threshold(scores["score"][train])
            else:
                limit = (np.nan, "no finite score of a training clip, hence no decisions")
            found[scorer, member, str(machine)] = limit
    return found


def summarise(scores: Mapping[str, np.ndarray], year: int | str) -> tuple[list[Result], list[str]]:
    """Everything in results.csv: the official metrics of every scorer and member, and the AUC of loudness beside.

    Args:
        scores: the columns of scores.csv.
        year: 2020 to 2026, or 'plain'.

    Returns:
        the rows (none when no test clip has a label), and notes: sentences on what was left out or unusual.
    """
    test = scores["split"] == "test"
    if not (scores["label"][test] >= 0).any():
        return [], [f"none of {test.sum()} scores of test clips has a label: no metrics"]
    limits = thresholds(scores)
    rows, unusual = [], {}
    for (scorer, member, machine), (_, note) in limits.items():
        if note:
            unusual.setdefault(note, []).append(f"{scorer} {machine}" + (f" (member {member})" if member else ""))
    notes = [f"{note}: {', '.join(found)}" for note, found in unusual.items()]
    loudness = {}
    for member in np.unique(scores["member"][scores["scorer"] == RMS]):
        table = _table(scores, test & (scores["scorer"] == RMS) & (scores["member"] == member))
        found, _ = metrics.official(year, table, n_bootstrap=0)
        loudness[member] = [row._replace(metric=f"{RMS} AUC") for row in found if row.metric == "AUC"]
    if not loudness:
        notes.append(f"no scores named {RMS!r}: what loudness alone gives away is not known")
    for scorer, member, own in _systems(scores):
        table = _table(scores, test & own)
        found, more = metrics.official(year, table._replace(decision=_decisions(table, limits, scorer, member)))
        beside = loudness.get(member, next(iter(loudness.values()), []))
        rows += [Result(scorer, member, *row) for row in found + beside]
        notes += more
    return rows, list(dict.fromkeys(notes))


def write_results(path: str | Path, rows: Iterable[Result]) -> None:
    """Writes results.csv, whole or not at all."""
    _write_csv(path, [Result._fields, *([*row[:-1], repr(float(row.value))] for row in rows)])


def write_submission(folder: str | Path, scores: Mapping[str, np.ndarray], year: int | str) -> Thresholds:
    """Writes the files that the organisers ask for, named as in that year, one folder per scorer (and member).

    anomaly_score_*.csv and decision_result_*.csv (none in 2020, nor where no training clip is scored), without header,
    sorted by file name because the evaluators align by sorting. 2020: *_MACHINE_id_ID; 2021:
    *_MACHINE_section_SECTION_DOMAIN_test; from 2022, and 'plain': *_MACHINE_section_SECTION_test.

    Returns:
        the thresholds behind the decisions, each with what was unusual about it.

    Raises:
        InputError: 2021, and a test clip without domain.
    """
    limits = thresholds(scores)
    for scorer, member, own in _systems(scores):
        several = len({key[1] for key in limits if key[0] == scorer}) > 1
        into = Path(folder, scorer.replace("/", "_") + (f"_member{member}" if several else ""))
        test = np.flatnonzero(own & (scores["split"] == "test"))
        test = test[np.argsort(scores["file"][test], kind="stable")]
        table = _table(scores, test)
        endings = np.array([_ending(year, *clip) for clip in zip(*table[:3], scores["file"][test], strict=True)])
        decision = _decisions(table, limits, scorer, member)
        score = np.nan_to_num(table.score)  # the evaluators refuse infinities; the largest float ranks the same
        for ending in np.unique(endings):
            rows = np.flatnonzero(endings == ending)
            texts = [(scores["file"][test[row]], repr(float(score[row]))) for row in rows]
            _write_csv(into / f"anomaly_score_{ending}.csv", texts)
            if str(year) != "2020" and not np.isnan(decision[rows]).any():
                texts = [(scores["file"][test[row]], str(int(decision[row]))) for row in rows]
                _write_csv(into / f"decision_result_{ending}.csv", texts)
    return limits


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
    rules = {machine: (rule["source"], rule["target"]) for machine, rule in dict(by_machine).items()}
    named = sorted({source, target} | {scorer for rule in rules.values() for scorer in rule})
    known = np.unique(scores["scorer"])
    if name in known or not set(named) <= set(known):
        raise UsageError(
            f"select {name!r} of scorers {named}: the name must be new, the rest known; there is: {', '.join(known)}"
        )
    limits = thresholds(scores)
    take, shift = np.zeros(len(scores["score"]), bool), np.zeros(len(scores["score"]))
    for machine in np.unique(scores["machine"]).tolist():
        rule = rules.get(machine, (source, target))
        for domain, scorer in zip(metrics.DOMAINS, rule, strict=True):
            clips = (scores["machine"] == machine) & ((scores["domain"] == "target") == (domain == "target"))
            chosen = clips & (scores["scorer"] == scorer)
            if clips.any() and not chosen.any():
                raise InputError(f"select {name!r}: {scorer!r} has no scores of {machine}, {domain}")
            take |= chosen
            for member in np.unique(scores["member"][chosen]).tolist() if rule[0] != rule[1] else ():
                limit, _ = limits[scorer, member, machine]
                shift[chosen & (scores["member"] == member)] = 0.0 if np.isnan(limit) else limit
    chosen = {key: column[take] for key, column in scores.items()}
    return chosen | {"scorer": np.full(take.sum(), name), "score": chosen["score"] - shift[take]}


def _systems(scores: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, np.ndarray]]:
    """(scorer, member, rows as a mask), in the order of appearance, without the loudness."""
    for scorer in dict.fromkeys(scores["scorer"].tolist()):
        for member in np.unique(scores["member"][scores["scorer"] == scorer]).tolist():
            if scorer != RMS:
                yield scorer, member, (scores["scorer"] == scorer) & (scores["member"] == member)


def _table(scores: Mapping[str, np.ndarray], rows: np.ndarray) -> metrics.Table:
    return metrics.Table(*(scores[name][rows] for name in ("machine", "section", "domain", "label", "score")))


def _decisions(table: metrics.Table, limits: Thresholds, scorer: str, member: int) -> np.ndarray:
    """(M,) 1 where the score is strictly above its machine's threshold, else 0; NaN where there is no threshold."""
    limit = np.array([limits[scorer, member, str(machine)][0] for machine in table.machine])
    return np.where(np.isnan(limit), np.nan, table.score > limit)


def _ending(year: int | str, machine: str, section: str, domain: str, file: str) -> str:
    if str(year) == "2020":
        return f"{machine}_id_{section}"
    stem = f"{machine}_section_{section}" if section else machine
    if str(year) != "2021":
        return f"{stem}_test"
    if not domain:
        raise InputError(f"submission of 2021: test clip {file} of {stem} has no domain; expected source or target")
    return f"{stem}_{domain}_test"


def _parse(path: str | Path, number: int, line: list[str], header: list[str]) -> list:
    """A row's values in the order of COLUMNS."""
    if len(line) != len(header):
        raise InputError(f"{path} line {number}: {len(line)} columns, expected {len(header)}")
    values = []
    for name in COLUMNS:
        text = line[header.index(name)]
        parse, expected = PARSERS.get(name, (str, ""))
        try:
            values.append(parse(text))
        except (ValueError, KeyError):
            raise InputError(f"{path} line {number}: {name} is {text!r}, expected {expected}") from None
    return values


def _number(text: str) -> float:
    if np.isnan(value := float(text)):
        raise ValueError
    return value


PARSERS = {
    "member": (int, "an integer"),
    "domain": ({name: name for name in (*metrics.DOMAINS, "")}.__getitem__, "source, target or nothing"),
    "split": ({name: name for name in ("train", "test")}.__getitem__, "train or test"),
    "label": ({"0": 0, "1": 1, "": -1}.__getitem__, "0, 1 or nothing"),
    "score": (_number, "a number"),
}


def _write_csv(path: str | Path, rows: Iterable[Iterable]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(temporary, path)
