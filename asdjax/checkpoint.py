"""Checkpoints of a TrainState on the host (orbax): saved whole or not at all, and never trusted unread.

A content hash is stored beside the arrays, because a flipped byte restores without an error otherwise. Process 0 alone
saves and restores: a checkpoint knows nothing of processes and devices, and needs no disk that they share.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asdjax.core import InputError, TrainState


def content_hash(tree: Any) -> str:
    """A hash over names, shapes, types and bytes of a tree of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def network_hash(params: Any, stats: Any) -> str:
    """`content_hash` of what makes a network, without step and optimizer."""
    return content_hash({"params": params, "stats": stats})


def manager(folder: Path, *, keep: int = 2):
    """Opens (and creates) a folder of checkpoints that keeps the latest `keep`. Close it after use.

    Only the latest are kept: there is no label-free measure by which a checkpoint could be the best.
    """
    import orbax.checkpoint as ocp

    # orbax logs each save, which would tear the progress line, and of a damaged file asyncio logs page after page
    for name, level in (("absl", logging.WARNING), ("asyncio", logging.CRITICAL)):
        logging.getLogger(name).setLevel(max(level, logging.getLogger(name).level))
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="first")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
    )
    Path(folder).mkdir(parents=True, exist_ok=True)  # orbax creates no folder for one process of several
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def save(checkpoints, state: TrainState) -> None:
    """Writes `state`, of numpy arrays, under its step, unless that step is there already."""
    import orbax.checkpoint as ocp

    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    meta = {"hash": content_hash(state), "network": network_hash(state.params, state.stats)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    checkpoints.save(step, args=args, force=True)
    checkpoints.wait_until_finished()


def restore(checkpoints, like: TrainState, *, newest: int | None = None) -> TrainState | None:
    """The newest sound checkpoint, or None where there is none. Newer ones that are damaged are deleted, to be redone.

    Args:
        checkpoints: an open `manager`.
        like: a state of the same shapes (its values do not matter).
        newest: those after this step do not count.

    Returns:
        a state of numpy arrays.

    Raises:
        InputError: there are checkpoints, but none can be read into this network; the message says why for each.
    """
    import orbax.checkpoint as ocp

    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore())
    failures: dict[int, str] = {}
    for step in sorted(checkpoints.all_steps(), reverse=True):
        if newest is not None and step > newest:
            continue
        try:
            found = checkpoints.restore(step, args=args)
            if content_hash(found["state"]) != found["meta"]["hash"]:
                raise ValueError("its content is not what was saved (hash differs)")
        except Exception as error:  # orbax and tensorstore raise a dozen types, bare Exception among them
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            failures[step] = reason
            logging.warning("checkpoint %s/%d cannot be used: %s", checkpoints.directory, step, reason)
            continue
        for damaged in failures:  # else a damaged last step would count as saved
            checkpoints.delete(damaged)
        return found["state"]
    if failures:
        said = "; ".join(f"step {step}: {reason}" for step, reason in failures.items())
        raise InputError(f"{checkpoints.directory}: no usable checkpoint; {said}. Delete the folder to start over")
    return None


def network(folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Step, params and stats of the newest sound checkpoint, whatever network it is of; nothing is deleted.

    Args:
        folder: of checkpoints, another run's.

    Raises:
        InputError: there is none; the message says why for each.
    """
    import orbax.checkpoint as ocp

    failures = {}
    with contextlib.closing(manager(folder)) as checkpoints:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        for step in sorted(checkpoints.all_steps(), reverse=True):
            try:
                found = checkpoints.restore(step, args=args)
                params, stats = found["state"]["params"], found["state"]["stats"]
                if network_hash(params, stats) != found["meta"].get("network"):
                    raise ValueError("its content is not what was saved (hash differs), or an older version saved it")
                return step, params, stats
            except Exception as error:  # see restore
                failures[step] = (str(error).splitlines() or [type(error).__name__])[0][:200]
    said = "; ".join(f"step {step}: {reason}" for step, reason in failures.items())
    raise InputError(f"{folder}: no usable checkpoint{f'; {said}' if said else ''}")


def restore_all(managers: list, likes: list[TrainState]) -> list[TrainState] | None:
    """Several networks' newest sound checkpoints of one common step, or None: a kill may fall between two saves."""
    newest = None
    while True:
        found = [restore(m, like, newest=newest) for m, like in zip(managers, likes, strict=True)]
        if any(state is None for state in found):
            if any(state is not None for state in found):
                logging.warning(
                    "%s: no step of which every network has a checkpoint: all start over", managers[0].directory
                )
            return None
        steps = {int(state.step) for state in found}
        if len(steps) == 1:
            return found
        newest = min(steps)
