"""The one training loop: chunks of steps compiled as one program, over a mesh, resumable at any chunk."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from asdjax import augment, checkpoint, frontends, heads, models, optim, parallel, systems
from asdjax.core import InputError, Parts, Preempted, System, TrainState, build
from asdjax.data import feed
from asdjax.data.sampling import Sampler


class Diverged(InputError):
    """The loss is not finite."""


def make(config: Mapping[str, Any], n_classes: int) -> System:
    """Builds a system from a config; the one place where Parts are built.

    Args:
        config: a whole run's config (system, frontend, cut, wave_ops, feature_ops, backbone, head, optim, train).
        n_classes: C, the number of classes that the head tells apart.

    Raises:
        UsageError: a name or an argument in the config that does not exist.
    """
    parts = Parts(
        wave_ops=tuple(build(augment, op) for op in config["wave_ops"]),
        frontend=build(frontends, config["frontend"]),
        cut=build(frontends, config["cut"]),
        feature_ops=tuple(build(augment, op) for op in config["feature_ops"]),
        backbone=build(models, config["backbone"]),
        head=build(heads, config["head"], n_classes=n_classes),
        tx=build(optim, config["optim"], steps=config["train"]["steps"]),
    )
    return build(systems, config["system"], parts=parts)


def sample(store: feed.Store, rows: np.ndarray, size: int = 512) -> dict:
    """Up to `size` training clips, evenly spread over `rows` (N,) bool, as a float batch for `System.init`."""
    chosen = np.flatnonzero(rows)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(size, len(chosen))).astype(int)]
    wave, gain, label = store.take(chosen)
    return {"wave": wave.astype(np.float32) * gain[:, None], "label": label}


def make_chunk(system: System, mesh: Mesh):
    """Compiles S updates into one program: (state, key, store, rows (S, B)) -> (state, metrics of (S,))."""
    whole, split = parallel.replicated(mesh), parallel.sharded(mesh)

    def chunk(state: TrainState, key: jax.Array, store: feed.Store, rows: jax.Array):
        def step(state, rows):
            wave, gain, label = store.take(rows)
            batch = {"wave": wave.astype(jnp.float32) * gain[:, None], "label": label}
            batch = jax.lax.with_sharding_constraint(batch, split)
            return system.update(state, jax.random.fold_in(key, state.step), batch)

        return jax.lax.scan(step, state, rows)

    return jax.jit(chunk, donate_argnums=0, out_shardings=whole)


def train(
    system: System,
    store: feed.Store,
    sampler: Sampler,
    init_batch: dict,
    folder: Path,
    *,
    steps: int,
    chunk: int,
    checkpoint_every: int,
    seed: int,
    mesh: Mesh,
    progress=None,
) -> TrainState:
    """Trains from the newest checkpoint in `folder`, or from the start, to `steps` (rounded up to whole chunks).

    Args:
        system: what to train; where `update` is None, init's state is returned.
        store: the clips.
        sampler: (seed, step) -> rows (B,) of the store.
        init_batch: a batch for `System.init`.
        folder: gets metrics.jsonl and checkpoints/.
        steps: optimizer steps.
        chunk: S, steps per compiled call; 0: 1 on CPU, 8 elsewhere, where the host would be the brake.
        checkpoint_every: steps between checkpoints (at chunk borders; the last step always has one).
        seed: of the network, the batches and the augmentations.
        mesh: the devices.
        progress: called as progress(step, steps, metrics, clips_per_s) after each chunk.

    Raises:
        Diverged: loss or gradient not finite; the newest checkpoint is from before.
        Preempted: SIGTERM came; a checkpoint of the last whole chunk is there.
    """
    whole = parallel.replicated(mesh)
    key = jax.device_put(jax.random.key(seed), whole)
    state = jax.jit(system.init, out_shardings=whole)(key, init_batch)
    if system.update is None:
        return state
    chunk = chunk or (1 if jax.default_backend() == "cpu" else 8)
    run_chunk = make_chunk(system, mesh)
    terminated = []
    previous = signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    checkpoints = checkpoint.manager(folder / "checkpoints")
    try:
        state = checkpoint.restore(checkpoints, state) or state
        start = int(state.step)
        stop = start + -(-max(steps - start, 0) // chunk) * chunk
        if start:
            logging.info("%s: resumed at step %d of %d", folder, start, stop)
        saved = start
        with open(open_log(folder / "metrics.jsonl", start), "a", buffering=1) as log:
            for batch, rows in feed.chunks(store, sampler, seed=seed, start=start, stop=stop, chunk=chunk):
                began = time.perf_counter()
                batch = jax.device_put(batch, whole)
                rows_on_mesh = jax.device_put(rows, parallel.sharded(mesh, 1))
                with jax.transfer_guard("disallow"):
                    state, metrics = run_chunk(state, key, batch, rows_on_mesh)
                metrics = parallel.fetch(metrics)
                step, seconds = int(state.step), time.perf_counter() - began
                write_log(log, metrics, step, seconds)
                check_finite(metrics, step - chunk, checkpoints)
                if run_chunk._cache_size() != 1:
                    raise RuntimeError("the train step was compiled more than once: a shape or a type changed")
                if step == stop or step - saved >= checkpoint_every or terminated:
                    checkpoint.save(checkpoints, state)
                    saved = step
                if progress:
                    progress(step, stop, {k: float(v[-1]) for k, v in metrics.items()}, rows.size / seconds)
                if terminated:
                    break
        if terminated:
            step = int(state.step)
            raise Preempted(f"stopped by SIGTERM at step {step} of {stop}; saved, the same command resumes")
    finally:
        checkpoints.close()
        signal.signal(signal.SIGTERM, previous)
    return state


def open_log(path: Path, start: int) -> Path:
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


def write_log(log, metrics: dict[str, np.ndarray], step: int, seconds: float) -> None:
    """One JSON line per step of the chunk that ended at `step`; the chunk's time is shared out evenly."""
    n = len(metrics["loss"])
    for i in range(n):
        values = {k: float(v[i]) for k, v in metrics.items()}
        log.write(json.dumps({"step": step - n + i + 1, **values, "seconds": seconds / n}) + "\n")


def check_finite(metrics: dict[str, np.ndarray], first: int, checkpoints) -> None:
    """Raises Diverged at the first step whose loss or gradient is not finite."""
    bad = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient_norm"]))
    if bad.any():
        i = int(bad.argmax())
        last = checkpoints.latest_step()
        kept = f"the checkpoint of step {last} is kept" if last is not None else "no checkpoint was saved yet"
        raise Diverged(
            f"training diverged at step {first + i + 1}: loss {metrics['loss'][i]}, gradient norm "
            f"{metrics['gradient_norm'][i]}; {kept}. Try a smaller config.optim.lr"
        )


def collapse_warning(folder: Path, n_classes: int) -> str:
    """A sentence where the last steps show a collapsed network, as margin heads can end; '' where they do not."""
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()[-20:]] if log.exists() else []
    if not lines or not {"embedding_cosine", "accuracy"} <= lines[0].keys():
        return ""
    cosine = float(np.mean([line["embedding_cosine"] for line in lines]))
    hit = float(np.mean([line["accuracy"] for line in lines]))
    if cosine > 0.99 or hit <= 1 / n_classes + 0.1 * (1 - 1 / n_classes):
        return (
            f"the network may have collapsed: over the last {len(lines)} steps class accuracy {hit:.2f} "
            f"({n_classes} classes), mean cosine between embeddings {cosine:.3f}. Train longer or lower the margin"
        )
    return ""
