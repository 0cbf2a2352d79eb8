"""What the mixing of examples adds to the training step of a network.

    python -m benchmarks.mixing [--short] [--out FILE]

The compiled step without mixing and with each kind of it, called in turn; medians in milliseconds. `share of step` is
what mixing takes of the step that has it, with the quartiles over rounds, which are wide where others use the machine.
`op ms` is the mixing compiled by itself (of two in turn, the first), `op / step` its part of the median step.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks import common

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    common.restart_tuned()

import jax
import jax.numpy as jnp

from asdjax import augment, parallel
from asdjax.core import build
from benchmarks.networks import NETWORKS, Ours, initial, labelled, network_alone, on_cpu, units
from configs.bai2022 import FMIX, MIXING, MIXUP

MIXED = ("mfn.py", "bai2022.py:dpt")  # the log-mel networks of the report: units of one size
OPS = {
    "mixup": MIXUP,
    "fmix, freq_time": {**FMIX, "layout": "freq_time"},
    "fmix, time_freq": {**FMIX, "layout": "time_freq"},
    "fmix and mixup in turn": MIXING["fmix_mixup"][0],
}


def share(times: Mapping[str, list[float]], case: str, without: str = "none") -> dict[str, float]:
    """What `case` takes beyond `without`, as a part of `case`: (case - without) / case, its quartiles over rounds."""
    rounds = [1 - b / a for a, b in zip(times[case], times[without], strict=True)]
    low, median, high = statistics.quantiles(rounds, method="inclusive")
    return {"share of step": median, "lower": low, "upper": high}


def mixing_rows(name: str, batch: int, rounds: int) -> list[dict[str, Any]]:
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
    times = common.interleaved(cases, repeats=rounds, warmup=2)
    label = {**labelled(label), "step": jnp.zeros(batch)}
    alone = {what: Ours(op, jax.random.key(1), jnp.asarray(x), label, donate=False) for what, op in ops.items()}
    alone = common.interleaved(alone, repeats=rounds, warmup=2)
    rows = []
    for what, case in cases.items():
        step = common.median(times[what])
        row = {"network": name, "mixing": what, "batch": batch, "clips/s": batch / step}
        row |= {"ours ms": 1e3 * step, "compile s": case.seconds}
        if what in alone:
            op = common.median(alone[what])
            row |= {**share(times, what), "op ms": 1e3 * op, "op / step": op / step}
        rows.append(row)
    return rows


def main() -> None:
    args = common.parser(__doc__).parse_args()
    parallel.tune_malloc()
    rounds, halved = (9, 2) if args.short else (45, 1)  # the kinds differ by less than a round from the next
    rows = []
    for name in MIXED:
        batch = (NETWORKS[name].small if on_cpu() else NETWORKS[name].large) // halved
        rows += mixing_rows(name, batch, rounds)
    common.report("mixing", rows, {"rounds": rounds}, out=args.out)


if __name__ == "__main__":
    main()
