"""What is in a data set: the layouts and file names of DCASE Task 2, 2020 to 2026, and of plain folders.

ROOT/[dev_data/ | eval_data/][raw/]MACHINE/{train,test,supplemental}/*.wav, MACHINE/attributes_SS.csv
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.core import Clips, InputError, UsageError
from asdjax.data import truth
from asdjax.data.names import ANY, SECTION, SUPPLEMENTAL, Name, Year, stem, year_of


class _Row(NamedTuple):
    """One clip; the fields of core.Clips in their order."""

    path: str
    machine: str
    section: str
    domain: str
    split: str
    is_anomaly: int
    attributes: str


def index(
    root: str | Path,
    year: int | str,
    *,
    train_on: tuple[str, ...] = ("dev", "additional"),
    test_on: str = "dev",
    ground_truth: str | Path | None = None,
) -> Clips:
    """The clips of a data set, sorted by machine, split and path; reads names only, opens no recording.

    Args:
        root: a folder of machines (it counts as 'dev'), or one that holds dev_data/ and eval_data/; raw/ may lie below.
        year: 2020 to 2026, or 'plain' for MACHINE/{train,test} with any names, where test clips are labelled by a
            folder or a name that begins with normal, anomaly or abnormal.
        train_on: of 'dev' (dev_data/MACHINE/train) and 'additional' (eval_data/MACHINE/train), joined where present.
        test_on: 'dev' (dev_data/MACHINE/test) or 'eval' (eval_data/MACHINE/test).
        ground_truth: labels and domains of test clips whose names hide them: the folder with the official evaluator's
            ground_truth_data/ and ground_truth_domain/, or an official eval_data_list csv (what serves in which year:
            truth.read). Without it they are unknown.

    Raises:
        UsageError: a wrong argument. InputError: an unexpected layout, file name, label or csv.
    """
    rules = year_of(year)
    if isinstance(train_on, str) or not train_on or set(train_on) - {"dev", "additional"}:
        raise UsageError(f"data.train_on: found {train_on!r}, expected a tuple of 'dev', 'additional' or both")
    if test_on not in ("dev", "eval"):
        raise UsageError(f"data.test_on: found {test_on!r}, expected 'dev' or 'eval'")
    if not (root := Path(root).expanduser()).is_dir():
        raise UsageError(f"data.root: {root} is no folder, expected one of machines or with dev_data/ and eval_data/")
    try:
        rows = _rows(root, rules, year, train_on, test_on)
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    rows = _without_wrong_names(rows, year)
    if ground_truth is not None:
        rows = _with_truth(rows, Path(ground_truth).expanduser(), year)
    columns = zip(*sorted(rows, key=lambda r: (r.machine, r.split, r.path)), strict=True)
    arrays = {field: np.array(column) for field, column in zip(_Row._fields, columns, strict=True)}
    return Clips(**{**arrays, "is_anomaly": arrays["is_anomaly"].astype(np.int8)})


def _rows(root: Path, rules: Year, year: int | str, train_on: tuple[str, ...], test_on: str) -> list[_Row]:
    """The clips asked for, in no order."""
    parts = _parts(root)
    if test_on not in parts:
        raise InputError(f"{root}: no machines to test, expected {test_on}_data/[raw/]MACHINE/{{train,test}}")
    rows = []
    for part, machines in parts.items():
        for machine in machines:
            if part in train_on or (part == "eval" and "additional" in train_on):
                rows += _train_rows(machine, rules, year)
            if part == test_on:
                rows += _test_rows(machine, rules, year)
    if not rows:
        raise InputError(f"{root}: no .wav files in {' or '.join(('train', *rules.test_folders))} of its machines")
    seen, trained = {}, {row.machine for row in rows if row.split == "train"}
    for row in rows:
        first = seen.setdefault((row.machine, row.split, stem(row.path)), row.path)
        if first != row.path and rules.labelled is not ANY:
            raise InputError(f"{row.path}: {first} has the same name, expected each clip once")
        if row.split == "test" and row.machine not in trained:
            raise InputError(
                f"{row.path}: {row.machine} has test clips but no training clips, expected some "
                f"(data.train_on is {train_on!r}; 'additional' is eval_data/{row.machine}/train)"
            )
    return rows


def _parts(root: Path) -> dict[str, list[Path]]:
    """The machine folders of 'dev' and 'eval', as far as they are there."""
    bases = {part: root / f"{part}_data" for part in ("dev", "eval") if (root / f"{part}_data").is_dir()}
    bases = {part: b / "raw" if (b / "raw").is_dir() else b for part, b in (bases or {"dev": root}).items()}
    inside = {"train", "test", "source_test", "target_test", "supplemental"}
    parts = {}
    for part, base in bases.items():
        machines = [p for p in _listed(base) if p.is_dir() and inside & {q.name for q in _listed(p) if q.is_dir()}]
        if machines:
            parts[part] = machines
    if not parts:
        found = ", ".join(p.name for p in _listed(root)[:10]) or "nothing"
        raise InputError(
            f"{root}: no machines, expected MACHINE/train/*.wav and MACHINE/test/*.wav "
            f"in it, in its dev_data/ or eval_data/, or in raw/ below these; found {found}"
        )
    return parts


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden files (and the '._' ones of archives made on a Mac) are passed over."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _wavs(folder: Path, rules: Year) -> list[Path]:
    """The .wav files of a folder; for plain data sets also those of the folders in it."""
    if not folder.is_dir():
        return []
    files = []
    for path in _listed(folder):
        if path.is_dir():
            files += _wavs(path, rules) if rules.labelled is ANY else []
        elif path.suffix.lower() == ".wav":
            files.append(path)
    return files


def _train_rows(machine: Path, rules: Year, year: int | str) -> list[_Row]:
    """The clips of train/ and supplemental/ of one machine."""
    rows = []
    for path in _wavs(machine / "train", rules):
        said = _said(path, (rules.labelled,), year)
        label = _plain_label(path, machine / "train") if rules.labelled is ANY else int(said["label"] == "anomaly")
        if label == 1 or said.get("split") == "test":
            raise InputError(f"{path}: named a test clip or an anomaly, expected only normal training clips in train/")
        section, domain, attributes = said.get("section", "00"), said.get("domain", ""), said.get("attributes")
        rows.append(_Row(str(path), machine.name, section, domain, "train", 0, attributes or ""))
    if rules.labelled is SECTION:
        for path in _wavs(machine / "supplemental", rules):
            section = _said(path, (SUPPLEMENTAL,), year)["section"]
            rows.append(_Row(str(path), machine.name, section, "", "supplemental", -1, ""))
    return rows


def _test_rows(machine: Path, rules: Year, year: int | str) -> list[_Row]:
    """The test clips of one machine. Their attributes are dropped here: they give labels away."""
    rows = []
    for name in ("source_test", "target_test", "test"):
        if name not in rules.test_folders and (machine / name).is_dir():
            raise InputError(f"{machine / name}: a folder of 2021, expected {', '.join(rules.test_folders)} in {year}")
        for path in _wavs(machine / name, rules):
            said = _said(path, (rules.labelled, rules.hidden), year)
            domain = said.get("domain", "")
            if said.get("split") == "train" or (name != "test" and not name.startswith(domain)):
                raise InputError(f"{path}: the name contradicts the folder {name}/ it lies in")
            label = {"normal": 0, "anomaly": 1}.get(said.get("label"), -1)
            label = _plain_label(path, machine / name) if rules.labelled is ANY else label
            rows.append(_Row(str(path), machine.name, said.get("section", "00"), domain, "test", label, ""))
    return rows


def _said(path: Path, names: tuple[Name, ...], year: int | str) -> dict[str, str | None]:
    """What a file name says."""
    for name in names:
        if match := re.fullmatch(name.regex, path.stem):
            return match.groupdict()
    words = " or ".join(f"{name.words}.wav" for name in names)
    raise InputError(f"{path}: not a file name of {year}, expected {words}")


def _plain_label(path: Path, folder: Path) -> int:
    """0, 1 or -1 from the names of a file and of the folders between it and `folder`."""
    words = [re.match("(?i)normal|anomal|abnormal", part) for part in path.relative_to(folder).parts]
    labels = {int(word[0].lower() != "normal") for word in words if word}
    if len(labels) > 1:
        raise InputError(f"{path}: folder and name contradict each other, expected normal or anomaly")
    return labels.pop() if labels else -1


def _without_wrong_names(rows: list[_Row], year: int | str) -> list[_Row]:
    """Labels and domains that the official list of 2022 has put into file names are forgotten, aloud."""
    wrong = [r.split == "test" and r.is_anomaly >= 0 and truth.is_named_wrong(r.machine, r.section, year) for r in rows]
    if any(wrong):
        logging.warning(
            "%s and %d more: labels and domains in these names are not used: %s",
            rows[wrong.index(True)].path,
            sum(wrong) - 1,
            truth.NAMED_WRONG,
        )
    return [r._replace(is_anomaly=-1, domain="") if w else r for r, w in zip(rows, wrong, strict=True)]


def _with_truth(rows: list[_Row], path: Path, year: int | str) -> list[_Row]:
    """Labels and domains of test clips that do not say theirs, joined by (machine, name).

    Machines and sections without such clips are passed over: people cut data sets.
    """
    hidden = {(r.machine, stem(r.path)): r for r in rows if r.split == "test" and r.is_anomaly < 0}
    found = truth.read(path, year, only={(r.machine, r.section, r.domain) for r in hidden.values()})
    for (machine, name), said in found.items():
        if (machine, name) not in hidden:
            raise InputError(f"{said.where}: a row for {name}.wav of {machine}, expected such a test clip")
    for key, row in hidden.items():
        if key not in found:
            raise InputError(f"{row.path}: the ground truth in {path} has no row for it, expected one for each clip")
    said = {row.path: found[key] for key, row in hidden.items()}
    return [r._replace(is_anomaly=t.is_anomaly, domain=t.domain) if (t := said.get(r.path)) else r for r in rows]
