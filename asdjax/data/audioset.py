"""AudioSet's format: the class index, csvs of segments with their tags, and audio files by any of their usual names.

ROOT/[metadata/]class_labels_indices.csv                 index,mid,display_name
ROOT/[metadata/]balanced_train_segments.csv              YTID, start, end, "/m/aaa,/m/bbb"; lines of # are comments
ROOT/**/Y{YTID}.wav, {YTID}_{start}_{end}.flac, ...      see `candidates`
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import progress
from rich.console import Console

from asdjax.core import InputError, UsageError
from asdjax.data.audio import header
from asdjax.data.names import csv_rows
from asdjax.data.ondemand import MultiHot, multi_hot

CLASSES = "class_labels_indices"
ID = re.compile(r"[A-Za-z0-9_-]{11}")
EXPECTED = 'expected YTID, start, end, "/m/aaa,/m/bbb"'
BLOCK = 4096  # headers read ahead: two million requests at once would fill the memory


class Tagged(NamedTuple):
    """An index of tagged recordings, the training clips first.

    Attributes:
        path: (N,) str as objects, the audio file.
        split: (N,) str, 'train' or 'test'.
        tags: (N, C), which classes are heard.
        classes: C display names.
        note: '' or a sentence for the user: what was skipped.
    """

    path: np.ndarray
    split: np.ndarray
    tags: MultiHot
    classes: tuple[str, ...]
    note: str


class Segment(NamedTuple):
    """A line of a segments csv: times in seconds, tags as numbers of classes."""

    id: str
    start: float
    end: float
    tags: tuple[int, ...]


def index(
    root: str | Path, *, train_on: tuple[str, ...], test_on: str, sample_rate: int = 16000, resample: bool = False
) -> Tagged:
    """The clips of segments csvs that have a usable audio file; of audio, headers alone are read.

    A file serves one segment. Its name with times decides for which; by the bare id the first segment that asks gets
    it, those of `test_on` first, then those of `train_on` in order: no clip is both learnt and tested.

    Args:
        root: holds the csvs (there or in metadata/) and, anywhere below, the audio as wav or flac.
        train_on: names of segments csvs without .csv, for example ('balanced_train_segments',).
        test_on: name of the one to test on; '': none.
        sample_rate: Hz.
        resample: whether files of another sample rate are used (converted when decoded) or skipped.

    Raises:
        UsageError: no folder, or csv names that make no sense. InputError: a csv that is missing or malformed, or
            nothing left to learn from.
    """
    if isinstance(train_on, str) or not train_on or len(set(train_on)) < len(train_on) or test_on in train_on:
        raise UsageError(
            f"data.train_on: found {train_on!r} beside data.test_on {test_on!r}, expected a tuple of names of "
            "segments csvs, each once"
        )
    if not (root := Path(root).expanduser()).is_dir():
        raise UsageError(f"data.root: {root} is no folder, expected one with {CLASSES}.csv and audio below")
    mids, names = class_index(find(root, CLASSES))
    segments = {name: list(read(find(root, name), mids)) for name in (test_on, *train_on) if name}
    files, taken, notes, found = audio(root), {}, [], {}
    for name, own in segments.items():
        found[name], note = matched(own, files, taken, name)
        notes += note
    clips = [(path, tags, "train") for name in train_on for path, tags in found[name]]
    clips += [(path, tags, "test") for path, tags in found.get(test_on, ())]
    wrong = unusable([path for path, _, _ in clips], sample_rate, resample, root)
    clips = [clip for clip in clips if clip[0] not in wrong]
    if wrong:
        notes.append(f"{len(wrong)} file{'s' * (len(wrong) > 1)} cannot be used (first: {next(iter(wrong.values()))})")
    note = ", ".join(notes)
    if not any(split == "train" for _, _, split in clips):
        raise InputError(f"{root}: nothing to learn from: {note}; expected audio such as Y{{YTID}}.wav below it")
    paths, tags, splits = zip(*clips, strict=True)
    return Tagged(np.array(paths, object), np.array(splits), multi_hot(tags, len(names)), names, note)


def find(root: Path, name: str) -> Path:
    """The csv of that name in the folder or its metadata/."""
    folders = (root, root / "metadata")
    if Path(name).name == name:  # a name, no path
        for folder in folders:
            if (path := folder / f"{name}.csv").is_file():
                return path
    there = sorted({path.stem for folder in folders for path in folder.glob("*.csv")})
    raise InputError(f"{root}: no {name}.csv, there or in metadata/; there is: {', '.join(there) or 'no csv'}")


def class_index(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class index: numbers by mid, and display names by number."""
    lines = csv_rows(path)
    where, head = next(lines, (path, []))
    if head != ["index", "mid", "display_name"]:
        raise InputError(f"{where}: found {','.join(head)!r}, expected index,mid,display_name")
    mids, names = {}, {}
    for where, fields in lines:
        if len(fields) != 3 or not re.fullmatch("[0-9]{1,9}", fields[0]) or not all(fields):
            raise InputError(f"{where}: found {','.join(fields)!r}, expected index,mid,display_name")
        number, mid, name = int(fields[0]), *fields[1:]
        if number in names or mid in mids:
            raise InputError(f"{where}: class {number} {mid} is there twice, expected it once")
        mids[mid], names[number] = number, name
    if sorted(names) != list(range(len(names))) or not names:
        raise InputError(f"{path}: {len(names)} classes, expected their indices to be 0 to {len(names) - 1}, each once")
    return mids, tuple(names[i] for i in range(len(names)))


def read(path: Path, mids: dict[str, int]) -> Iterator[Segment]:
    """The segments of a csv; a parser of its own, since the quotes come after spaces and there are millions."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:  # what is replaced is no id and no label
            for number, line in enumerate(file, 1):
                if line.startswith("#") or not line.strip():
                    continue
                try:
                    yield segment(line, mids)
                except ValueError as error:
                    raise InputError(f"{path} line {number}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def segment(line: str, mids: dict[str, int]) -> Segment:
    """One line; ValueError says what is wrong with it."""
    fields = [field.strip() for field in line.split(",", 3)]
    if len(fields) != 4:
        raise ValueError(f"found {line.strip()[:80]!r}, {EXPECTED}")
    if not ID.fullmatch(fields[0]):
        raise ValueError(f"found the id {fields[0][:80]!r}, expected 11 characters of A-Z a-z 0-9 _ -")
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError:
        start = end = math.nan
    if not 0 <= start < end < 1e6:
        raise ValueError(
            f"found the times {', '.join(fields[1:3])[:80]!r}, expected a start and a later end in seconds"
        )
    labels = [label.strip() for label in fields[3].strip('"').split(",")]
    if unknown := [label for label in labels if label not in mids]:
        raise ValueError(f"found the label {unknown[0][:80]!r}, expected those of {CLASSES}.csv")
    return Segment(fields[0], start, end, tuple(sorted({mids[label] for label in labels})))


def audio(root: Path) -> dict[str, str]:
    """Path of every wav and flac below the folder, by the stem of its name; of several the first in order."""
    out, seen = {}, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            stem, ending = os.path.splitext(name)
            if ending.lower() in (".wav", ".flac"):
                out.setdefault(stem, os.path.join(folder, name))
    return out


def candidates(segment: Segment) -> Iterator[str]:
    """What a segment's file may be called, without its ending: with times first, the bare id last.

    Y{id} as PANNs has it or {id}; _{start}_{end} or _{start} in seconds ('30', '30.0', '30.000') or milliseconds.
    """
    times = [
        (f"{start}_{end}", start)
        for start, end in (
            (f"{segment.start:.3f}", f"{segment.end:.3f}"),
            (f"{segment.start:.10g}", f"{segment.end:.10g}"),
            (f"{segment.start}", f"{segment.end}"),
            (f"{segment.start * 1000:.0f}", f"{segment.end * 1000:.0f}"),
        )
    ]
    for base in (f"Y{segment.id}", segment.id):
        for both, start in times:
            yield f"{base}_{both}"
            yield f"{base}_{start}"
    yield f"Y{segment.id}"
    yield segment.id


def matched(
    segments: list[Segment], files: dict[str, str], taken: dict[str, str], csv: str
) -> tuple[list[tuple[str, tuple[int, ...]]], list[str]]:
    """Files and tags of a csv's segments, and what to say of those without; `taken` tells which csv a file serves."""
    found, missing, shared = [], 0, Counter()
    for segment in segments:
        path = next((files[name] for name in candidates(segment) if name in files), None)
        if path is None:
            missing += 1
        elif path in taken:
            shared[taken[path]] += 1
        else:
            taken[path] = csv
            found.append((path, segment.tags))
    of = f"of {len(segments)} segments of {csv} have"
    said = [f"{missing} {of} no file"] if missing else []
    return found, said + [f"{n} {of} a file that serves a segment of {other}" for other, n in shared.items()]


def unusable(paths: list[str], sample_rate: int, resample: bool, root: Path) -> dict[str, str]:
    """Why files cannot be used, by path: unreadable, empty, or of another sample rate; a progress bar on a terminal."""
    terminal = sys.stderr.isatty()
    (logging.debug if terminal else logging.info)("reading the headers of %d files of %s", len(paths), root)

    def check(path: str) -> str:
        try:
            header(path, rate=sample_rate, channel=0, resample=resample)
        except InputError as error:
            return str(error)
        return ""

    bar = {"console": Console(stderr=True), "transient": True, "disable": not terminal}
    with ThreadPoolExecutor() as pool:
        reasons = (r for i in range(0, len(paths), BLOCK) for r in pool.map(check, paths[i : i + BLOCK]))
        reasons = list(progress.track(reasons, "reading headers", len(paths), **bar))
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
