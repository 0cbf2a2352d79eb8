"""What a network learns to tell apart: groups of clips, class labels, attributes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdjax.core import Clips, InputError, UsageError
from asdjax.data.names import csv_rows, stem


class Labels(NamedTuple):
    """The classes that a network learns to tell apart; see `class_labels`.

    Attributes:
        names: C class names.
        onehot: (N, C) float32; all zero for clips of no class.
        rows: (N,) bool, the training clips that the network learns from.
        own_classes: (N, C) bool, the classes that machine and section allow: several where these are attributes, none
            for clips of other groups, and of places of which there is no class.
        note: '' or a sentence for the user: what was changed, and why.
    """

    names: tuple[str, ...]
    onehot: np.ndarray
    rows: np.ndarray
    own_classes: np.ndarray
    note: str


def groups(clips: Clips, group_by: str) -> list[tuple[str, np.ndarray]]:
    """The sets of clips that get a network each.

    Args:
        clips: N clips.
        group_by: 'all', 'machine' or 'machine_section'.

    Returns:
        (name, own (N,) bool) of each group, over all splits; the name serves as that of a folder.

    Raises:
        UsageError: unknown `group_by`.
    """
    if group_by not in ("all", "machine", "machine_section"):
        raise UsageError(f"data.group_by: found {group_by!r}, expected 'all', 'machine' or 'machine_section'")
    if group_by == "all":
        return [("all", np.ones(len(clips), bool))]
    keys = _keys(clips, group_by)
    out, taken = [], set()
    for key in sorted(set(keys)):
        name = re.sub(r"[^\w-]", "_", "_".join(key))
        while name.casefold() in taken:  # 'a b' and 'a_b', and on some file systems 'Fan' and 'fan', are one folder
            name += "-2"
        taken.add(name.casefold())
        out.append((name, np.array([k == key for k in keys])))
    return out


LEVELS = {
    "section": ("section",),
    "machine": ("machine",),
    "machine_section": ("machine", "section"),
    "machine_section_attribute": ("machine", "section", "attributes"),
}


def _keys(clips: Clips, level: str) -> list[tuple[str, ...]]:
    """What tells the N clips apart at a level."""
    return list(zip(*(getattr(clips, column).tolist() for column in LEVELS[level]), strict=True))


def class_labels(clips: Clips, own: np.ndarray, label: str) -> Labels:
    """The classes of a group's training clips, which a network learns to tell apart.

    A group with one class takes the next finer label, then the clips of all machines: nothing ever trains on one class.

    Args:
        clips: N clips.
        own: (N,) bool, the group.
        label: 'section', 'machine', 'machine_section' or 'machine_section_attribute'. The attribute is the whole tail
            of the file name. Only training clips make classes. 'none': no classes, for systems without a head.

    Raises:
        UsageError: unknown `label`. InputError: no training clips, or one class in the whole data set.
    """
    if label not in ("none", *LEVELS):
        raise UsageError(f"data.label: found {label!r}, expected one of none, {', '.join(LEVELS)}")
    train, finest = clips.is_train, "machine_section_attribute"
    if not (own & train).any():
        raise InputError(f"no training clips among {len(clips)} for this group, expected some to learn from")
    if label == "none":
        return Labels((), np.zeros((len(clips), 0), np.float32), own & train, np.zeros((len(clips), 0), bool), "")
    finer = [label, *(k for k in LEVELS if len(LEVELS[k]) > max(1, len(LEVELS[label])))]
    for level, scope in [*((k, own) for k in finer), (finest, np.ones(len(clips), bool))]:
        keys = _keys(clips, level)
        classes = sorted({k for k, learnt in zip(keys, scope & train, strict=True) if learnt})
        if len(classes) > 1:
            break
    else:
        raise InputError(
            f"one class ({'/'.join(filter(None, classes[0]))}) in all training clips, expected at least two to tell "
            "apart: add training clips of other machines or sections, or attributes in file names of the DCASE form; "
            "or take a system that needs no classes, configs/statistics.py or configs/baseline.py:ae"
        )
    number = {k: i for i, k in enumerate(classes)}
    seen = scope & (train if level == finest else train | clips.is_test)
    which = np.array([number.get(k, -1) if s else -1 for k, s in zip(keys, seen, strict=True)])
    places = [k[:2] for k in keys]
    of_place = {place: np.array([k[:2] == place for k in classes]) for place in set(places)}
    own_classes = np.stack([of_place[place] for place in places]) & scope[:, None]
    note = ""
    if level != label or scope is not own:
        pooled = "" if scope is own else " over the training clips of all machines"
        note = f"data.label={label!r} leaves one class, therefore {len(classes)} classes of {level}{pooled} are learnt"
    onehot = (which[:, None] == np.arange(len(classes))).astype(np.float32)
    return Labels(tuple("/".join(filter(None, k)) for k in classes), onehot, scope & train, own_classes, note)


def split_attributes(clips: Clips, machine: str) -> dict[str, np.ndarray]:
    """The attributes of a machine's training clips, column by column.

    From attributes_SS.csv beside train/, joined by name; else the key_value pairs of the file names' tails; else, where
    these do not split alike, the tail as a column 'attribute'. No columns where the attributes are hidden.

    Args:
        clips: N clips.
        machine: whose clips.

    Returns:
        column -> (N,) str; '' for clips without a value and for all but the machine's training clips.

    Raises:
        InputError: a csv that cannot be read or names no files.
    """
    mine = [i for i in np.flatnonzero(clips.is_train & (clips.machine == machine))]
    tables = {Path(clips.path[i]).parent.parent / f"attributes_{clips.section[i]}.csv" for i in mine}
    known = {name: pairs for file in sorted(tables) if file.is_file() for name, pairs in _attribute_rows(file)}
    found = {i: known.get(stem(clips.path[i]), {}) for i in mine}
    if not any(found.values()):
        tails = {i: clips.attributes[i] for i in mine if clips.attributes[i] not in ("", "noAttribute")}
        words = {i: tail.split("_") for i, tail in tails.items()}
        alike = len({tuple(w[::2]) for w in words.values()}) == 1
        if alike and all(len(w) % 2 == 0 and len(set(w[::2])) == len(w) // 2 for w in words.values()):
            found = {i: dict(zip(w[::2], w[1::2], strict=True)) for i, w in words.items()}
        else:
            found = {i: {"attribute": tail} for i, tail in tails.items()}
    names = list(dict.fromkeys(name for pairs in found.values() for name in pairs))
    columns = {name: [found.get(i, {}).get(name, "") for i in range(len(clips))] for name in names}
    return {name: np.array(column) for name, column in columns.items()}


def _attribute_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, {parameter: value}) of each row of an attributes_SS.csv, whose header is `file_name,d1p,d1v,...`."""
    header = None
    for where, fields in csv_rows(path):
        if header is None:
            header = fields
            if "file_name" not in header:
                raise InputError(f"{where}: found {','.join(fields)!r}, expected a header with file_name")
            continue
        row = dict(zip(header, fields, strict=False))  # rows may be shorter than the header
        pairs = {row[k]: row.get(f"{k[:-1]}v", "") for k in header if re.fullmatch("d[0-9]+p", k) and row.get(k)}
        yield stem(row.get("file_name", "")), pairs
