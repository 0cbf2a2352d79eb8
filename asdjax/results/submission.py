"""The files that the organisers ask for, read from anybody's folder and checked for their form.

2020        anomaly_score_MACHINE_id_NN.csv
2021        anomaly_score_MACHINE_section_NN_{source|target}_test.csv
from 2022   anomaly_score_MACHINE_section_NN_test.csv, or the baseline's
            anomaly_score_DCASE2023T2MACHINE_section_00_test_seed13711_id(0_)_Eval.csv

Rows are `file name,score`, without header. From 2021 on decision_result_*.csv lie beside, with decisions 0 or 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from asdjax.commandline import printable
from asdjax.core import InputError, UsageError
from asdjax.data.names import ANY, YEARS, csv_rows, stem, year_of
from asdjax.results.handing_in import Part, ending_of


class Row(NamedTuple):
    """A row of a file; `text` is its number as written, `where` the file and the line."""

    name: str
    text: str
    value: float
    where: str


class File(NamedTuple):
    """A file of scores or of decisions.

    Attributes:
        rows: those that name a clip.
        complaints: what is wrong with its rows.
        whole: whether every clip of the file is among the rows.
    """

    path: Path
    rows: list[Row]
    complaints: list[str]
    whole: bool


class Submission(NamedTuple):
    """What one system says of the test clips."""

    name: str
    folder: Path
    scores: dict[Part, File]
    decisions: dict[Part, File]


def read_submissions(path: str | Path, year: int | str) -> tuple[list[Submission], list[str]]:
    """The submissions in a folder: its own files, or those of each of its sub-folders.

    Args:
        path: a system's folder, or one of such folders.
        year: 2020 to 2026, or 'plain'.

    Returns:
        the submissions, and what is wrong with the names of their files. What is wrong with columns and numbers is in
        each File; names of clips are not looked at (`name_problems`).

    Raises:
        UsageError: no such folder. InputError: nothing in it that is named like a submission's file.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UsageError(f"--submission: {path} is {'a file' if path.exists() else 'not there'}, expected a folder")
    own, below = _csvs(path), {p: _csvs(p) for p in sorted(path.iterdir()) if p.is_dir() and p.name[0] != "."}
    below = {folder: files for folder, files in below.items() if any(map(_is_named, files))}
    if below and any(map(_is_named, own)):
        raise InputError(f"{path}: scores in it and in its {next(iter(below)).name}/, expected one system a folder")
    if not below and not any(map(_is_named, own)):
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise InputError(f"{path}: found {found}, expected anomaly_score_{_words(year)}.csv, or folders of such")
    submissions, problems = [], []
    for folder, files in (below or {path: own}).items():
        submission = Submission(printable(folder.resolve().name), folder, {}, {})
        problems += one_a_kind((problem for file in files for problem in _added(submission, file, year)), "file")
        problems += [f"{folder}: no anomaly_score_*.csv"] * (not submission.scores)
        submissions.append(submission)
    return submissions, problems


def one_a_kind(found: Iterable[tuple[Hashable, str]], what: str = "row") -> list[str]:
    """The first sentence of each kind, with how many more rows (or files) have one; `found` has (kind, sentence)."""
    kinds: dict[Hashable, list[str]] = {}
    for kind, text in found:
        kinds.setdefault(kind, []).append(text)
    more = {kind: len(texts) - 1 for kind, texts in kinds.items()}
    return [
        texts[0] + f" (and {more[kind]} more {what}{'s' * (more[kind] > 1)})" * (more[kind] > 0)
        for kind, texts in kinds.items()
    ]


def _csvs(folder: Path) -> list[Path]:
    """The csvs of a folder; hidden files (and the '._' ones of archives made on a Mac) are passed over."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".csv" and p.name[0] != ".")


def _is_named(file: Path) -> bool:
    return file.name.startswith(("anomaly_score", "decision_result"))


def _words(year: int | str) -> str:
    return ending_of(("MACHINE", "NN", "{source|target}"), year)


def _form(year: int | str) -> str:
    """What names of files match."""
    if str(year) == "2020":
        return r"(?P<kind>anomaly_score)_(?P<machine>.+)_id_(?P<section>[0-9]{2})\.csv"
    kind = "(?P<kind>anomaly_score|decision_result)_"
    if str(year) == "2021":
        return kind + r"(?P<machine>.+)_section_(?P<section>[0-9]{2})_(?P<domain>source|target)_test\.csv"
    if str(year) == "plain":
        return kind + r"(?P<machine>.+?)(_section_(?P<section>.+))?_test\.csv"
    return (
        f"{kind}(DCASE{year}T2)?(?!DCASE[0-9]{{4}}T2)"
        r"(?P<machine>.+)_section_(?P<section>[0-9]{2})_test(_seed[0-9]+.*)?\.csv"
    )


def _added(submission: Submission, path: Path, year: int | str) -> Iterator[tuple[str, str]]:
    """Puts a file into the submission; yields what is wrong with its name, the kind first."""
    match = re.fullmatch(_form(year), path.name)
    if not match:
        other = [y for y in YEARS if y != "plain" and re.fullmatch(_form(y), path.name)]
        of = f"a name of {', '.join(map(str, other))}" if other else "not the name of a submission's file"
        if str(year) == "2020" and path.name.startswith("decision_result"):
            of = "2020 has no decisions"
        more = " or decision_result_*" * (str(year) != "2020")
        yield of, f"{path}: {of}, expected anomaly_score_{_words(year)}.csv{more}"
        return
    said = {"domain": "", **match.groupdict(default="")}
    part, is_score = (said["machine"], said["section"], said["domain"]), said["kind"] == "anomaly_score"
    files = submission.scores if is_score else submission.decisions
    if part in files:
        twin = files[part].path.name
        yield path.name, f"{path}: {twin} is of the same clips, expected one {said['kind']} file of them"
        return
    files[part] = _read(path, is_score)


def _read(path: Path, is_score: bool) -> File:
    """A file with what is wrong with its rows."""
    rows, found, whole = [], [], True
    try:
        for where, fields in csv_rows(path):
            row, wrong = _parsed(where, fields, is_score, first=not rows)
            rows += [row] if row else []
            found += [((row is None, len(fields)), wrong)] if wrong else []
            whole &= len(fields) == 2
    except InputError as error:
        found, whole = [*found, (None, str(error))], False
    if not rows and not found:
        found, whole = [(None, f"{path}: no rows, expected {'scores' if is_score else 'decisions'}")], False
    return File(path, rows, one_a_kind(found), whole)


def _parsed(where: str, fields: list[str], is_score: bool, *, first: bool) -> tuple[Row | None, str]:
    """A row, its value NaN where that is not fit, None where it names no clip; and what is wrong with it, or ''."""
    expected = "a finite number" if is_score else "the decision 0 or 1"
    if len(fields) != 2:
        columns = f"{len(fields)} column{'s' * (len(fields) > 1)}"
        return None, f"{where}: found {columns}, expected 2: file name and {expected}"
    name, text = fields
    # float() also takes '1_0' and the digits of other scripts
    value = float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else math.nan
    bad = not math.isfinite(value) or not (is_score or value in (0, 1))
    if bad and first and not re.search(r"(?i)[0-9]{4}|\.wav", name):
        return None, f"{where}: {','.join(fields)[:60]!r} looks like a header: the files have none"
    wrong = f"{where}: found {text[:60]!r}, expected {expected}" if bad else ""
    return Row(name, text, math.nan if bad else value, where), wrong


# ---------------------------------------------------------------- checks


def clip_of(name: str, year: int | str) -> str:
    """What a clip is known by: the stem; in plain data sets, where folders may say the label, the whole name."""
    return name if year_of(year).hidden is ANY else stem(name)


def name_problems(submission: Submission, year: int | str) -> Iterator[str]:
    """What is wrong with the names of clips, each looked at alone: another year's, another section's."""
    rules = year_of(year)
    names = dict.fromkeys((rules.hidden, rules.labelled))
    expected = " or ".join(f"{name.words}.wav" for name in names)
    others = [(y, r) for y, r in YEARS.items() if r.hidden is not rules.hidden and r.hidden is not ANY]

    def of_row(part, row):
        clip, found = clip_of(row.name, year), f"{row.where}: found {row.name[:60]!r}"
        match = next(filter(None, (re.fullmatch(name.regex, clip) for name in names)), None)
        if not match:
            of = next((f", a name of {y}" for y, r in others if re.fullmatch(r.hidden.regex, clip)), "")
            yield of, f"{found}{of}, expected {expected}"
            return
        said = match.groupdict(default="")
        in_section = said.get("section", part[1]) == part[1]
        if not in_section or said.get("split") == "train" or (part[2] and said["domain"] != part[2]):
            yield "part", f"{found}, expected a test clip of {' '.join(filter(None, part))}"

    for part, file in (*submission.scores.items(), *submission.decisions.items()):
        yield from one_a_kind(problem for row in file.rows for problem in of_row(part, row))
