"""From a table of scores to the files that a run leaves: scores.csv, results.csv, thresholds.json, submission/."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from asdjax import results, rundir, scoretable


def write(folder: Path, scores: scoretable.Scores, year: int | str) -> tuple[list[results.Result], list[str]]:
    """Writes the files.

    Returns:
        the rows of results.csv, and notes: sentences on what was left out or unusual.
    """
    scoretable.write_scores(folder / "scores.csv", scores)
    limits = results.thresholds(scores)
    rows, notes = results.summarise(scores, year, limits)
    results.write_results(folder / "results.csv", rows)
    shutil.rmtree(folder / "submission", ignore_errors=True)  # that of other scorers
    results.write_submission(folder / "submission", scores, year, limits)
    names = ("scorer", "member", "machine", "threshold", "note")
    table = [(*key, None if np.isnan(limit) else limit, note) for key, (limit, note) in limits.items()]
    rundir.write_json(folder / "thresholds.json", [dict(zip(names, row, strict=True)) for row in table])
    return rows, notes
