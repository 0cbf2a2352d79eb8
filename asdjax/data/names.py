"""What the years of DCASE Task 2, 2020 to 2026, call their machines and clips, and how csvs of names are read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asdjax.core import InputError, UsageError


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
        truth: where the labels of evaluation clips come from: 'data', 'domain' and 'attributes' are folders
            ground_truth_... of the official evaluator, 'list' is an official eval_data_list csv.
    """

    dev: tuple[str, ...]
    additional: tuple[str, ...]
    labelled: Name = SECTION
    hidden: Name = SECTION_HIDDEN
    test_folders: tuple[str, ...] = ("test",)
    has_domains: bool = True
    gives_test_domain: bool = False
    channels: int = 1
    truth: tuple[str, ...] = ("data", "domain", "attributes", "list")


_SIX = ("ToyCar", "ToyConveyor", "fan", "pump", "slider", "valve")
YEARS = {
    2020: Year(_SIX, _SIX, ID, ID_HIDDEN, has_domains=False, truth=("data", "list")),
    2021: Year(
        SEVEN_2021,
        SEVEN_2021,
        hidden=SECTION_DOMAIN,
        test_folders=("source_test", "target_test", "test"),  # the official downloader merges the two into one
        gives_test_domain=True,
        truth=("data",),
    ),
    # The list of 2022, and the evaluator's attributes likewise, mix up the clips of ToyCar and ToyTrain.
    2022: Year(SEVEN, SEVEN, truth=("data", "domain")),
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


def year_of(year: int | str) -> Year:
    """The rules of a year, given as 2023 or '2023', or of 'plain'.

    Raises:
        UsageError: there are none.
    """
    known = {str(k): v for k, v in YEARS.items()}
    if str(year) not in known:
        raise UsageError(f"data.year: found {year!r}, expected one of {', '.join(known)}")
    return known[str(year)]


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
