"""What a run is about to do on each machine, as a table on the terminal (the layout of Bai et al. 2022, table 3)."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asdjax import frontends, heads
from asdjax.tables import console_of, new_table, show_parts

_ORDER = {"alternate": "in turn", "choose": "at random"}  # how an op that holds others takes them
_WIDTH = 150  # columns: seven machines
_CELL = 15  # characters of a line in a cell


def print_plan(
    configs: Mapping[str, Mapping[str, Any]],
    sections: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    console: Any = None,
) -> None:
    """Prints what each machine is heard with: a column for each machine.

    Args:
        configs: the whole config of each machine, checked, as plain dicts and tuples.
        sections: those of each machine's training clips, and those of its test clips.
        console: a rich Console; the terminal by default.
    """
    from rich.markup import escape

    rows, machines = table(configs, sections), list(configs)

    def table_of(names):
        found = new_table("plan of each machine", ("", *map(escape, names)), [])
        at = [0, *(1 + machines.index(name) for name in names)]
        for row in rows:
            found.add_row(*(escape(textwrap.fill(row[i], _CELL, break_long_words=False)) for i in at))
        return found

    show_parts(console or console_of(_WIDTH), table_of, machines)


def table(
    configs: Mapping[str, Mapping[str, Any]], sections: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> list[list[str]]:
    """The rows of the plan: what, then a cell for each machine; arguments as of print_plan.

    A row for each selection follows: the scorers that it takes on the machine.
    """
    rows = {
        "feature": [_feature(config["frontend"], config["cut"]) for config in configs.values()],
        "network": [_name(config["backbone"]) for config in configs.values()],
        "loss": [_loss(config["head"]) for config in configs.values()],
        "batches": [_batches(config["sampler"]) for config in configs.values()],
        "augmentation": [_ops((*config["wave_ops"], *config["feature_ops"])) for config in configs.values()],
        "train sections": [_listed(sections[machine][0]) for machine in configs],
        "test sections": [_listed(sections[machine][1]) for machine in configs],
        "scorers": [_listed(spec["name"] for spec in config["score"]["scorers"]) for config in configs.values()],
    }
    for machine, config in configs.items():
        for rule in config["score"]["selections"]:
            rows.setdefault(rule["name"], ["-"] * len(configs))[list(configs).index(machine)] = _taken(rule, machine)
    return [[what, *cells] for what, cells in rows.items()]


def _feature(frontend: Mapping[str, Any], cut: Mapping[str, Any]) -> str:
    """A frontend's name, its bins x the frames of a unit; without frames where a clip is one unit."""
    values = _values(frontends, frontend)
    if "n_mels" in values:
        bins = values["n_mels"]
    elif "win" in values:
        bins = values["win"] // 2 + (values.get("drop_bin") in (None, "none"))
    else:
        return _name(frontend)
    if not cut:
        return f"{frontend['name']} {bins}"
    frames = cut["width"]
    if _values(frontends, cut)["at"] == "wave":
        frames = 1 + (frames if values["center"] else frames - values["win"]) // values["hop"]
    return f"{frontend['name']} {bins}x{frames}"


def _loss(head: Mapping[str, Any]) -> str:
    """The loss that a head is named after, or that it is given."""
    return _values(heads, head)["loss"] if _name(head) == "Linear" else _name(head)


def _batches(sampler: Mapping[str, Any]) -> str:
    """A sampler and its numbers, as they are in the config."""
    numbers = (f"{k}={'1/8' if (k, v) == ('n_target', -1) else v}" for k, v in sampler.items() if k != "name")
    return " ".join([sampler["name"], *numbers])


def _ops(ops: Sequence[Mapping[str, Any]]) -> str:
    """Augmentations, one after the other."""
    return " + ".join(map(_op, ops)) or "-"


def _op(op: Mapping[str, Any]) -> str:
    if op["name"] not in _ORDER:
        return op["name"]
    return f"{', '.join(map(_op, op['ops']))} {_ORDER[op['name']]}"


def _taken(rule: Mapping[str, Any], machine: str) -> str:
    """The scorers that a selection takes of a machine, that of the source domain first."""
    own = dict(rule["by_machine"]) if "by_machine" in rule else {}
    taken = own[machine] if machine in own else rule
    return _listed((taken["source"], taken["target"]))


def _values(module: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with the defaults of what it names: configs need not repeat them."""
    defaults = inspect.signature(getattr(module, spec["name"])).parameters
    return {name: value.default for name, value in defaults.items()} | dict(spec)


def _name(spec: Mapping[str, Any]) -> str:
    return spec["name"] if spec else "-"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, names))) or "-"
