"""The folder of a run: whose it is, and what it was made with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asdjax import scoretable
from asdjax.core import Clips, InputError, UsageError


def check(workdir: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError where the folder holds a run of another config (but for `score`), naming what differs.

    A folder in which nothing was learnt or scored yet is given free.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir: {workdir} is a file, expected a folder or nothing")
    file = workdir / "config.json"
    if file.exists():
        try:
            old = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(
                f"{file}: not a config of this program ({error}); delete the folder or take another"
            ) from error
        # runs of before there was init_from began without it
        before, after = ({"init_from": "", **flatten(c)} for c in (old, json.loads(json.dumps(config))))
        differing = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
        # of these, none changes what was learnt: that the recordings are the same, `claim` sees
        free = ("score.", "data.cache", "data.root", "data.ground_truth", "data.resident", "train.groups")
        lasting = [k for k in differing if not k.startswith(free) and not re.match(r"by_machine\..+\.scorers\b", k)]
        if lasting and not (any(workdir.glob("groups/**/checkpoints/[0-9]*")) or (workdir / "scores.csv").exists()):
            for name in (
                "config.json",
                "data.json",
            ):  # what came of that config was a refusal: the folder is free again
                (workdir / name).unlink(missing_ok=True)
        elif lasting:
            changes = "; ".join(f"{k} was {before.get(k)!r}, is {after.get(k)!r}" for k in lasting)
            raise UsageError(f"{workdir} holds a run of another config: {changes}. Take another --workdir or delete it")


def claim(workdir: Path, config: Mapping[str, Any], clips: Clips, *sound: np.ndarray) -> None:
    """`claim_files` of the clips; their levels change where the sound does."""
    columns = zip(clips.machine, clips.split, scoretable.file_names(clips), strict=True)
    claim_files(workdir, config, ["/".join(column) for column in columns], *sound)


def claim_files(workdir: Path, config: Mapping[str, Any], names: Sequence[str], *arrays: np.ndarray) -> None:
    """Writes config.json, data.json and environment.json; only now, so that a mistyped folder of data claims nothing.

    Args:
        workdir: the run's folder.
        config: of the run.
        names: of the recordings.
        *arrays: what else must be the same whenever the run goes on.

    Raises:
        UsageError: names or arrays are not those that the run in this folder began with.
    """
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=16)
    for array in arrays:
        digest.update(array.tobytes())
    data = {"clips": len(names), "hash": digest.hexdigest()}
    file = workdir / "data.json"
    if file.exists():
        try:
            old = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(f"{file}: not written by this program ({error}); delete the folder") from error
        if old != data:
            raise UsageError(
                f"{workdir} began with other recordings ({old.get('clips')} clips, now {len(names)}); "
                "take another --workdir or delete it"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config)
    write_json(file, data)
    versions = {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax", "numpy", "librosa", "scikit-learn")}
    environment = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "versions": {"asdjax": metadata.version("asdjax"), **versions},
    }
    write_json(workdir / "environment.json", environment)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}, 'c': [2]} -> {'a.b': 1, 'c[0]': 2}"""
    if isinstance(tree, dict):
        items = [(f"{prefix}.{k}" if prefix else k, v) for k, v in tree.items()]
    elif isinstance(tree, list):
        items = [(f"{prefix}[{i}]", v) for i, v in enumerate(tree)]
    else:
        return {prefix: tree}
    return {k: v for key, value in items for k, v in flatten(value, key).items()}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
