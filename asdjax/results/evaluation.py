"""Anybody's submission against the ground truth: what is wrong with it, and the numbers of the official evaluators.

Clips are joined by name. `as_official` repeats what is known to be wrong in the official scripts: all years align rows
by sorting them, 2020 passes over missing files in silence, 2022 cuts the machine means at the wrong place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from asdjax import metrics
from asdjax.core import InputError
from asdjax.data.names import year_of
from asdjax.data.truth import NAMED_WRONG, Truth, is_named_wrong
from asdjax.results.handing_in import Part, ending_of
from asdjax.results.submission import Submission, clip_of, name_problems, one_a_kind

Truths = Mapping[tuple[str, str], Truth]  # (machine, stem)


class Evaluation(NamedTuple):
    """The official rows of a submission, and sentences on what was left out, unusual or repeated of the scripts."""

    rows: list[metrics.Row]
    notes: list[str]


def problems(submission: Submission, year: int | str, truth: Truths | None = None) -> list[str]:
    """Everything that is wrong with the rows and clips of a submission; without truth, as far as it says itself.

    Causes come before what follows from them, and a complaint about many rows of a file is one sentence.

    Args:
        submission: as read.
        year: 2020 to 2026.
        truth: of all clips that it has to score.

    Returns:
        sentences that name the file and the line; none where it is valid.
    """
    found, parts = [], None if truth is None else _parts(truth, year)
    if parts is not None:
        found += _file_problems(submission, year, parts)
        scores, decided = ({p: f for p, f in files.items() if p in parts} for files in submission[2:])
        submission = submission._replace(scores=scores, decisions=decided)  # of other files all has been said
    known = of_clips(submission, year, truth or {})
    found += [*_complaints(submission), *name_problems(submission, year), *_repetitions(known)]
    found += _named_wrong(submission, year) if parts is None else _row_problems(known, year, parts)
    return [*found, *_decision_problems(known, alone=parts is None)]


def evaluate(submission: Submission, year: int | str, truth: Truths) -> Evaluation:
    """The official numbers, clips joined by name.

    Raises:
        InputError: whatever `problems` finds.
    """
    if found := problems(submission, year, truth):
        raise InputError(listed(found))
    table = _table(of_clips(submission, year, truth), _parts(truth, year), by_sorting=False)
    rows, notes = metrics.official(year, table)
    return Evaluation(rows, notes + _notes(submission, year))


def evaluate_as_official(submission: Submission, year: int | str, truth: Truths) -> Evaluation:
    """The numbers that the official script prints, with its slips; the last note says which of them changed anything.

    Raises:
        InputError: what the script stops at too: missing files (but in 2020), other counts of rows.
    """
    parts = _parts(truth, year)
    skipped = [part for part in parts if str(year) == "2020" and part not in submission.scores]
    truth = {(machine, clip): t for (machine, clip), t in truth.items() if (machine, t.section, "") not in skipped}
    parts = _parts(truth, year)
    named = of_clips(submission, year, truth if str(year) >= "2023" else {})
    stops = [*_file_problems(named, year, parts), *_complaints(named), *_count_problems(named, parts)]
    if stops:
        raise InputError(listed(stops))
    table = _table(named, parts, by_sorting=True)
    rows, notes = metrics.official(year, table, official_slices=True)
    changes = [_alignment(table, submission, year, truth)]
    if str(year) == "2020":
        files = some([f"anomaly_score_{ending_of(part, year)}.csv" for part in skipped]) or "none"
        changes.append(f"missing files passed over: {files}")
    if str(year) == "2022":
        changes.append(f"slices of the machine means changed {_sliced(rows, table, year) or 'no'} values")
    said = f"as the official evaluator of {year}: {'; '.join(changes)}"
    return Evaluation(rows, [*notes, *_notes(submission, year), said])


def truth_of_names(submission: Submission, year: int | str) -> dict[tuple[str, str], Truth]:
    """What labelled names say themselves: those of development clips, or of evaluation clips once they are published.

    Raises:
        InputError: names that hide their labels, or that were made by the official list of 2022.
    """
    if wrong := _named_wrong(submission, year):  # also for those who look at names as the official scripts do
        raise InputError(wrong[0])
    truth, hidden = {}, []
    for part, file in submission.scores.items():
        for row in file.rows:
            clip = clip_of(row.name, year)
            match = re.fullmatch(year_of(year).labelled.regex, clip)
            if not match:
                hidden.append(row)
                continue
            said = match.groupdict(default="")
            anomaly = int(said["label"] == "anomaly")
            truth[part[0], clip] = Truth(said["section"], anomaly, said.get("domain", ""), row.where, "")
    if hidden:
        first, rest = hidden[0], f", nor do {len(hidden) - 1} others" * (len(hidden) > 1)
        raise InputError(f"{first.where}: {first.name[:60]!r} does not say its label{rest}; expected --truth")
    return truth


def _named_wrong(submission: Submission, year: int | str) -> list[str]:
    """The first name of each file that was made by the official list of 2022."""
    found = []
    for part, file in submission.scores.items() if str(year) == "2022" else ():
        for row in file.rows:
            match = re.fullmatch(year_of(year).labelled.regex, clip_of(row.name, year))
            if match and is_named_wrong(part[0], match["section"], year):
                found.append(f"{row.where}: {row.name[:60]!r}: {NAMED_WRONG}")
                break
    return found


def of_clips(submission: Submission, year: int | str, truth: Truths) -> Submission:
    """The submission with the clips of `truth` in the place of file names; labelled names as far as it knows them."""
    hidden = {(machine, t.renamed): clip for (machine, clip), t in truth.items() if t.renamed}

    def named(files):
        found = {}
        for part, file in files.items():
            clips = [clip_of(row.name, year) for row in file.rows]
            clips = [hidden.get((part[0], clip), clip) for clip in clips]
            rows = [row._replace(name=clip) for row, clip in zip(file.rows, clips, strict=True)]
            found[part] = file._replace(rows=rows)
        return found

    return submission._replace(scores=named(submission.scores), decisions=named(submission.decisions))


def summary(submission: Submission) -> str:
    """How much it scores."""
    machines, clips = {part[0] for part in submission.scores}, sum(len(f.rows) for f in submission.scores.values())
    return f"{len(machines)} machines, {clips} clips, decisions: {'yes' if submission.decisions else 'no'}"


def listed(found: list[str], n: int = 20) -> str:
    """The first of the problems, one a line, and how many there are besides."""
    return "\n".join(found[:n] + [f"and {len(found) - n} more"] * (len(found) > n))


def some(names: list[str], n: int = 3) -> str:
    """The first of the names, and how many there are besides."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


# ---------------------------------------------------------------- checks


def _complaints(submission: Submission) -> Iterator[str]:
    """What is wrong with columns and numbers."""
    for file in (*submission.scores.values(), *submission.decisions.values()):
        yield from file.complaints


def _repetitions(submission: Submission) -> Iterator[str]:
    """Clips twice in a file."""
    for file in (*submission.scores.values(), *submission.decisions.values()):
        first, found = {}, []
        for row in file.rows:
            if (before := first.setdefault(row.name, row)) is not row:
                line = before.where.rpartition(" ")[2]
                found.append(("", f"{row.where}: {row.name} a second time, first in line {line}"))
        yield from one_a_kind(found)


def _decision_problems(submission: Submission, *, alone: bool) -> Iterator[str]:
    """Decisions that are not of the clips that have scores; of files without scores only where no truth says so."""
    scores, decided = submission.scores, submission.decisions
    for part, file in decided.items():
        if alone and part not in scores:
            yield f"{file.path}: decisions of clips without scores, expected an anomaly_score file beside it"
    for part, file in scores.items():
        if decided and part not in decided:
            yield f"{file.path}: no decision_result file beside it, expected one of all scores or of none"
        elif decided and file.whole and decided[part].whole:
            if odd := sorted({row.name for row in file.rows} ^ {row.name for row in decided[part].rows}):
                yield f"{decided[part].path}: other clips than in {file.path.name}: only in one of them {some(odd)}"


def _row_problems(submission: Submission, year: int | str, parts: Mapping[Part, Mapping[str, Truth]]) -> Iterator[str]:
    """Unknown and missing clips of files that are in the truth."""
    labelled = year_of(year).labelled.regex
    for part, file in submission.scores.items():
        found = []
        for row in file.rows:
            if row.name not in parts[part]:
                why = ", or the truth does not say which it is" if re.fullmatch(labelled, row.name) else ""
                of = " ".join(filter(None, part))
                found.append((why, f"{row.where}: {row.name[:60]} is no test clip of {of}{why}"))
        yield from one_a_kind(found)
        missing = sorted(parts[part].keys() - {row.name for row in file.rows})
        if missing and file.whole:
            yield f"{file.path}: {len(file.rows)} rows, expected {len(parts[part])}; missing: {some(missing)}"


def _file_problems(submission: Submission, year: int | str, parts: Mapping[Part, list[str]]) -> Iterator[str]:
    machines, given = ({part[0] for part in some_parts} for some_parts in (parts, submission.scores))
    if not machines & given:
        yield (
            f"{submission.folder}: scores of {some(sorted(given))}, but the truth is of {some(sorted(machines), 10)}; "
            "expected the same year's"
        )
        return
    for part, clips in parts.items():
        if part not in submission.scores:
            file = f"anomaly_score_{ending_of(part, year)}.csv"
            yield f"{submission.folder}: no {file}, expected one with {len(clips)} rows"
    files = submission.decisions | submission.scores  # one of two files of the same part is enough to say so
    for part in sorted(files.keys() - parts.keys()):
        what, there = f"machine {part[0]}", sorted(machines)
        if part[0] in machines:
            what = f"section {' '.join(filter(None, part[1:]))} of {part[0]}"
            there = [" ".join(filter(None, (*other[1:], "of", other[0]))) for other in parts if other[0] == part[0]]
        yield f"{files[part].path}: {what} is not in the truth, which has {some(there, 10)}"


def _count_problems(submission: Submission, parts: Mapping[Part, list[str]]) -> Iterator[str]:
    for files in (submission.scores, submission.decisions):
        for part in sorted(files.keys() & parts.keys()):
            if files[part].whole and len(files[part].rows) != len(parts[part]):
                yield f"{files[part].path}: {len(files[part].rows)} rows, expected {len(parts[part])}"


# ---------------------------------------------------------------- tables


def _parts(truth: Truths, year: int | str) -> dict[Part, dict[str, Truth]]:
    """The clips that each file has to score, both sorted."""
    parts: dict[Part, dict[str, Truth]] = {}
    for (machine, clip), found in sorted(truth.items()):
        part = machine, found.section, found.domain if str(year) == "2021" else ""
        parts.setdefault(part, {})[clip] = found
    return dict(sorted(parts.items()))


def _table(submission: Submission, parts: Mapping[Part, Mapping[str, Truth]], *, by_sorting: bool) -> metrics.Table:
    """The clips of the truth with their scores and decisions."""

    def aligned(file, clips):
        if by_sorting:
            return [row.value for row in sorted(file.rows, key=lambda row: (row.name, row.text))]
        values = {row.name: row.value for row in file.rows}
        return [values[clip] for clip in clips]

    rows = []
    for part, clips in parts.items():
        scores = aligned(submission.scores[part], clips)
        has_decisions = part in submission.decisions
        said = aligned(submission.decisions[part], clips) if has_decisions else [np.nan] * len(clips)
        told = zip(clips.values(), scores, said, strict=True)
        rows += [(part[0], t.section, t.domain, t.is_anomaly, score, decision) for t, score, decision in told]
    table = metrics.Table(*map(np.array, zip(*rows, strict=True)))
    return table if submission.decisions else table._replace(decision=None)


def _alignment(table: metrics.Table, submission: Submission, year: int | str, truth: Truths) -> str:
    """What the alignment by sorting made of it."""
    if found := problems(submission, year, truth):
        more = f" and {len(found) - 1} more problems" * (len(found) > 1)
        return f"alignment by sorting took what by name is malformed: {found[0]}{more}"
    right = _table(of_clips(submission, year, truth), _parts(truth, year), by_sorting=False)
    odd = table.score != right.score
    if table.decision is not None:
        odd |= (table.decision != right.decision) & ~(np.isnan(table.decision) & np.isnan(right.decision))
    return "alignment by sorting " + (f"gave {odd.sum()} clips others' values" if odd.any() else "changed nothing")


def _sliced(rows: list[metrics.Row], table: metrics.Table, year: int | str) -> int:
    """How many values of machines are others where sections are taken into the means of their own domain."""
    right = {row[:4]: row.value for row in metrics.official(year, table, n_bootstrap=0)[0]}
    count = 0
    for row in rows:
        whole = row.machine, row.section, "", row.metric  # of the one pAUC, which the script repeats for each domain
        before = right.get(row[:4], right.get(whole))
        count += row.machine != "all" and not math.isclose(row.value, before, rel_tol=1e-12)
    return count


def _notes(submission: Submission, year: int | str) -> list[str]:
    notes = []
    if not submission.decisions and str(year) != "2020":
        notes.append("no decision files: no precision, recall and F1 score")
    if str(year) == "2026":
        notes.append("2026: no official evaluator is known, the rules of 2025 are taken")
    return notes
