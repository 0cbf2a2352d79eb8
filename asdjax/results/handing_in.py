"""A run's scores and decisions as the files that the organisers ask for; results.submission names their forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from asdjax import metrics
from asdjax.core import InputError
from asdjax.scoretable import ENSEMBLE, systems, write_csv

Thresholds = dict[tuple[str, str, str], tuple[float, str]]  # (scorer, member, machine) -> threshold, what was unusual
Part = tuple[str, str, str]  # machine, section, and the domain where the year's files have one, else ''


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
