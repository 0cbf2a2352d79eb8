"""The networks alone, on random units: steps and forward passes, ours and in PyTorch.

Its rows are part of `python -m benchmarks.train_step`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from asdjax import augment, frontends, heads, models, optim, systems
from asdjax.core import Parts, System, build
from asdjax.models import convolutions
from benchmarks import common
from benchmarks.flops import forward_flops
from benchmarks.peers import training
from configs import bai2022, mfn, morita2021, zeng2023

BAR_STEP, BAR_FORWARD = 1.0, 0.9


class Network(NamedTuple):
    """A network of a config at its size.

    Attributes:
        config: a whole run's.
        frames, bins: L and F of its units.
        classes: C.
        small, large: units per batch on CPU, where the large maps take gigabytes, and elsewhere.
    """

    config: Mapping[str, Any]
    frames: int
    bins: int
    classes: int
    small: int
    large: int


ALL, SECTIONS, MACHINES = 42, 6, 14  # classes of 7 machines of 6 sections, of one of them, and of machines of one
NETWORKS = {
    "mfn.py": Network(mfn.get_config(), 64, 128, ALL, 64, 64),
    "morita2021.py:mfn": Network(morita2021.get_config("mfn"), 32, 1024, ALL, 32, 128),
    "morita2021.py:mnv2": Network(morita2021.get_config("mnv2"), 32, 1024, ALL, 32, 128),
    "bai2022.py:mfn_stft": Network(bai2022.get_config("mfn_stft"), 32, 512, SECTIONS, 64, 128),
    "bai2022.py:dpt": Network(bai2022.get_config("dpt"), 64, 128, SECTIONS, 64, 128),
    "zeng2023.py:mv2_sec": Network(zeng2023.get_config("mv2_sec"), 301, 64, MACHINES, 32, 128),
    "zeng2023.py:vit_sec": Network(zeng2023.get_config("vit_sec"), 301, 64, MACHINES, 32, 128),
}


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


def units(network: Network, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random units (B, L, F) and their one-hot labels (B, C)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, network.frames, network.bins), np.float32)
    return x, np.eye(network.classes, dtype=np.float32)[rng.integers(network.classes, size=batch)]


def network_alone(network: Network, dtype: str = "float32", feature_ops: tuple[augment.Op, ...] = ()) -> System:
    """Network, head and optimizer on units: the frontend, the cut and the config's own mixing are left out."""
    config, width = network.config, network.frames
    cut = frontends.Cut("frames", width, width, lambda key, x: x, lambda x: x[:, None], lambda length: np.zeros(1, int))
    backbone = build(models, {**config["backbone"], **({} if dtype == "float32" else {"dtype": dtype})})
    head = build(heads, config["head"], n_classes=network.classes)
    parts = Parts((), lambda x: x, cut, feature_ops, backbone, head, build(optim, config["optim"], steps=1000))
    spec = dict(config["system"])
    return build(systems, {**spec, "standardise": "none"} if "standardise" in spec else spec, parts=parts)


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


def labelled(label: np.ndarray) -> dict[str, jax.Array]:
    """Label (B, C) with all leaves that training has; an eighth of the examples are of the target domain."""
    return {"class": jnp.asarray(label), "target": jnp.asarray(np.arange(len(label)) % 8 == 0, jnp.float32)}


def initial(system: System, x: np.ndarray, label: np.ndarray):
    return jax.jit(system.init)(jax.random.key(0), {"wave": x, "label": labelled(label)})


def our_step(system: System, x: np.ndarray, label: np.ndarray) -> Ours:
    batch = {"wave": jnp.asarray(x), "label": labelled(label)}
    return Ours(system.update, initial(system, x, label), jax.random.key(1), batch)


def our_forward(system: System, x: np.ndarray, label: np.ndarray) -> Ours:
    return Ours(system.embed, initial(system, x, label), jnp.asarray(x), donate=False)


def peer_step(network: Network, x: np.ndarray, label: np.ndarray, dtype=torch.float32, compiled=False) -> Callable:
    net, head = training.classifier(network.config, *x.shape[1:], network.classes)
    net, head = net.to(device()), head.to(device())
    loss = training.make_loss(network.config["system"], torch.compile(net) if compiled else net, head, dtype)
    step = training.make_step(loss, [*net.parameters(), *head.parameters()], network.config["optim"])
    x, label = torch.from_numpy(x).to(device()), torch.from_numpy(label).to(device())
    return synchronised(lambda: step(x, label))


def peer_forward(network: Network, x: np.ndarray, compiled: bool = False) -> Callable:
    net = training.network(network.config["backbone"], *x.shape[1:]).to(device()).eval()
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
    network = NETWORKS[name]
    x, label = units(network, batch)
    system = network_alone(network)
    flops = batch * forward_flops(build(models, network.config["backbone"]), network.frames, network.bins)
    rows = []
    for what, factor, bar in (("step", 3, BAR_STEP), ("forward", 1, BAR_FORWARD)):
        step = what == "step"
        ours = our_step(system, x, label) if step else our_forward(system, x, label)
        cases = {"ours": ours, "torch": peer_step(network, x, label) if step else peer_forward(network, x)}
        if device().type == "cuda":
            args = (network, x, label) if step else (network, x)
            cases["torch.compile"] = (peer_step if step else peer_forward)(*args, compiled=True)
        row = measured(what, name, batch, cases, repeats, bar=bar)
        rows.append(row | counted(ours, factor * flops, row["ours ms"] / 1e3, peak))
    return rows


def bfloat16_row(name: str, repeats: int, batch: int) -> dict[str, Any]:
    network = NETWORKS[name]
    x, label = units(network, batch)
    ours = our_step(network_alone(network, "bfloat16"), x, label)
    cases = {"ours": ours, "torch": peer_step(network, x, label, torch.bfloat16)}
    return measured("step in bfloat16", name, batch, cases, repeats, **{"compile s": ours.seconds})


def pmap_row(name: str, repeats: int, batch: int) -> dict[str, Any]:
    """The step under jax.pmap with one device, beside the same under jit: why the loop is jit over a mesh.

    With several devices pmap would also give each its own BatchNorm, another algorithm.
    """
    network = NETWORKS[name]
    x, label = units(network, batch)
    system = network_alone(network)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], initial(system, x, label))
    key = jax.random.key(1)
    args = (key[None], {"wave": jnp.asarray(x)[None], "label": jax.tree.map(lambda leaf: leaf[None], labelled(label))})
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
