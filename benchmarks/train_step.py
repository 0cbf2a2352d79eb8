"""The training step and the forward pass of every backbone, against the same network in PyTorch.

    python -m benchmarks.train_step [--short] [--only PART ...] [--out FILE]

Times are medians of calls in turn, in milliseconds; `ratio` is ours over the peer's. Steps and passes are of units at
the input size of their config, on random data; the path from the bank includes clips, mixup, frontend and crop. FLOPs
are counted by layer, a step as 3 passes (XLA's own count stands beside). On a GPU the peer runs on the same card, and
once more under torch.compile. With several devices (on a CPU: JAX_NUM_CPU_DEVICES=8) there are rows by device count.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the GPU too
    common.restart_tuned()

import jax
import numpy as np
import torch
from jax.sharding import AxisType

from asdjax import chunks, parallel, train
from asdjax.data import feed
from benchmarks.networks import (
    BAR_STEP,
    NETWORKS,
    Network,
    backbone_rows,
    bfloat16_row,
    depthwise_rows,
    device,
    measured,
    on_cpu,
    pmap_row,
    synchronised,
)
from benchmarks.peers import training


class Chunk:
    """The training loop's program on a resident bank of random clips of 10 s, for E networks on the first n devices."""

    def __init__(
        self, network: Network, *, batch: int, steps: int, networks: int = 1, lowering: str = "map", devices: int = 1
    ):
        classes = network.classes
        self.mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        system = train.make(network.config, classes)
        self.bank = np.random.default_rng(0).integers(-3000, 3000, (128, 160_000), np.int16)
        self.label = np.eye(classes, dtype=np.float32)[np.arange(len(self.bank)) % classes]
        store = feed.Store(self.bank, np.full(len(self.bank), 2.0**-15, np.float32), {"class": self.label})
        split = parallel.sharded(self.mesh) if lowering == "shard" else parallel.replicated(self.mesh)
        init = jax.jit(lambda seed, sample: system.init(jax.random.key(seed), sample))
        sample = store.batch(np.arange(8), np.arange(8))
        states = [jax.device_get(init(np.uint32(seed), sample)) for seed in range(networks)]
        self.state = parallel.put(jax.tree.map(lambda *leaves: np.stack(leaves), *states), split)
        self.seeds = parallel.put(np.arange(networks, dtype=np.uint32), split)
        rows = np.random.default_rng(1).integers(len(self.bank), size=(10_000, networks, steps, batch), dtype=np.int32)
        requests = ((r, r) for r in rows)
        self.feed = feed.feed(
            feed.resident(store, self.mesh), requests, self.mesh, axis=0 if lowering == "shard" else 2
        )
        self.flags = parallel.put(np.zeros(devices, bool), parallel.sharded(self.mesh))
        program = chunks.make_chunk(system, self.mesh, lowering=lowering, resident=True)
        began = time.perf_counter()
        self.program = program.lower(self.state, self.seeds, *next(self.feed), self.flags).compile()
        self.seconds = time.perf_counter() - began

    def dispatch(self) -> Any:
        """All that the host does for a chunk; returns before the devices are done."""
        self.state, metrics, _ = self.program(self.state, self.seeds, *next(self.feed), self.flags)
        return metrics

    def __call__(self) -> None:
        jax.block_until_ready(self.dispatch())


def bank_rows(name: str, repeats: int, batch: int) -> list[dict[str, Any]]:
    """Steps from the bank (the peer's by a DataLoader on the same bank), and the host's share of ours."""
    network, steps = NETWORKS[name], 1 if on_cpu() else 8
    config, frames = network.config, network.frames
    ours = Chunk(network, batch=batch, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "bank.npy"), ours.bank)
        frontend = training.Frontend(config["frontend"]).to(device())
        net, head = training.classifier(config, frames, network.bins, network.classes)
        net, head = net.to(device()), head.to(device())
        loss = training.make_loss(config["system"], net, head)
        step = training.make_step(loss, [*net.parameters(), *head.parameters()], config["optim"])
        loader = training.batches(training.Bank(Path(folder, "bank.npy"), ours.label), batch, device())

        def peer():
            for _ in range(steps):
                wave, label = next(loader)
                for op in config["wave_ops"]:
                    wave, label = training.mixup(wave, label, op["p"], op["alpha"])
                with torch.no_grad():
                    x = training.crop(frontend(wave), frames)
                step((x - x.mean()) / x.std() if config["system"]["standardise"] == "bins" else x, label)

        cases = {"ours": ours, "torch": synchronised(peer)}
        row = measured(f"{steps} steps from the bank", name, batch, cases, repeats, bar=BAR_STEP)
        loader.close()
    row["clips/s"] *= steps
    host = []
    for _ in range(repeats):
        began = time.perf_counter()
        metrics = ours.dispatch()
        host.append(time.perf_counter() - began)
        jax.block_until_ready(metrics)
    share = common.median(host) / (row["ours ms"] / 1e3)
    return [row | {"compile s": ours.seconds, "host's share": share}]


def scaling_rows(name: str, short: bool, repeats: int) -> list[dict[str, Any]]:
    """Chunks of one step by batch, by networks in one program, and by devices where there are several."""
    small, members = on_cpu(), (1, 4) if short else (1, 2, 4, 8, 16)
    batches = (8, 32) if short else (8, 16, 32, 64, 128, 256, 512)
    each, whole = (8, 16) if small else (32, 128)
    plans = {
        "batch": [dict(batch=n) for n in batches if n <= 256 or not small],  # the maps of 512 take 14 GB
        "networks by map": [dict(batch=each, networks=n) for n in members],
        "networks by vmap": [dict(batch=each, networks=n, lowering="vmap") for n in members[:3] if not short],
        "devices": [dict(batch=whole, devices=n) for n in (1, 2, 4, 8) if n <= jax.device_count() > 1],
    }
    rows = []
    for what, plan in plans.items():
        first = None
        for how in plan:
            case = Chunk(NETWORKS[name], steps=1, **how)
            clips = how["batch"] * how.get("networks", 1)
            row = measured(
                f"{what} {how[what.split()[0]]}", name, clips, {"ours": case}, repeats, **{"compile s": case.seconds}
            )
            first = first or row["clips/s"]
            rows.append(row | {"to the first": row["clips/s"] / first})
    return rows


def parts(short: bool, repeats: int, peak: float | None) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What is measured, by name."""
    batches = {k: (v.small if on_cpu() else v.large) // (2 if short else 1) for k, v in NETWORKS.items()}
    batch, first = 16 if on_cpu() else 64, next(iter(NETWORKS))
    return {
        **{f"alone {k}": functools.partial(backbone_rows, k, n, repeats, peak) for k, n in batches.items()},
        "bank": lambda: bank_rows(first, repeats, batch),
        "bfloat16": lambda: [bfloat16_row(first, repeats, batch)],
        "pmap": lambda: [pmap_row(first, repeats, batch)],
        "depthwise": lambda: depthwise_rows(repeats, batch),
        "scaling": lambda: scaling_rows(first, short, 5),
    }


def main() -> None:
    flags = common.parser(__doc__)
    flags.add_argument("--only", nargs="+", default=[""], metavar="PART", help="parts whose names contain one of these")
    args = flags.parse_args()
    parallel.tune_malloc()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if device().type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies there
        torch.backends.cudnn.benchmark = True
    repeats = 5 if args.short else 15
    peak = common.peak_flops(jax.devices()[0], "float32" if on_cpu() else "tf32")
    every = parts(args.short, repeats, peak)
    chosen = [part for part in every if any(text in part for text in args.only)]
    if not chosen:
        flags.error(f"--only {' '.join(args.only)}: there is {', '.join(every)}")
    rows = [row for part in chosen for row in every[part]()]
    settings = {"repeats": repeats, "peak GFLOP/s": peak and peak / 1e9, "torch on": str(device())}
    common.report("train_step", rows, settings | {"parts": ", ".join(chosen)}, out=args.out)


if __name__ == "__main__":
    main()
