"""metrics.jsonl: what each step of a training was like, and what it says of the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from asdjax.core import InputError

ENOUGH = 50  # steps before which no collapse is told


class Diverged(InputError):
    """The loss is not finite."""


def cut(path: Path, start: int) -> Path:
    """Cuts from a metrics.jsonl the steps after `start` (they will be done again) and a line torn by a kill."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= start:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        path.write_text("".join(line + "\n" for line in kept))
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


def hardly_trained(workdir: Path) -> str:
    """A sentence where a network of a run was trained for so few steps that its scores say nothing of the method."""
    logs = [log.read_text().splitlines() for log in workdir.glob("groups/**/metrics.jsonl")]
    least = min(map(len, logs), default=ENOUGH)
    if least >= ENOUGH:
        return ""
    return f"trained for {least} steps only: these are the scores of a network that has hardly learnt anything"


def collapse_warning(folder: Path, n_classes: int) -> str:
    """A sentence where the last steps show a collapsed network, as margin heads can end; '' where they do not.

    Nothing is said of fewer than ENOUGH steps, after which no network is more than a trial. Where BatchNorm makes the
    embeddings, as in MobileFaceNet, their cosine is hardly ever near 1: there the accuracy tells.
    """
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    if len(lines) < ENOUGH:
        return ""
    lines = list(map(json.loads, lines[-20:]))
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
