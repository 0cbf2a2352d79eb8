"""A network that starts from another's weights: those of an earlier run, or converted ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from asdjax import checkpoint, parallel
from asdjax.core import TrainState, UsageError


def source(folder: str | Path) -> Path:
    """The folder of checkpoints of a run's one network, of a group or member of a run, or of a converted network.

    Raises:
        UsageError: there is none, or several; the message lists them.
    """
    folder = Path(folder).expanduser()
    patterns = ("checkpoints", "member_*/checkpoints", "groups/**/checkpoints")
    found = [p for pattern in patterns for p in sorted(folder.glob(pattern)) if p.is_dir()]
    if len(found) != 1:
        there = "is not there" if not folder.is_dir() else "holds no checkpoints"
        if found:
            there = f"holds several networks, {', '.join(str(p.parent) for p in found)}: give the folder of one"
        raise UsageError(f"config.init_from: {folder} {there}; expected the folder of a run or of a converted network")
    return found[0]


def check(folder: str, workdir: Path) -> None:
    """Raises UsageError where a run in `workdir` that is not begun has nothing to start from; '': from scratch."""
    if folder and parallel.is_first() and not any(workdir.glob("groups/**/checkpoints/[0-9]*")):
        source(folder)


def started_from(folder: str | Path) -> Callable[[TrainState], TrainState]:
    """The function that gives a new network the weights of another, where they have names and shapes in common.

    Weights and batch statistics of the backbone are taken; the head is of other classes, and stays as it is. What was
    taken and what begins anew is said once, as a warning where it is less than half.

    Args:
        folder: see `source`.

    Returns:
        state -> state, both of numpy arrays; it raises UsageError where nothing fits.
    """
    found = parallel.from_first(_read(folder) if parallel.is_first() else None)
    step = int(found.pop("step"))
    said: set[str] = set()

    def start(state: TrainState) -> TrainState:
        own = _backbone(state.params, state.stats)
        taken = {k for k, v in own.items() if k in found and found[k].shape == v.shape}
        head = traverse_util.flatten_dict({"params": {"head": state.params["head"]}}, sep="/")
        anew = [f"{k} {v.shape}" for k, v in (own | head).items() if k not in taken]
        if not taken:
            raise UsageError(
                f"config.init_from: {folder} has no weights for this backbone; it has "
                f"{_some([f'{k} {v.shape}' for k, v in found.items()])}, expected {_some(anew)}"
            )
        left = [f"{k} {v.shape}" for k, v in found.items() if k not in taken]
        few = len(taken) < len(own) / 2
        message = (
            f"{'warning: ' * few}started from {folder}, step {step}: {len(taken)} of {len(own)} arrays of the "
            f"backbone; anew: {', '.join(anew)}; not taken: its head{''.join(f', {name}' for name in left)}"
        )
        if message not in said:
            logging.log(logging.WARNING if few else logging.INFO, "%s", message)
            said.add(message)
        new = {k: found[k].astype(v.dtype) if k in taken else v for k, v in own.items()}
        return state.replace(**_replaced(state.params, state.stats, new))

    return start


def _read(folder: str | Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint's backbone by name, and its step."""
    step, params, stats = checkpoint.network(source(folder))
    return {"step": np.array(step), **_backbone(params, stats)}


def _backbone(params: dict[str, Any], stats: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of the backbone: 'params/...' and 'stats/...'."""
    if "backbone" not in params:
        raise UsageError(
            f"config.init_from: only classifiers start from each other; found a system of {_some([*params])}"
        )
    tree = {"params": params["backbone"], "stats": stats.get("backbone", {})}
    return traverse_util.flatten_dict(tree, sep="/")


def _replaced(params: dict[str, Any], stats: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, dict]:
    tree = {"params": {}, "stats": {}} | traverse_util.unflatten_dict(arrays, sep="/")
    return {
        "params": {**params, "backbone": tree["params"]},
        "stats": {**stats, "backbone": tree["stats"]},
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
