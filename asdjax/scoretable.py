"""The table of scores: scores.csv, written and read, put together, and averaged over members.

Scores are a dict of equal-length arrays, one entry per (scorer, member, clip), with the columns of scores.csv. The
scorer 'rms-only' is the loudness of the same clips: what a system must beat to have heard more than the volume. Members
are systems that differ by their seed alone: '0', '1', ..., and 'ensemble', the mean of their scores.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from asdjax import metrics
from asdjax.core import Clips, InputError

COLUMNS = ("scorer", "member", "machine", "section", "domain", "split", "file", "label", "score")
CLIP = COLUMNS[2:8]  # machine to label: which clip it is
RMS = "rms-only"
TRAINING_FREE = "training-free"
BESIDE = (RMS, TRAINING_FREE)  # scorers that stand beside those of a config, of one member
ENSEMBLE = "ensemble"
SPLITS = ("train", "test", "source_test", "target_test")  # folders of a machine

Scores = dict[str, np.ndarray]  # COLUMNS: str, but label int8 (-1 unknown), score float64


def of_clips(scorer: str, member: int, clips: Clips, scores: np.ndarray) -> Scores:
    """Columns of scores.csv for those of N clips that have a score (N,), which is not NaN."""
    known = ~np.isnan(scores)
    clips = clips[known]
    return {
        "scorer": np.full(len(clips), scorer),
        "member": np.full(len(clips), str(member)),
        "machine": clips.machine,
        "section": clips.section,
        "domain": clips.domain,
        "split": clips.split,
        "file": np.array(file_names(clips)),
        "label": clips.is_anomaly,
        "score": scores[known],
    }


def file_names(clips: Clips) -> list[str]:
    """How results call each clip: its path below MACHINE/train or the like; plain clips may share a base name."""
    names = []
    for machine, path in zip(clips.machine.tolist(), clips.path.tolist(), strict=True):
        parts = Path(path).parts
        below = [i for i in range(1, len(parts) - 1) if parts[i - 1] == machine and parts[i] in SPLITS]
        names.append("/".join(parts[below[-1] + 1 :]) if below else parts[-1])
    return names


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
    texts = {**scores, "label": label, "score": map(repr, scores["score"].tolist())}
    write_csv(path, itertools.chain([COLUMNS], zip(*(texts[name] for name in COLUMNS), strict=True)))


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
    types = {"label": np.int8, "score": np.float64}
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    return {name: np.array(column, types.get(name, np.str_)) for name, column in zip(COLUMNS, columns, strict=True)}


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> Scores:
    """The rows of several scores, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def ensemble(scores: Mapping[str, np.ndarray]) -> Scores:
    """The rows of member 'ensemble', to be joined to the scores: each clip's mean of the numbered members' scores.

    The plain mean, without normalisation, is the common practice for seeds of one system: their scores have one scale.

    Returns:
        rows of every scorer with two or more members; zero rows where there is none. The loudness has no members.

    Raises:
        InputError: members that do not score the same clips.
    """
    parts = [{name: scores[name][:0] for name in COLUMNS}]
    for scorer, members in systems(scores):
        members.pop(ENSEMBLE, None)
        if len(members) < 2:
            continue
        ordered = [rows[np.lexsort([scores[name][rows] for name in CLIP])] for rows in members.values()]
        first = {name: scores[name][ordered[0]] for name in COLUMNS}
        for member, rows in zip(members, ordered, strict=True):
            if not all(np.array_equal(scores[name][rows], first[name]) for name in CLIP):
                pair = (zip(*(scores[name][own].tolist() for name in CLIP), strict=True) for own in (ordered[0], rows))
                odd = min(set.symmetric_difference(*map(set, pair)), default="a clip that is scored twice")
                raise InputError(
                    f"ensemble of {scorer!r}: member {member} ({len(rows)} scores) scores other clips than member "
                    f"{next(iter(members))} ({len(ordered[0])}): {odd}; expected the same clips of every member"
                )
        mean = np.mean([scores["score"][rows] for rows in ordered], axis=0)
        parts.append(first | {"member": np.full(len(mean), ENSEMBLE), "score": mean})
    return concatenate(parts)


def systems(scores: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(scorer, {member: its row numbers}) without the loudness: scorers as they appear, members in natural order."""
    for scorer in dict.fromkeys(scores["scorer"].tolist()):
        rows = np.flatnonzero(scores["scorer"] == scorer)
        members = scores["member"][rows]
        order = sorted(set(members.tolist()), key=lambda member: np.inf if member == ENSEMBLE else int(member))
        if scorer != RMS:
            yield scorer, {member: rows[members == member] for member in order}


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


def _member(text: str) -> str:
    if text != ENSEMBLE and not (text.isascii() and text.isdigit()):  # int() takes '-1', ' 1' and '1_0'
        raise ValueError
    return text if text == ENSEMBLE else str(int(text))


def _number(text: str) -> float:
    if np.isnan(value := float(text)):
        raise ValueError
    return value


PARSERS = {
    "member": (_member, "0, 1, 2, ... or ensemble"),
    "domain": ({name: name for name in (*metrics.DOMAINS, "")}.__getitem__, "source, target or nothing"),
    "split": ({name: name for name in ("train", "test")}.__getitem__, "train or test"),
    "label": ({"0": 0, "1": 1, "": -1}.__getitem__, "0, 1 or nothing"),
    "score": (_number, "a number"),
}


def write_csv(path: str | Path, rows: Iterable[Iterable]) -> None:
    """Whole or not at all; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(temporary, path)
