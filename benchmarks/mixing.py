"""What the mixing of examples adds to the training step.

Its rows are part of `python -m benchmarks.train_step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from asdjax import augment
from asdjax.core import build
from benchmarks import common
from benchmarks.networks import NETWORKS, Ours, initial, labelled, network_alone, units
from configs.bai2022 import FMIX, MIXING, MIXUP

MIXED = ("mfn.py", "bai2022.py:dpt")  # the log-mel networks of the report: units of one size
OPS = {
    "mixup": MIXUP,
    "fmix, freq_time": {**FMIX, "layout": "freq_time"},
    "fmix, time_freq": {**FMIX, "layout": "time_freq"},
    "fmix and mixup in turn": MIXING["fmix_mixup"][0],
}


def share(times: Mapping[str, list[float]], case: str, without: str = "none") -> float:
    """What `case` takes beyond `without`, as a part of `case`: the median over rounds of (case - without) / case."""
    return 1 - common.ratio(times, without, case)


def mixing_rows(name: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    """The step of a network without mixing and with each kind of it, in turn, and each kind by itself."""
    network = NETWORKS[name]
    x, label = units(network, batch)
    plain = network_alone(network)
    state, example = initial(plain, x, label), {"wave": jnp.asarray(x), "label": labelled(label)}
    ops = {what: build(augment, spec) for what, spec in OPS.items()}
    systems = {"none": plain, **{what: network_alone(network, feature_ops=(op,)) for what, op in ops.items()}}
    cases = {
        what: Ours(system.update, jax.tree.map(jnp.array, state), jax.random.key(1), example)
        for what, system in systems.items()
    }
    # the steps differ by less than a round of a shared machine from the next: many rounds
    times = common.interleaved(cases, repeats=3 * repeats, warmup=2)
    label = {**labelled(label), "step": jnp.zeros(batch)}
    alone = {what: Ours(op, jax.random.key(1), jnp.asarray(x), label, donate=False) for what, op in ops.items()}
    alone = common.interleaved(alone, repeats=3 * repeats, warmup=2)
    rows = []
    for what, case in cases.items():
        step = common.median(times[what])
        row = {"what": f"step, mixing: {what}", "network": name, "batch": batch, "clips/s": batch / step}
        row |= {"ours ms": 1e3 * step, "compile s": case.seconds}
        if what in alone:
            row |= {"share of step": share(times, what), "op ms": 1e3 * common.median(alone[what])}
        rows.append(row)
    return rows
