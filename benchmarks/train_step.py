"""The training step and the forward pass of every backbone, against the same network in PyTorch.

    python -m benchmarks.train_step [--short] [--out FILE]

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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import common

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the GPU too
    common.restart_tuned()

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import AxisType

from asdjax import chunks, frontends, heads, models, optim, parallel, train
from asdjax.core import Parts, System, build
from asdjax.data import feed
from asdjax.models import convolutions
from asdjax.systems import classify
from benchmarks.flops import forward_flops
from benchmarks.peers import training
from configs import mfn, morita2021

CLASSES = 42  # 7 machines x 6 sections
# by config: its values, frames, bins, batch on CPU (where the large maps take gigabytes) and elsewhere
NETWORKS = {
    "mfn.py": (mfn.get_config(), 64, 128, 64, 64),
    "morita2021.py:mfn": (morita2021.get_config("mfn"), 32, 1024, 32, 128),
    "morita2021.py:mnv2": (morita2021.get_config("mnv2"), 32, 1024, 32, 128),
}
BAR_STEP, BAR_FORWARD = 1.0, 0.9


# functions, since the workers of the DataLoader import this module and must not take hold of a device
@functools.cache
def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


@functools.cache
def device() -> torch.device:
    """Of the peer: a GPU where we run on one."""
    return torch.device("cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu")


def synchronised(call: Callable) -> Callable[[], None]:
    """The call of the peer, returning when its work is done."""

    def run():
        call()
        if device().type == "cuda":
            torch.cuda.synchronize()

    return run


def units(frames: int, bins: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random units (B, L, F) and their one-hot labels (B, C)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, frames, bins), np.float32)
    return x, np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=batch)]


def network_alone(config: Mapping[str, Any], dtype: str = "float32") -> System:
    """The config's network, head and optimizer on units: the frontend, the cut and the mixing are left out."""
    width = config["cut"]["width"]
    cut = frontends.Cut("frames", width, width, lambda key, x: x, lambda x: x[:, None])
    backbone = build(models, {**config["backbone"], "dtype": dtype})
    tx = build(optim, config["optim"], steps=1000)
    return classify(Parts((), lambda x: x, cut, (), backbone, build(heads, config["head"], n_classes=CLASSES), tx))


class Ours:
    """A compiled program and a call of it, state handed on from one to the next.

    Attributes:
        seconds: of lowering and compiling it.
        program: jax.stages.Compiled.
    """

    def __init__(self, function: Callable, state: Any, *args: Any, donate: bool = True, wrap: Callable = jax.jit):
        """`function` is (state, *args) -> (state, out) where `donate`, else (state, *args) -> out."""
        self.state, self.args, self.donate = state, args, donate
        began = time.perf_counter()
        self.program = wrap(function, donate_argnums=(0,) if donate else ()).lower(state, *args).compile()
        self.seconds = time.perf_counter() - began

    def __call__(self) -> None:
        out = self.program(self.state, *self.args)
        if self.donate:
            self.state, out = out
        jax.block_until_ready(out)


def initial(system: System, x: np.ndarray, label: np.ndarray):
    return jax.jit(system.init)(jax.random.key(0), {"wave": x, "label": {"class": label}})


def our_step(system: System, x: np.ndarray, label: np.ndarray) -> Ours:
    batch = {"wave": jnp.asarray(x), "label": {"class": jnp.asarray(label)}}
    return Ours(system.update, initial(system, x, label), jax.random.key(1), batch)


def our_forward(system: System, x: np.ndarray, label: np.ndarray) -> Ours:
    return Ours(system.embed, initial(system, x, label), jnp.asarray(x), donate=False)


def peer_step(config, x: np.ndarray, label: np.ndarray, dtype=torch.float32, compiled: bool = False) -> Callable:
    net = training.network(config["backbone"], *x.shape[1:]).to(device())
    head = training.ArcFace(CLASSES, config["backbone"]["embedding"]).to(device())
    step = training.make_step(torch.compile(net) if compiled else net, head, config["optim"]["lr"], dtype)
    x, label = torch.from_numpy(x).to(device()), torch.from_numpy(label).to(device())
    return synchronised(lambda: step(x, label))


def peer_forward(config, x: np.ndarray, compiled: bool = False) -> Callable:
    net = training.network(config["backbone"], *x.shape[1:]).to(device()).eval()
    net, x = torch.compile(net) if compiled else net, torch.from_numpy(x).to(device())
    return synchronised(torch.inference_mode()(lambda: net(x)))


def measured(what: str, name: str, batch: int, cases: dict[str, Callable], repeats: int, **cells: Any) -> dict:
    """A row of the table: 'ours' against 'torch', and against one other case if there is one."""
    times = common.interleaved(cases, repeats=repeats, warmup=2)
    ours = common.median(times["ours"])
    row = {"what": what, "network": name, "batch": batch, "clips/s": batch / ours, "ours ms": 1e3 * ours}
    for peer in list(cases)[1:]:
        milliseconds, ratio = ("torch ms", "ratio") if peer == "torch" else ("other ms", "ratio to other")
        row |= {milliseconds: 1e3 * common.median(times[peer]), ratio: common.ratio(times, "ours", peer)}
        row |= {} if peer == "torch" else {"other": peer}
    return row | cells


def counted(case: Ours, flops: float, seconds: float, peak: float | None) -> dict[str, Any]:
    """What the program does, by our count and by XLA's."""
    cost = case.program.cost_analysis() or {}
    return {
        "compile s": case.seconds,
        "GFLOP": flops / 1e9,
        "by XLA": cost.get("flops", 0.0) / 1e9,
        "GFLOP/s": flops / seconds / 1e9,
        "of peak": flops / seconds / peak if peak else None,
        "GB read, written": cost.get("bytes accessed", 0.0) / 1e9,
        "temp GB": case.program.memory_analysis().temp_size_in_bytes / 1e9,
    }


def backbone_rows(name: str, batch: int, repeats: int, peak: float | None) -> list[dict[str, Any]]:
    """Step and forward pass of one network."""
    config, frames, bins, *_ = NETWORKS[name]
    x, label = units(frames, bins, batch)
    system = network_alone(config)
    flops = batch * forward_flops(build(models, config["backbone"]), frames, bins)
    rows = []
    for what, factor, bar in (("step", 3, BAR_STEP), ("forward", 1, BAR_FORWARD)):
        step = what == "step"
        ours = our_step(system, x, label) if step else our_forward(system, x, label)
        cases = {"ours": ours, "torch": peer_step(config, x, label) if step else peer_forward(config, x)}
        if device().type == "cuda":
            args = (config, x, label) if step else (config, x)
            cases["torch.compile"] = (peer_step if step else peer_forward)(*args, compiled=True)
        row = measured(what, name, batch, cases, repeats, bar=bar)
        rows.append(row | counted(ours, factor * flops, row["ours ms"] / 1e3, peak))
    return rows


def bfloat16_row(name: str, repeats: int, batch: int) -> dict[str, Any]:
    config, frames, bins, *_ = NETWORKS[name]
    x, label = units(frames, bins, batch)
    ours = our_step(network_alone(config, "bfloat16"), x, label)
    cases = {"ours": ours, "torch": peer_step(config, x, label, torch.bfloat16)}
    return measured("step in bfloat16", name, batch, cases, repeats, **{"compile s": ours.seconds})


def pmap_row(name: str, repeats: int, batch: int) -> dict[str, Any]:
    """The step under jax.pmap with one device, beside the same under jit: why the loop is jit over a mesh.

    With several devices pmap would also give each its own BatchNorm, another algorithm.
    """
    config, frames, bins, *_ = NETWORKS[name]
    x, label = units(frames, bins, batch)
    system = network_alone(config)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], initial(system, x, label))
    key = jax.random.key(1)
    args = (key[None], {"wave": jnp.asarray(x)[None], "label": {"class": jnp.asarray(label)[None]}})
    mapped = Ours(system.update, one, *args, wrap=jax.pmap)
    cases = {"ours": our_step(system, x, label), "pmap": mapped}
    return measured("step, jit against pmap", name, batch, cases, repeats, **{"compile s": mapped.seconds})


def depthwise_rows(repeats: int, batch: int) -> list[dict[str, Any]]:
    """Value and gradients of a depthwise convolution in both formulations, at maps of MobileFaceNet."""
    rows = []
    for (h, w, c), stride in (((64, 32, 128), 2), ((32, 16, 128), 1), ((8, 4, 256), 1)):
        rng = np.random.default_rng(0)
        x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((batch, h, w, c), (3, 3, 1, c)))

        def case(form, stride=stride, x=x, kernel=kernel):
            loss = jax.value_and_grad(lambda x, kernel: jnp.sum(form(x, kernel, stride) ** 2), argnums=(0, 1))
            return Ours(loss, x, kernel, donate=False)

        forms = {"shifts": convolutions.depthwise_shifted, "convolution": convolutions.conv_grouped}
        ours = forms.pop("shifts" if on_cpu() else "convolution")  # what convolutions.depthwise takes here
        ((other, form),) = forms.items()
        what = "depthwise, value and gradients"
        cases = {"ours": case(ours), other: case(form)}
        rows.append(measured(what, f"map {h}x{w}x{c}, stride {stride}", batch, cases, repeats))
    return rows


# --- from the bank: the compiled chunk of the training loop ---------------------------------------------------------


class Chunk:
    """The training loop's program on a resident bank of random clips of 10 s, for E networks on the first n devices."""

    def __init__(self, config, *, batch: int, steps: int, networks: int = 1, lowering: str = "map", devices: int = 1):
        self.mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        system = train.make(config, CLASSES)
        self.bank = np.random.default_rng(0).integers(-3000, 3000, (128, 160_000), np.int16)
        self.label = np.eye(CLASSES, dtype=np.float32)[np.arange(len(self.bank)) % CLASSES]
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
    config, frames, *_ = NETWORKS[name]
    steps = 1 if on_cpu() else 8
    ours = Chunk(config, batch=batch, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "bank.npy"), ours.bank)
        frontend = training.Frontend(config["frontend"]).to(device())
        net = training.network(config["backbone"], frames, NETWORKS[name][2]).to(device())
        head = training.ArcFace(CLASSES, config["backbone"]["embedding"]).to(device())
        step = training.make_step(net, head, config["optim"]["lr"])
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
            case = Chunk(NETWORKS[name][0], steps=1, **how)
            clips = how["batch"] * how.get("networks", 1)
            row = measured(
                f"{what} {how[what.split()[0]]}", name, clips, {"ours": case}, repeats, **{"compile s": case.seconds}
            )
            first = first or row["clips/s"]
            rows.append(row | {"to the first": row["clips/s"] / first})
    return rows


def main() -> None:
    args = common.parser(__doc__).parse_args()
    parallel.tune_malloc()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if device().type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies there
        torch.backends.cudnn.benchmark = True
    repeats = 5 if args.short else 15
    peak = common.peak_flops(jax.devices()[0], "float32" if on_cpu() else "tf32")
    rows: list[dict[str, Any]] = []
    for name, (*_, small, large) in NETWORKS.items():
        rows += backbone_rows(name, (small if on_cpu() else large) // (2 if args.short else 1), repeats, peak)
    batch, first = 16 if on_cpu() else 64, next(iter(NETWORKS))
    rows += bank_rows(first, repeats, batch)
    rows.append(bfloat16_row(first, repeats, batch))
    rows.append(pmap_row(first, repeats, batch))
    rows += depthwise_rows(repeats, batch)
    rows += scaling_rows(first, args.short, 5)
    settings = {"repeats": repeats, "classes": CLASSES, "peak GFLOP/s": peak and peak / 1e9, "torch on": str(device())}
    common.report("train_step", rows, settings, out=args.out)


if __name__ == "__main__":
    main()
