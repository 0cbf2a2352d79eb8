"""metrics.jsonl: what each step of a training was like, and what it says of the network."""

from __future__ import annotations

import collections
import itertools
import json
import os
from pathlib import Path

import numpy as np

from asdjax.core import InputError

ENOUGH = 50  # steps before which no collapse is told


class Diverged(InputError):
    """The loss is not finite."""


def cut(path: Path, start: int) -> Path:
    """Cuts from a metrics.jsonl the steps after `start` (they will be done again) and a line torn by a kill."""
    if path.exists():
        temporary = path.with_name(f"{path.name}.tmp")
        with open(path) as old, open(temporary, "w") as new:  # line by line: there may be millions
            for line in old:
                try:
                    if line.endswith("\n") and json.loads(line)["step"] <= start:
                        new.write(line)
                except (ValueError, KeyError, TypeError):
                    continue
        os.replace(temporary, path)
    return path


def write(log, metrics: dict[str, np.ndarray], step: int, seconds: float) -> None:
    """One JSON line per step of the chunk that ended at `step`; the chunk's time is shared out evenly."""
    n = len(metrics["loss"])
    for i in range(n):
        values = {k: float(v[i]) for k, v in metrics.items()}
        log.write(json.dumps({"step": step - n + i + 1, **values, "seconds": seconds / n}) + "\n")


def check_finite(metrics: dict[str, np.ndarray], first: int, folders: list[Path], saved: int) -> None:
    """Raises Diverged at the first step whose loss or gradient is not finite in the metrics (E, S) of E folders."""
    bad = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient_norm"]))
    if bad.any():
        i = int(bad.any(0).argmax())
        e = int(bad[:, i].argmax())
        kept = f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was saved yet"
        raise Diverged(
            f"{folders[e]}: training diverged at step {first + i + 1}: loss {metrics['loss'][e, i]}, gradient "
            f"norm {metrics['gradient_norm'][e, i]}; {kept}. Try a smaller config.optim.lr"
        )


def hardly_trained(workdir: Path, init_from: str) -> str:
    """A sentence where a run's network was trained for so few steps that its scores are those of an untrained one.

    Args:
        workdir: of the run.
        init_from: whose weights its networks began with; '': their own.
    """
    least = ENOUGH
    for log in workdir.glob("groups/**/metrics.jsonl"):
        with open(log) as lines:
            least = min(least, sum(1 for _ in itertools.islice(lines, ENOUGH)))
    nearly = f"the network that it began with, {init_from}" if init_from else "an untrained network"
    return f"trained for {least} steps only: these are nearly the scores of {nearly}" if least < ENOUGH else ""


def collapse_warning(folder: Path, n_classes: int) -> str:
    """A sentence where the last steps show a collapsed network, as margin heads can end; '' where they do not.

    Nothing is said of fewer than ENOUGH steps, after which no network is more than a trial. Where BatchNorm makes the
    embeddings, as in MobileFaceNet, their cosine is hardly ever near 1: there the accuracy tells.
    """
    log = folder / "metrics.jsonl"
    if not log.exists():
        return ""
    with open(log) as file:
        lines = list(map(json.loads, collections.deque(file, ENOUGH)))
    if len(lines) < ENOUGH:
        return ""
    lines = lines[-20:]
    if not {"embedding_cosine", "accuracy"} <= lines[0].keys():
        return ""
    cosine = float(np.mean([line["embedding_cosine"] for line in lines]))
    hit = float(np.mean([line["accuracy"] for line in lines]))
    if cosine > 0.99 or hit <= 1 / n_classes + 0.1 * (1 - 1 / n_classes):
        found = f"class accuracy {hit:.2f} ({n_classes} classes; of batches as they are trained on, mixed or not)"
        found = f"mean cosine between embeddings {cosine:.3f}" if cosine > 0.99 else found
        return (
            f"the network may have collapsed: over the last {len(lines)} steps {found}. Train longer; if the head has "
            "a margin, lower it"
        )
    return ""
