"""A system that is another for each machine: the config of a machine's networks, from a whole run's config.

`config.by_machine` is {machine: {section of the config: what replaces it}}; machines without an entry have the config
as it is. A section is replaced as a whole. 'scorers' stands for config.score.scorers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asdjax.core import UsageError

SECTIONS = ("system", "sampler", "frontend", "cut", "wave_ops", "feature_ops", "backbone", "head", "optim", "scorers")


def config_of(config: Mapping[str, Any], machine: str) -> dict[str, Any]:
    """The config of a machine's networks and scorers, without by_machine."""
    own = dict(config["by_machine"].get(machine, {}))
    score = {**config["score"], "scorers": own.pop("scorers", config["score"]["scorers"])}
    return {**config, **own, "score": score, "by_machine": {}}


def configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The config of machines without an entry, under '', and that of each machine with one."""
    return {machine: config_of(config, machine) for machine in ("", *config["by_machine"])}


def check(config: Mapping[str, Any]) -> None:
    """Raises UsageError for an entry that replaces what there is not, or where networks are not those of machines."""
    if not isinstance(config["by_machine"], Mapping):
        raise UsageError(f"config.by_machine is {config['by_machine']!r}; expected {{machine: {{section: ...}}}}")
    for machine, own in config["by_machine"].items():
        if not isinstance(own, Mapping) or set(own) - set(SECTIONS):
            found = ", ".join(sorted(set(own) - set(SECTIONS))) if isinstance(own, Mapping) else repr(own)
            raise UsageError(f"config.by_machine.{machine} has {found}; there is: {', '.join(SECTIONS)}")
        for section, value in own.items():
            expected = tuple | list if section in ("wave_ops", "feature_ops", "scorers") else Mapping
            if not isinstance(value, expected):
                named = "a tuple of dicts" if expected is not Mapping else "a dict with a name"
                raise UsageError(f"config.by_machine.{machine}.{section} is {value!r}; expected {named}")
    if config["by_machine"] and config["data"]["group_by"] == "all":
        raise UsageError(
            "config.by_machine needs networks of machines: set config.data.group_by='machine' or 'machine_section'"
        )
