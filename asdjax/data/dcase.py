"""What is in a data set: the layouts and file names of DCASE Task 2, 2020 to 2026, and of plain folders.

ROOT/[dev_data/ | eval_data/][raw/]MACHINE/{train,test,supplemental}/*.wav, MACHINE/attributes_SS.csv
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.core import Clips, InputError, UsageError


class Name(NamedTuple):
    """A form of file names, in words and as a regular expression of the whole name without its .wav."""

    words: str
    regex: str


ID = Name("{normal|anomaly}_id_NN_NNNNNNNN", r"(?P<label>normal|anomaly)_id_(?P<section>[0-9]{2})_[0-9]{8}")
ID_HIDDEN = Name("id_NN_NNNNNNNN", r"id_(?P<section>[0-9]{2})_[0-9]{8}")
SECTION = Name(
    "section_NN_{source|target}_{train|test}_{normal|anomaly}_NNNN[_ATTRIBUTES]",
    # RoboticArm of 2024 leaves the split out
    r"section_(?P<section>[0-9]{2})_(?P<domain>source|target)_(?:(?P<split>train|test)_)?"
    r"(?P<label>normal|anomaly)_[0-9]{4}(?:_(?P<attributes>.*))?",
)
SECTION_DOMAIN = Name(
    "section_NN_{source|target}_test_NNNN",
    r"section_(?P<section>[0-9]{2})_(?P<domain>source|target)_(?P<split>test)_[0-9]{4}",
)
SECTION_HIDDEN = Name("section_NN_NNNN", r"section_(?P<section>[0-9]{2})_[0-9]{4}")
# Descriptions of these names contradict each other: only the beginning is sure.
SUPPLEMENTAL = Name("section_NN_ANYTHING", r"section_(?P<section>[0-9]{2})_.*")
ANY = Name("any name", r"(?s:.*)")

SEVEN_2021 = ("ToyCar", "ToyTrain", "fan", "gearbox", "pump", "slider", "valve")
SEVEN = ("ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "slider", "valve")


class Year(NamedTuple):
    """What differs from year to year; the defaults are the rules since 2022.

    Attributes:
        dev: machines of the development set.
        additional: machines of the additional training and evaluation set.
        labelled: names of training and labelled test clips.
        hidden: names of evaluation test clips.
        test_folders: where test clips lie in a machine's folder.
        has_domains: whether clips are of a source or a target domain.
        gives_test_domain: whether the protocol tells a system the domain of test clips.
        channels: of a recording.
        truth: where the labels of evaluation clips come from: 'data' and 'domain' are the folders ground_truth_data and
            ground_truth_domain of the official evaluator, 'list' is an official eval_data_list csv.
    """

    dev: tuple[str, ...]
    additional: tuple[str, ...]
    labelled: Name = SECTION
    hidden: Name = SECTION_HIDDEN
    test_folders: tuple[str, ...] = ("test",)
    has_domains: bool = True
    gives_test_domain: bool = False
    channels: int = 1
    truth: tuple[str, ...] = ("data", "domain", "list")


_SIX = ("ToyCar", "ToyConveyor", "fan", "pump", "slider", "valve")
YEARS = {
    2020: Year(_SIX, _SIX, ID, ID_HIDDEN, has_domains=False, truth=("list",)),
    2021: Year(
        SEVEN_2021,
        SEVEN_2021,
        hidden=SECTION_DOMAIN,
        test_folders=("source_test", "target_test", "test"),  # the official downloader merges the two into one
        gives_test_domain=True,
        truth=("data",),
    ),
    2022: Year(SEVEN, SEVEN, truth=("data", "domain")),  # the list's rows of ToyCar and ToyTrain are wrong
    2023: Year(SEVEN, ("ToyDrone", "ToyNscale", "ToyTank", "Vacuum", "bandsaw", "grinder", "shaker")),
    2024: Year(
        SEVEN,
        (
            "3DPrinter",
            "AirCompressor",
            "BrushlessMotor",
            "HairDryer",
            "HoveringDrone",
            "RoboticArm",
            "Scanner",
            "ToothBrush",
            "ToyCircuit",
        ),
    ),
    2025: Year(
        SEVEN,
        ("AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera", "Polisher", "ScrewFeeder", "ToyPet", "ToyRCCar"),
    ),
    2026: Year(
        ("ToyCar", "ToyCarEmu", "bearingEmu", "fan", "gearboxEmu", "sliderEmu", "valveEmu"),
        ("BlowerDustCollector", "Sander", "SewingMachine", "ToothBrush", "ToyDrone"),
        channels=2,
    ),
    "plain": Year((), (), ANY, ANY, has_domains=False, truth=()),
}


class _Row(NamedTuple):
    """One clip; the fields of core.Clips in their order."""

    path: str
    machine: str
    section: str
    domain: str
    split: str
    is_anomaly: int
    attributes: str


class _Truth(NamedTuple):
    """What a csv says of one evaluation clip; `where` is the file and the line."""

    is_anomaly: int
    domain: str
    where: str


def year_of(year: int | str) -> Year:
    """The rules of a year, given as 2023 or '2023', or of 'plain'.

    Raises:
        UsageError: there are none.
    """
    known = {str(k): v for k, v in YEARS.items()}
    if str(year) not in known:
        raise UsageError(f"data.year: found {year!r}, expected one of {', '.join(known)}")
    return known[str(year)]


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
            ground_truth_data/ and ground_truth_domain/, or an official eval_data_list csv. Without it they are unknown.

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
    if ground_truth is not None:
        rows = _with_truth(rows, Path(ground_truth).expanduser(), rules, year)
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


def stem(name: str) -> str:
    """'fan/train/x_1.5.wav', 'x_1.5.wav' and 'x_1.5' are one clip."""
    return re.sub(r"(?i)\.wav$", "", name.replace("\\", "/").rsplit("/", 1)[-1])


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """('FILE line 1', fields) of a csv that may hold anything; blank lines are passed over."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, 1):
        where = f"{path} line {number}"
        try:
            fields = [field.strip() for row in csv.reader([line.decode()], strict=True) for field in row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{where}: not a line of a csv in UTF-8 ({error})") from error
        if not all(field.isprintable() for field in fields):
            raise InputError(f"{where}: control characters, expected text")
        if any(fields):
            yield where, fields


def _with_truth(rows: list[_Row], path: Path, rules: Year, year: int | str) -> list[_Row]:
    """Labels and domains of test clips that do not say theirs, joined by (machine, name)."""
    hidden = {(r.machine, stem(r.path)): r for r in rows if r.split == "test" and r.is_anomaly < 0}
    lists = [path] if path.is_file() else [path / f"eval_data_list{ending}.csv" for ending in (f"_{year}", "")]
    lists = [p for p in lists if p.is_file()]
    if "data" in rules.truth and (path / "ground_truth_data").is_dir():
        truth, source = _truth_of_folders(path, rules, hidden), path / "ground_truth_data"
    elif "list" in rules.truth and lists:
        truth, source = _truth_of_list(lists[0], rules, year, hidden), lists[0]
    else:
        folders = " and ".join(f"ground_truth_{kind}/" for kind in rules.truth if kind != "list")
        wanted = " or ".join(filter(None, (folders, "an eval_data_list csv" * ("list" in rules.truth))))
        wanted = wanted or "none: in plain data sets the names are the labels"
        why = "its rows of ToyCar and ToyTrain give wrong labels and domains; " if lists and str(year) == "2022" else ""
        raise InputError(
            f"data.ground_truth: {lists[0] if lists else path} does not serve {year}: {why}expected {wanted}"
        )
    for (machine, name), found in truth.items():
        if (machine, name) not in hidden:
            raise InputError(f"{found.where}: a row for {name}.wav of {machine}, expected such a test clip")
    for key, row in hidden.items():
        if key not in truth:
            raise InputError(f"{row.path}: {source} has no row for it, expected one for every test clip")
    said = {row.path: truth[key] for key, row in hidden.items()}
    return [r._replace(is_anomaly=t.is_anomaly, domain=t.domain) if (t := said.get(r.path)) else r for r in rows]


def _truth_of_folders(path: Path, rules: Year, hidden: dict) -> dict[tuple[str, str], _Truth]:
    """The csvs `ground_truth_MACHINE_section_NN[_DOMAIN]_test.csv` of the sections that have hidden clips."""
    truth = {}
    for machine, section, domain in sorted({(r.machine, r.section, r.domain) for r in hidden.values()}):
        file = f"ground_truth_{machine}_section_{section}{f'_{domain}' if domain else ''}_test.csv"
        labels = _flags(path / "ground_truth_data" / file)
        domains = _flags(path / "ground_truth_domain" / file) if "domain" in rules.truth else {}
        if "domain" in rules.truth and (odd := sorted(labels.keys() ^ domains.keys())):
            there, missing = ("ground_truth_data", "ground_truth_domain")[:: 1 if odd[0] in labels else -1]
            raise InputError(f"{path / missing / file}: no row for {odd[0]}.wav, expected one as in {there}/{file}")
        for name, (flag, where) in labels.items():
            of = ("source", "target")[domains[name][0]] if domains else domain
            truth[machine, name] = _Truth(flag, of, where)
    return truth


def _flags(path: Path) -> dict[str, tuple[int, str]]:
    """name -> (0 or 1, where) of a csv whose rows are `name,0` or `name,1`."""
    flags = {}
    for where, fields in csv_rows(path):
        if len(fields) != 2 or fields[1] not in ("0", "1"):
            raise InputError(f"{where}: found {','.join(fields)!r}, expected NAME.wav,0 or NAME.wav,1")
        if flags.setdefault(stem(fields[0]), (int(fields[1]), where))[1] != where:
            raise InputError(f"{where}: {fields[0]} a second time, expected each clip once")
    return flags


def _truth_of_list(path: Path, rules: Year, year: int | str, hidden: dict) -> dict[tuple[str, str], _Truth]:
    """An official list: a row of one field names a machine; `hidden name,labelled name[,label]` follow.

    Rows of machines and sections without hidden clips are passed over: people cut data sets.
    """
    there = {(row.machine, row.section) for row in hidden.values()}
    truth, machine, names = {}, "", (rules.hidden, rules.labelled)
    for where, fields in csv_rows(path):
        if len(fields) == 1:
            machine = fields[0]
            continue
        before, after = (re.fullmatch(n.regex, stem(f)) for n, f in zip(names, fields, strict=False))
        if not (machine and before and after and before["section"] == after["section"]):
            expected = f"a machine, or {','.join(f'{n.words}.wav' for n in names)} of one section"
            raise InputError(f"{where}: found {','.join(fields)!r}, expected {expected}")
        label = int(after["label"] == "anomaly")
        if fields[2:] not in ([], [str(label)]):
            raise InputError(f"{where}: found {','.join(fields)!r}, where label and name contradict each other")
        if (machine, before["section"]) in there:
            found = _Truth(label, after.groupdict().get("domain", ""), where)
            if truth.setdefault((machine, before[0]), found) != found:
                raise InputError(f"{where}: {fields[0]} of {machine} a second time, expected each clip once")
    return truth
