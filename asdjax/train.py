"""The one training loop: chunks of steps compiled as one program, over a mesh, resumable at any chunk."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from asdjax import (
    augment,
    checkpoint,
    chunks,
    frontends,
    heads,
    models,
    optim,
    parallel,
    steplog,
    systems,
    timing,
    transfer,
)
from asdjax.core import Parts, Preempted, System, TrainState, UsageError, build
from asdjax.data import feed


def make(config: Mapping[str, Any], n_classes: int) -> System:
    """Builds a system from a config; the one place where Parts are built.

    Args:
        config: a whole run's config.
        n_classes: C, the number of classes that the head tells apart.

    Raises:
        UsageError: a name or an argument in the config that does not exist.
    """

    def piece(name: str, module, **extra):
        return build(module, config[name], **extra) if config[name] else None

    parts = Parts(
        wave_ops=tuple(build(augment, op) for op in config["wave_ops"]),
        frontend=build(frontends, config["frontend"]),
        cut=piece("cut", frontends),
        feature_ops=tuple(build(augment, op) for op in config["feature_ops"]),
        backbone=piece("backbone", models),
        head=piece("head", heads, n_classes=n_classes),
        tx=piece("optim", optim, steps=max(1, config["train"]["steps"])),
    )
    if config["data"]["bank"] == "features" and (parts.wave_ops or parts.cut is None or parts.cut.at != "frames"):
        raise UsageError("config.data.bank='features' computes them once: wave_ops must be () and cut.at 'frames'")
    return build(systems, config["system"], parts=parts)


def frontend(config: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """The frontend alone, for a bank of features."""
    return build(frontends, config["frontend"])


def unit_frames(config: Mapping[str, Any], samples: int) -> np.ndarray:
    """(U, w) int32, the frames of each unit that training draws from a clip of so many samples."""
    cut = build(frontends, config["cut"])
    wave = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    starts = cut.training_starts(jax.eval_shape(frontend(config), wave).shape[1])
    return starts[:, None] + np.arange(cut.width, dtype=np.int32)


class Network(NamedTuple):
    """One network to train, and what it learns from.

    Attributes:
        folder: gets metrics.jsonl and checkpoints/.
        system: what to train.
        label: dict of (N, ...) float32 over all clips of the store.
        rows: (N,) bool, the clips that it learns from.
        sampler: (seed, step) -> rows (B,) of the store, clips or units.
        seed: of the network, the batches and the augmentations.
        steps: updates of a whole training.
    """

    folder: Path
    system: System
    label: dict[str, np.ndarray]
    rows: np.ndarray
    sampler: Callable[[int, int], np.ndarray]
    seed: int
    steps: int = 0


def shapes(network: Network, store: feed.Store | feed.Frames) -> TrainState:
    """The network's state as a tree of ShapeDtypeStruct, for batches from this store."""
    label = tuple((k, v.shape[1:], v.dtype) for k, v in network.label.items())
    return _shapes(network.system, label, tuple(feed.example(store).items()))


@functools.lru_cache(maxsize=128)  # members share it; tracing takes half a second, and several callers ask
def _shapes(system: System, label: tuple, example: tuple) -> TrainState:
    leaves = {k: jax.ShapeDtypeStruct((2, *shape), dtype) for k, shape, dtype in label}
    return jax.eval_shape(system.init, jax.random.key(0), {**dict(example), "label": leaves})


def largest(networks: list[Network], store: feed.Store | feed.Frames) -> Network | None:
    """The network whose program can train them all, the others padded to its classes; None: they are not alike."""
    found = [shapes(network, store) for network in networks]
    padded = chunks.padded_shapes(found)
    return next((network for network, own in zip(networks, found, strict=True) if own == padded), None)


def initial(
    networks: list[Network], store: feed.Store | feed.Frames, mesh: Mesh, size: int = 512
) -> Iterator[TrainState]:
    """`System.init`'s states on the host, each from up to `size` of the network's clips, evenly spread."""
    whole = parallel.replicated(mesh)
    # it runs once, so that on CPU optimising it takes longer than it saves
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    for system, same in itertools.groupby(networks, lambda network: network.system):  # members share one program

        def init(seed, sample, system=system):
            clip = jnp.arange(len(sample[0]))
            unit = clip % sample.units  # another part of every clip
            return system.init(jax.random.key(seed), sample.batch(clip * sample.units + unit, clip))

        init = jax.jit(init, out_shardings=whole, compiler_options=quick)
        for network in same:
            chosen = np.flatnonzero(network.rows)
            chosen = chosen[np.linspace(0, len(chosen) - 1, min(size, len(chosen))).astype(int)]
            label = {k: v[chosen] for k, v in network.label.items()}
            sample = parallel.fetch(store.clips(chosen)._replace(label=label))
            yield parallel.fetch(init(*parallel.put((np.asarray(network.seed, np.uint32), sample), whole)))


def restored(managers: list, likes: list[TrainState]) -> list[TrainState] | None:
    """The networks' newest checkpoints of one step, as process 0 finds them; None where there are none."""
    found = checkpoint.restore_all(managers, likes) if parallel.is_first() else None
    leaves = None if found is None else {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(found))}
    leaves = parallel.from_first(leaves)
    if leaves is None:
        return None
    return jax.tree.unflatten(jax.tree.structure(likes), [leaves[str(i)] for i in range(len(leaves))])


def train(
    networks: list[Network],
    store: feed.Store | feed.Frames,
    *,
    steps: int,
    chunk: int,
    checkpoint_every: int,
    mesh: Mesh,
    lowering: str = "",
    init_from: str = "",
    progress=None,
    watch: timing.Watch | None = None,
) -> list[TrainState]:
    """Trains networks in one program, from the newest checkpoints in their folders, or from the start, to `steps`.

    Args:
        networks: E of them, alike (see `largest`).
        store: the bank, resident on the devices or on the host; its labels are not looked at.
        steps: optimizer steps, rounded up to whole chunks.
        chunk: S, at most so many steps per compiled call, chosen so that few are added to `steps`; 0: 1 on CPU, 8
            elsewhere, where the host would be the brake, or as many as feed.SENT allows where the clips are sent.
        checkpoint_every: steps between checkpoints (at chunk borders; the last step always has one).
        mesh: the devices.
        lowering: how the networks share the devices, see chunks.make_chunk; '': chunks.lowering.
        init_from: a folder whose network these begin with where they have no checkpoints, see transfer; '': none.
        progress: called as progress(step, steps, metrics, clips_per_s) for each chunk; metrics are means over networks.
        watch: gets the seconds of each phase.

    Returns:
        states of numpy arrays.

    Raises:
        UsageError: the batch does not split over the devices. Diverged: a loss or gradient is not finite; the newest
            checkpoint is from before. Preempted: SIGTERM or SIGINT came, to any process; a checkpoint of the last chunk
            is there.
    """
    watch = watch or timing.Watch()
    likes = [shapes(network, store) for network in networks]
    system = largest(networks, store).system
    terminated: list[str] = []
    with contextlib.ExitStack() as cleanup:
        for which in (signal.SIGTERM, signal.SIGINT):
            cleanup.enter_context(asked_by(which, terminated))
        first = networks if parallel.is_first() else []  # process 0 alone has files
        managers = [checkpoint.manager(network.folder / "checkpoints") for network in first]
        for manager in managers:
            cleanup.callback(manager.close)
        with watch.phase("restore"):
            found = restored(managers, likes)
        start = int(found[0].step) if found else 0
        batch = sum(len(network.sampler(0, 0)) for network in networks)
        allowed = 8 if feed.is_resident(store) else max(1, min(8, feed.SENT // (store.row_bytes * batch)))
        chunk = chunk or (1 if jax.default_backend() == "cpu" else allowed)
        chunk = -(-steps // max(1, -(-steps // chunk)))  # all calls alike: 106 steps are 3 of 36, not 3 of 50
        stop = start + -(-max(steps - start, 0) // chunk) * chunk
        if start and system.update:
            logging.info("%s: resumed at step %d of %d", networks[0].folder, start, stop)
        given = transfer.started_from(init_from) if init_from and not found else lambda state: state

        def begun() -> list[TrainState]:
            return [given(state) for state in initial(networks, store, mesh)]

        if system.update is None or start == stop:
            if parallel.anyone(bool(terminated)):
                raise Preempted(f"stopped by {by(terminated)}; the same command resumes")
            return found or begun()
        logs = [
            cleanup.enter_context(open(steplog.cut(network.folder / "metrics.jsonl", start), "a", buffering=1))
            for network in first
        ]

        how = lowering or chunks.lowering(len(networks), mesh)
        if how != "shard":
            parallel.check_batch(mesh, len(networks[0].sampler(0, 0)))
        program = chunks.make_chunk(system, mesh, lowering=how, resident=feed.is_resident(store))
        whole, split = parallel.replicated(mesh), parallel.sharded(mesh)
        held, padded = split if how == "shard" else whole, chunks.padded_shapes(likes)
        of_all = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(likes), *x.shape), x.dtype, sharding=held), padded)
        side = cleanup.enter_context(futures.ThreadPoolExecutor(1))  # the two programs are compiled side by side
        begin = side.submit(lambda: found or begun())
        seeds = parallel.put(np.array([network.seed for network in networks], np.uint32), held)
        table, offsets = labels_of(networks)
        store = store._replace(label=parallel.put(table, whole) if feed.is_resident(store) else table)
        pending, saved, began = None, start, time.perf_counter()

        def settle() -> bool:
            """Waits for the chunk under way and reports it; whether a process was asked to stop by then."""
            nonlocal began
            step, metrics, asked = pending
            with watch.phase("wait for devices"):
                metrics, asked = parallel.fetch((metrics, asked))
            now = time.perf_counter()
            seconds, began = now - began, now
            watch.add("train", seconds)
            for i, log in enumerate(logs):
                steplog.write(log, {k: v[i] for k, v in metrics.items()}, step, seconds)
            steplog.check_finite(metrics, step - chunk, [n.folder for n in networks], saved)
            if progress:
                last = {k: float(v[:, -1].mean()) for k, v in metrics.items()}
                progress(step, stop, last, chunk * batch / seconds)
            return bool(asked)

        step, asked = start, False
        requests = rows_of(networks, offsets, store.units, start, stop, chunk)
        for clips, rows in feed.feed(store, requests, mesh, axis=0 if how == "shard" else 2):
            flags = parallel.put(np.full(mesh.size, bool(terminated)), split)
            if pending is None and step == start:
                with watch.phase("compile"):
                    program = program.lower(of_all, seeds, clips, rows, flags).compile()
                    state = parallel.put(chunks.stack(begin.result(), padded), held)
                began = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics, now_asked = program(state, seeds, clips, rows, flags)
            step += chunk
            asked = pending is not None and settle()
            pending = step, metrics, now_asked
            if step == start + chunk and (said := watch.first_step()):
                jax.block_until_ready(state)
                logging.info("%s", said)
            if step == stop or asked or step - saved >= checkpoint_every:
                asked, pending = settle() or asked, None
                with watch.phase("checkpoint"):
                    states = chunks.unstack(parallel.fetch(state), likes)
                    for manager, one in zip(managers, states, strict=False):
                        checkpoint.save(manager, one)
                saved, began = step, time.perf_counter()
            if asked:
                break
        if parallel.anyone(asked or bool(terminated)):
            raise Preempted(f"stopped by {by(terminated)} at step {step} of {stop}; saved, the same command resumes")
        return states


@contextlib.contextmanager
def asked_by(which: signal.Signals, told: list[str]) -> Iterator[None]:
    """Within, the first such signal adds its name to a list instead of ending the process; the second ends it."""

    def ask(*_):
        told.append(which.name)
        signal.signal(which, previous)

    previous = signal.signal(which, ask)
    try:
        yield
    finally:
        signal.signal(which, previous)


def by(terminated: list[str]) -> str:
    return terminated[0] if terminated else "a signal to another process"


def labels_of(networks: list[Network]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The networks' labellings, each once, as one table (G * N, ...), and where each network's begins: (E,)."""
    different = list({id(network.label): network.label for network in networks}.values())
    which = [next(i for i, label in enumerate(different) if label is network.label) for network in networks]
    clips = len(networks[0].rows)
    return chunks.label_table(different), np.array(which) * clips


def rows_of(
    networks: list[Network], offsets: np.ndarray, units: int, start: int, stop: int, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each chunk from step `start` to `stop`, the rows (E, S, B) into the store and into the table of labels."""
    for first in range(start, stop, chunk):
        every = range(first, first + chunk)
        rows = np.stack([np.stack([network.sampler(network.seed, step) for step in every]) for network in networks])
        yield rows, rows // units + offsets[:, None, None]
