"""The files that the organisers ask for: written, read from anybody's folder, and checked for their form.

2020        anomaly_score_MACHINE_id_NN.csv
2021        anomaly_score_MACHINE_section_NN_{source|target}_test.csv
from 2022   anomaly_score_MACHINE_section_NN_test.csv, or the baseline's
            anomaly_score_DCASE2023T2MACHINE_section_00_test_seed13711_id(0_)_Eval.csv

Rows are `file name,score`, without header. From 2021 on decision_result_*.csv lie beside, with decisions 0 or 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax import metrics
from asdjax.core import InputError, UsageError
from asdjax.data.names import ANY, YEARS, csv_rows, stem, year_of
from asdjax.scoretable import ENSEMBLE, systems, write_csv

Thresholds = dict[tuple[str, str, str], tuple[float, str]]  # (scorer, member, machine) -> threshold, what was unusual
Part = tuple[str, str, str]  # machine, section, and the domain where the year's files have one, else ''


class Row(NamedTuple):
    """A row of a file; `text` is its number as written, `where` the file and the line."""

    name: str
    text: str
    value: float
    where: str


class File(NamedTuple):
    """A file of scores or of decisions."""

    path: Path
    rows: list[Row]


class Submission(NamedTuple):
    """What one system says of the test clips."""

    name: str
    folder: Path
    scores: dict[Part, File]
    decisions: dict[Part, File]


def write_submission(folder: str | Path, scores: Mapping[str, np.ndarray], year: int | str, limits: Thresholds) -> None:
    """Writes the files that the organisers ask for, named as in that year, one folder per scorer, or per member.

    Folders: SCORER, and where it has several members SCORER_member0, ..., SCORER_ensemble. In them
    anomaly_score_*.csv and decision_result_*.csv (none in 2020, nor where no training clip is scored), without header,
    sorted by file name because the evaluators align by sorting. 'plain' is named as 2022 and later.

    Args:
        folder: created where absent.
        scores: the columns of scores.csv.
        year: 2020 to 2026, or 'plain'.
        limits: `results.thresholds(scores)`.

    Raises:
        InputError: a test clip without domain in 2021, or a scorer, machine or section that no file can be named after.
    """
    written = set()
    for scorer, members in systems(scores):
        for member, own in members.items():
            ending = f"_{member}" if member == ENSEMBLE else f"_member{member}"
            name = scorer.replace("/", "_") + (ending if len(members) > 1 else "")
            if name in written:
                raise InputError(f"submission: a second system would be written to {name}/; rename scorer {scorer!r}")
            written.add(name)
            test = own[scores["split"][own] == "test"]
            test = test[np.argsort(scores["file"][test], kind="stable")]
            table = table_of(scores, test)
            into = Path(folder, _plain_name(name))
            _write_folder(into, table, scores["file"][test], decisions(table, limits, scorer, member), year)


def table_of(scores: Mapping[str, np.ndarray], rows: np.ndarray) -> metrics.Table:
    """The rows of scores that the metrics are of."""
    return metrics.Table(*(scores[name][rows] for name in ("machine", "section", "domain", "label", "score")))


def decisions(table: metrics.Table, limits: Thresholds, scorer: str, member: str) -> np.ndarray:
    """(M,) 1 where the score is strictly above its machine's threshold, else 0; NaN where there is no threshold."""
    limit = np.array([limits[scorer, member, str(machine)][0] for machine in table.machine])
    return np.where(np.isnan(limit), np.nan, table.score > limit)


def _write_folder(into: Path, table: metrics.Table, file: np.ndarray, decision: np.ndarray, year: int | str) -> None:
    """The submission files of one system, from its test clips (M,) in the order of their rows."""
    clips = zip(*(column.tolist() for column in table[:3]), file.tolist(), strict=True)
    endings = np.array([_plain_name(_checked_ending(year, *clip)) for clip in clips])
    score = np.nan_to_num(table.score)  # the evaluators refuse infinities; the largest float ranks the same
    for ending in np.unique(endings):
        rows = np.flatnonzero(endings == ending)
        write_csv(into / f"anomaly_score_{ending}.csv", [(file[row], repr(float(score[row]))) for row in rows])
        if str(year) != "2020" and not np.isnan(decision[rows]).any():
            texts = [(file[row], str(int(decision[row]))) for row in rows]
            write_csv(into / f"decision_result_{ending}.csv", texts)


def _checked_ending(year: int | str, machine: str, section: str, domain: str, file: str) -> str:
    if str(year) == "2021" and not domain:
        raise InputError(
            f"submission of 2021: test clip {file} of {machine} section {section} has no domain; "
            "expected source or target"
        )
    return ending_of((machine, section, domain), year)


def ending_of(part: Part, year: int | str) -> str:
    """What the names of a part's files end in, without .csv."""
    machine, section, domain = part
    if str(year) == "2020":
        return f"{machine}_id_{section}"
    named = f"{machine}_section_{section}" if section else machine
    return f"{named}_{domain}_test" if str(year) == "2021" else f"{named}_test"


def _plain_name(name: str) -> str:
    """The name itself. A table of scores may be anybody's: no name in it may lead out of the folder."""
    if name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\"):
        raise InputError(f"submission: found the name {name!r}, expected one that a file or folder can have")
    return name


# ---------------------------------------------------------------- reading


def read_submissions(path: str | Path, year: int | str) -> tuple[list[Submission], list[str]]:
    """The submissions in a folder: its own files, or those of each of its sub-folders.

    Args:
        path: a system's folder, or one of such folders.
        year: 2020 to 2026, or 'plain'.

    Returns:
        the submissions, and what is wrong with their files and rows: names of files, columns and numbers. Clip names
        are not looked at (`name_problems`).

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
        problems += [problem for file in files for problem in _added(submission, file, year)]
        problems += [f"{folder}: no anomaly_score_*.csv"] * (not submission.scores)
        submissions.append(submission)
    return submissions, problems


def printable(text: str) -> str:
    """The text without what steers a terminal or cannot be written: names of files are anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)


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


def _added(submission: Submission, path: Path, year: int | str) -> Iterator[str]:
    """Puts a file into the submission; yields what is wrong with it."""
    match = re.fullmatch(_form(year), path.name)
    if not match:
        other = [y for y in YEARS if y != "plain" and re.fullmatch(_form(y), path.name)]
        of = f"a name of {', '.join(map(str, other))}" if other else "not the name of a submission's file"
        more = " or decision_result_*" * (str(year) != "2020")
        yield f"{path}: {of}, expected anomaly_score_{_words(year)}.csv{more}"
        return
    said = {"domain": "", **match.groupdict(default="")}
    part, is_score = (said["machine"], said["section"], said["domain"]), said["kind"] == "anomaly_score"
    files = submission.scores if is_score else submission.decisions
    if part in files:
        yield f"{path}: {files[part].path.name} is of the same clips, expected one {said['kind']} file of them"
        return
    files[part] = File(path, [])
    try:
        for where, fields in csv_rows(path):
            yield from _parsed(files[part].rows, where, fields, is_score)
    except InputError as error:
        yield str(error)
        return
    if not files[part].rows:
        yield f"{path}: no rows, expected {'scores' if is_score else 'decisions'}"


def _parsed(rows: list[Row], where: str, fields: list[str], is_score: bool) -> Iterator[str]:
    """Appends a row, with the value NaN where it has no fit one; yields what is wrong with it."""
    expected = "a finite number" if is_score else "the decision 0 or 1"
    if len(fields) != 2:
        yield f"{where}: found {len(fields)} column{'s' * (len(fields) > 1)}, expected 2: file name and {expected}"
        return
    name, text = fields
    # float() also takes '1_0' and the digits of other scripts
    value = float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else math.nan
    bad = not math.isfinite(value) or not (is_score or value in (0, 1))
    if bad and not rows and not re.search(r"(?i)[0-9]{4}|\.wav", name):
        yield f"{where}: {','.join(fields)[:60]!r} looks like a header: the files have none"
        return
    rows.append(Row(name, text, math.nan if bad else value, where))
    if bad:
        yield f"{where}: found {text[:60]!r}, expected {expected}"


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
    for part, file in (*submission.scores.items(), *submission.decisions.items()):
        for row in file.rows:
            clip = clip_of(row.name, year)
            match = next(filter(None, (re.fullmatch(name.regex, clip) for name in names)), None)
            if not match:
                of = next((f", a name of {y}" for y, r in others if re.fullmatch(r.hidden.regex, clip)), "")
                yield f"{row.where}: found {row.name[:60]!r}{of}, expected {expected}"
                continue
            said = match.groupdict(default="")
            in_section = said.get("section", part[1]) == part[1]
            if not in_section or said.get("split") == "train" or (part[2] and said["domain"] != part[2]):
                yield f"{row.where}: found {row.name[:60]!r}, expected a test clip of {' '.join(filter(None, part))}"
