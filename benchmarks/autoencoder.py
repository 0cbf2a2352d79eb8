"""Training of the official autoencoder: the compiled chunk against PyTorch's loop, and several networks at once.

    python -m benchmarks.autoencoder [--short] [--out FILE]

A chunk is 50 steps of 256 vectors (5 frames of 128 bins), drawn as training draws them: row numbers from the host,
frames from a resident bank of random features. The peers hold the vectors themselves, in float32: `torch` is a
shuffling DataLoader over a TensorDataset and Adam as it comes, `torch, tuned` a permutation an epoch, the tensor's own
indexing and fused Adam. Before anything is timed, the same weights and batches must begin with the same loss. `load
before` is the machine's load average then: where others take a core, one thread of PyTorch beats two.

Times are medians of calls in turn, in milliseconds per chunk; `ratio` is ours over the peer's. Several networks (of a
data set's machines, each with its own clips) are one chunk by lowering 'map' or 'vmap', against as many calls of the
chunk of one. `temp MB` is what a compiled program takes beside its arguments, `argument MB` without the bank.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the GPU too
    common.restart_tuned()

import jax
import numpy as np
import torch
from jax.sharding import AxisType

from asdjax import chunks, parallel, train
from asdjax.core import System, TrainState
from asdjax.data import feed, sampling
from benchmarks.peers import autoencoder as peer
from benchmarks.train_step import device, on_cpu, synchronised
from configs import baseline

FRAMES, BINS, WIDTH = 313, 128, 5  # of a clip of 10 s; frames of a vector
BATCH, STEPS = 256, 50
BAR = 1.0
TOLERANCE, TOLERANCE_TF32 = 1e-5, 1e-3  # of the first loss, relatively; GPUs multiply float32 in TF32 (see main)


def bank(clips: int, frames: int = FRAMES, bins: int = BINS) -> feed.Frames:
    """Random features of so many clips, on the host, at the level of log-mel energies in decibels."""
    x = np.random.default_rng(0).standard_normal((clips, frames, bins), np.float32)
    x *= 10.0
    x -= 30.0
    places = np.arange(frames - WIDTH + 1, dtype=np.int32)[:, None] + np.arange(WIDTH, dtype=np.int32)
    return feed.Frames(x, places, {})


def vectors(store: feed.Frames) -> torch.Tensor:
    """All units of a bank as the official code keeps them: (n, w * F), frame by frame."""
    windows = np.lib.stride_tricks.sliding_window_view(store.frames, store.places.shape[1], axis=1)
    return torch.from_numpy(windows.swapaxes(2, 3).reshape(len(store.frames) * store.units, -1))


class Chunk(NamedTuple):
    """The training loop's program and a call of it, states handed on from one to the next.

    Attributes:
        call: one chunk, with all that the host does for it.
        seconds: of lowering and compiling.
        temp: bytes of the program's temporaries.
        argument: bytes of its arguments without the bank.
        begin: the first network's state before the first call.
        rows: (S, B) of the bank, from which the first network learns in the first call.
    """

    call: Callable[[], dict[str, jax.Array]]
    seconds: float
    temp: int
    argument: int
    begin: TrainState
    rows: np.ndarray


def networks_of(system: System, clips: int, units: int, count: int, batch: int) -> list[train.Network]:
    """So many networks, each of its own share of the clips."""
    owner = np.arange(clips) * count // clips
    samplers = [sampling.uniform(None, owner == i, batch_size=batch, units=units).draw for i in range(count)]
    return [train.Network(Path(), system, {}, owner == i, sampler, seed=i) for i, sampler in enumerate(samplers)]


def make_chunk(
    system: System,
    store: feed.Frames,
    *,
    networks: int = 1,
    lowering: str = "map",
    batch: int = BATCH,
    steps: int = STEPS,
) -> Chunk:
    """The chunk of E networks that learn from a bank, given on the host; `call` returns their metrics (E, S)."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    several = networks_of(system, len(store.frames), store.units, networks, batch)
    begin = list(train.initial(several, store, mesh))
    whole = parallel.replicated(mesh)
    states = parallel.put(chunks.stack(begin, chunks.padded_shapes(begin)), whole)
    seeds, flags = parallel.put((np.arange(networks, dtype=np.uint32), np.zeros(1, bool)), whole)
    requests = train.rows_of(several, np.zeros(networks, int), store.units, 0, 10**9, steps)
    first = next(requests)
    served = feed.feed(feed.resident(store, mesh), itertools.chain([first, first], requests), mesh, axis=2)
    program = chunks.make_chunk(system, mesh, lowering=lowering, resident=True)
    began = time.perf_counter()
    program = program.lower(states, seeds, *next(served), flags).compile()
    seconds, memory = time.perf_counter() - began, program.memory_analysis()

    def call():
        nonlocal states
        states, metrics, _ = program(states, seeds, *next(served), flags)
        return jax.block_until_ready(metrics)

    argument = memory.argument_size_in_bytes - store.frames.nbytes
    return Chunk(call, seconds, memory.temp_size_in_bytes, argument, begin[0], first[0][0])


def check_losses(one: Chunk, net: torch.nn.Module, x: torch.Tensor, lr: float) -> list[float]:
    """The losses of a chunk's first call and of PyTorch from the same weights on the same batches.

    Args:
        one: not called yet.
        net: the peer; it gets the weights and is trained.
        x: (n, w * F), all vectors of the bank.
        lr: learning rate.

    Returns:
        how far the losses of the first and of the last step are apart, relatively.

    Raises:
        SystemExit: those of the first are too far apart: what is to be timed is not the same training.
    """
    stats = one.begin.stats["batch_stats"]
    peer.fill(net, {layer: {**own, **stats.get(layer, {})} for layer, own in one.begin.params.items()})
    step = peer.make_step(net, lr)
    theirs = np.array([float(step(x[torch.from_numpy(rows)].to(device()))) for rows in one.rows])
    ours = np.asarray(one.call()["loss"][0])
    apart = np.abs(ours - theirs) / theirs
    if not apart[0] <= (TOLERANCE if on_cpu() else TOLERANCE_TF32):
        raise SystemExit(f"error: the first loss is {ours[0]} here and {theirs[0]} in PyTorch: not the same training")
    return [float(apart[0]), float(apart[-1])]


def peer_chunk(net: torch.nn.Module, batches: Iterator, lr: float, fused: bool, threads: int) -> Callable[[], None]:
    """Steps of PyTorch, as many as a chunk has, each on the next batch."""
    step = peer.make_step(net.to(device()), lr, fused)

    def call():
        torch.set_num_threads(threads)
        for _ in range(STEPS):
            step(next(batches).to(device()))

    return synchronised(call)


def training_rows(config: Mapping[str, Any], one: Chunk, x: torch.Tensor, repeats: int) -> list[dict[str, Any]]:
    """Our chunk against the forms of PyTorch's loop on vectors (n, w * F)."""
    cores, lr, held = len(os.sched_getaffinity(0)), config["optim"]["lr"], x.to(device())

    def form(batches: Iterator, fused: bool, threads: int):
        return peer_chunk(peer.network(config["backbone"]["widths"], x.shape[1]), batches, lr, fused, threads)

    peers = {
        "torch": form(peer.loaded(x, BATCH), False, cores),
        "torch, tuned": form(peer.indexed(held, BATCH), True, cores),
        "torch, tuned, one thread": form(peer.indexed(held, BATCH), True, 1),
    }
    times = common.interleaved({"ours": one.call, **peers}, repeats=repeats)
    return [row_of("training", name, times, STEPS * BATCH) | {"bar": BAR} | cost(one) for name in peers]


def together_rows(system: System, store: feed.Frames, one: Chunk, networks: int, repeats: int) -> list[dict[str, Any]]:
    """Chunks of several networks at once, against the chunk of one called for each of them."""
    cases = {how: make_chunk(system, store, networks=networks, lowering=how) for how in ("map", "vmap")}
    calls = {how: case.call for how, case in cases.items()}
    calls["one by one"] = lambda: [one.call() for _ in range(networks)]
    times = common.interleaved(calls, repeats=repeats)
    rows = []
    for how, case in cases.items():
        row = row_of(
            f"{networks} networks by {how}", "one by one", {**times, "ours": times[how]}, networks * STEPS * BATCH
        )
        rows.append(row | cost(case))
    return rows


def row_of(what: str, other: str, times: Mapping[str, list[float]], vectors: int) -> dict[str, Any]:
    ours, theirs = common.median(times["ours"]), common.median(times[other])
    speeds = {"vectors/s": vectors / ours, "peer's vectors/s": vectors / theirs}
    milliseconds = {"ours ms": 1e3 * ours, "peer ms": 1e3 * theirs}
    return {"what": what, "against": other, **speeds, **milliseconds, "ratio": common.ratio(times, "ours", other)}


def cost(case: Chunk) -> dict[str, float]:
    return {"compile s": case.seconds, "temp MB": case.temp / 1e6, "argument MB": case.argument / 1e6}


def main() -> None:
    args = common.parser(__doc__).parse_args()
    parallel.tune_malloc()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX multiplies there
    clips, repeats, several = (100, 3, (4,)) if args.short else (1000, 31, (4, 7))
    config, store = baseline.get_config("ae"), bank(clips)
    system = train.make({**config, "train": {**config["train"], "steps": STEPS}}, 0)
    one, x = make_chunk(system, store), vectors(store)
    net = peer.network(config["backbone"]["widths"], x.shape[1]).to(device())
    apart, load = check_losses(one, net, x, config["optim"]["lr"]), os.getloadavg()[0]
    rows = training_rows(config, one, x, repeats)
    for networks in several:
        rows += together_rows(system, store, one, networks, 1 + repeats // 2)
    sizes = {"clips": clips, "vectors": clips * store.units, "batch": BATCH, "steps": STEPS, "repeats": repeats}
    found = {"losses apart, first and last step": apart, "load before": load, "torch on": str(device())}
    common.report("autoencoder", rows, sizes | found, out=args.out)


if __name__ == "__main__":
    main()
