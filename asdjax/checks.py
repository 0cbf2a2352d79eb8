"""What can be wrong with a config, said before any data is read, or at least before anything is trained."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from asdjax import augment, by_machine, detectors, learn, scoretable, train
from asdjax.core import Clips, UsageError, build
from asdjax.data import dcase
from asdjax.data import labels as classes
from asdjax.detectors import outputs
from asdjax.results import fusion

KEYS = {
    "": (
        "backbone by_machine cut data feature_ops frontend head init_from optim sampler score seed system train "
        "wave_ops"
    ),
    "data": (
        "root year train_on test_on ground_truth group_by label level sample_rate resample channel seconds length "
        "cache resident bank"
    ),
    "train": "steps epochs batch_size chunk checkpoint_every members groups",
    "score": "units scorers selections fusions training_free tsne",
}
OF_CLASSES = ("log_sigmoid", "log_softmax", "log_softmax_mse")  # detectors that ask for a clip's own classes
GROUPS = ("one_by_one", "together")  # how the groups' networks are trained


HEARING = (  # the sections that make a system; of data only the bank does
    "system", "data", "frontend", "cut", "wave_ops", "feature_ops", "backbone", "head", "optim", "train"
)  # fmt: skip
_ab = np.array(["a", "b"])
TWO = Clips(_ab, _ab, _ab, np.array(["source", "target"]), np.array(["train"] * 2), np.zeros(2, np.int8), _ab)


def check(config: Mapping[str, Any]) -> None:
    """Raises UsageError for unknown or missing keys and for parts that cannot be built, before data is read."""
    check_keys(config)
    check_values(config)
    by_machine.check(config)
    gives_test_domain, score = dcase.year_of(config["data"]["year"]).gives_test_domain, config["score"]
    names = []
    for machine, own in by_machine.configs(config).items():
        try:
            check_parts(own)
            check_scorers(own["score"]["scorers"], gives_test_domain)
            check_belief(own["score"]["scorers"], own["head"])
        except UsageError as error:
            raise UsageError(f"config.by_machine.{machine}: {error}" if machine else str(error)) from error
        names += [spec["name"] for spec in own["score"]["scorers"]]
    names = list(dict.fromkeys(names))
    check_selections(score["selections"], names, gives_test_domain)
    fusion.check(score["fusions"], [*names, *(selection["name"] for selection in score["selections"])])


def check_keys(config: Mapping[str, Any]) -> None:
    """Raises UsageError for unknown or missing keys."""
    for section, known in KEYS.items():
        found, known = set(config[section] if section else config), set(known.split())
        at = f"config.{section}" if section else "config"
        if found - known:
            raise UsageError(f"{at} has unknown keys {sorted(found - known)}; there is: {', '.join(sorted(known))}")
        if known - found:
            raise UsageError(f"{at} lacks {', '.join(sorted(known - found))}")


def check_values(config: Mapping[str, Any]) -> None:
    """Raises UsageError for a value out of range."""
    choices = {
        "group_by": ("all", "machine", "machine_section"),
        "label": ("none", *classes.LEVELS),
        "level": ("as_recorded", "rms"),
        "length": ("tile", "pad", "crop"),
        "test_on": ("dev", "eval"),
        "bank": ("waves", "features"),
    }
    for section, name, known in (*(("data", *choice) for choice in choices.items()), ("train", "groups", GROUPS)):
        if config[section][name] not in known:
            raise UsageError(f"config.{section}.{name} is {config[section][name]!r}; there is: {', '.join(known)}")
    if config["seed"] < 0:
        raise UsageError(f"config.seed is {config['seed']}; it must be at least 0")
    if config["score"]["tsne"] < 0:
        raise UsageError(
            f"config.score.tsne is {config['score']['tsne']}; expected a number of clips, 0 for no picture"
        )
    trained = config["train"]
    for name, least in (("batch_size", 2), ("chunk", 0), ("checkpoint_every", 1), ("members", 1)):
        if trained[name] < least:
            raise UsageError(f"config.train.{name} is {trained[name]}; it must be at least {least}")
    lengths = sorted((trained["steps"], trained["epochs"]))
    if lengths[0] != 0 or (config["optim"] and lengths[1] <= 0):
        raise UsageError(
            f"config.train.steps is {trained['steps']}, epochs {trained['epochs']}; expected one above 0, the other 0"
        )


def check_parts(config: Mapping[str, Any]) -> None:
    """Raises UsageError for parts that cannot be built, or that do not go with the data's labels."""
    heard, expected = config["frontend"].get("sample_rate"), config["data"]["sample_rate"]
    if heard not in (None, expected):
        raise UsageError(f"config.frontend.sample_rate is {heard} Hz, but config.data.sample_rate {expected} Hz")
    if bool(config["head"]) == (config["data"]["label"] == "none"):
        raise UsageError(
            f"config.data.label is {config['data']['label']!r} and config.head is {config['head'] or 'empty'}; "
            "expected classes for a head to tell apart, or neither: label 'none' and an empty head"
        )
    if config["init_from"] and not config["head"]:
        raise UsageError(f"config.init_from is {config['init_from']!r}: only classifiers start from other networks")
    learn.sampler(config, TWO, np.ones(2, bool), units=1)
    train.make(config, n_classes=2)


def check_scorers(scorers: tuple, gives_test_domain: bool) -> None:
    """Raises UsageError for an unknown detector or fit rule, or a rule that the year's protocol forbids."""
    check_specs("scorers", scorers, {"name", "fit", "detector"})
    names = [spec["name"] for spec in scorers]
    taken = [*names, *scoretable.BESIDE]
    if not names or len(set(taken)) < len(taken):
        raise UsageError(
            f"score: expected one scorer at least, and names that differ, also from {' and '.join(scoretable.BESIDE)}; "
            f"found {', '.join(names)}"
        )
    for spec in scorers:
        build(detectors, spec["detector"])
        if spec["fit"] not in ("section", "by_test_domain"):
            raise UsageError(
                f"score.scorers {spec['name']!r}: fit is {spec['fit']!r}; there is: section, by_test_domain"
            )
        if spec["fit"] == "by_test_domain" and not gives_test_domain:
            raise UsageError(
                f"score.scorers {spec['name']!r}: fit='by_test_domain' needs the domain of test clips, which only the "
                "protocol of 2021 gives; use fit='section' or data.year=2021"
            )


def check_belief(scorers: tuple, head: Mapping[str, Any]) -> None:
    """Raises UsageError where a scorer takes the logits of a head for what they are not."""
    together = head.get("loss") == "bce"  # the head's classes may be there at once
    wrong = ("log_softmax", "log_softmax_mse") if together else ("log_sigmoid",)
    for spec in scorers:
        if spec["detector"]["name"] in wrong:
            raise UsageError(
                f"score.scorers {spec['name']!r} is {spec['detector']['name']}, which does not go with "
                f"config.head.loss {head.get('loss')!r}; expected {'log_sigmoid' if together else 'log_softmax'}"
            )


def check_selections(selections: tuple, scorers: list[str], gives_test_domain: bool) -> None:
    """Raises UsageError for a selection of scorers that are not there, or that the year's protocol forbids."""
    check_specs("selections", selections, {"name", "source", "target"}, {"by_machine"})
    taken = [*scorers, *(selection["name"] for selection in selections), *scoretable.BESIDE]
    if len(set(taken)) < len(taken):
        raise UsageError(f"score.selections: expected names that differ from all others; found {', '.join(taken)}")
    for selection in selections:
        if not isinstance(special := selection.get("by_machine") or {}, Mapping):
            raise UsageError(
                f"score.selections {selection['name']!r}: by_machine is {special!r}; expected {{machine: ...}}"
            )
        rules = tuple(special.values())
        check_specs(f"selections {selection['name']!r} by_machine", rules, {"source", "target"})
        choices = [selection, *rules]
        if not gives_test_domain and any(choice["source"] != choice["target"] for choice in choices):
            raise UsageError(
                f"score.selections {selection['name']!r}: a scorer for each domain needs the domain of test clips, "
                "which only the protocol of 2021 gives"
            )
        if unknown := {choice[domain] for choice in choices for domain in ("source", "target")} - set(scorers):
            raise UsageError(
                f"score.selections {selection['name']!r}: no scorer {sorted(unknown)}; there is: {scorers}"
            )


def check_specs(name: str, specs: tuple, needed: set[str], allowed: set[str] = frozenset()) -> None:
    """Raises UsageError for other keys than expected."""
    for spec in specs:
        if not needed <= set(spec) <= needed | allowed:
            raise UsageError(f"score.{name}: found keys {sorted(spec)}, expected {sorted(needed | allowed)}")


def check_groups(groups: Iterable[learn.Group], samples: int, score: Mapping[str, Any]) -> None:
    """Raises UsageError for what does not fit the groups' clips of so many samples, before anything is trained."""
    named = set()
    for group in groups:
        scorers = group.config["score"]["scorers"]
        names = {spec["name"] for spec in scorers}
        named |= names
        try:
            check_asked(scorers, said(json.dumps({k: group.config[k] for k in HEARING}, sort_keys=True), samples))
        except UsageError as error:
            raise UsageError(f"{group.name}: {error}") from error
        except (TypeError, ValueError) as error:  # of a value that a part takes, but cannot work with
            raise UsageError(f"{group.name}: the parts of the config do not fit together: {error}") from error
        classifying = [spec["name"] for spec in scorers if spec["detector"]["name"] in OF_CLASSES]
        if classifying and not group.labels.own_classes[group.rows].any(1).all():
            raise UsageError(f"scorer {classifying[0]!r} of {group.name}: {outputs.NO_CLASS}")
        for selection in score["selections"]:
            rule = dict(selection.get("by_machine", {})).get(group.machine, selection)
            if lacking := {rule["source"], rule["target"]} - names:
                raise UsageError(
                    f"score.selections {selection['name']!r} takes {', '.join(sorted(lacking))} of {group.name}, "
                    f"which has only {', '.join(sorted(names))}"
                )
    named |= {selection["name"] for selection in score["selections"]}
    for rule in score["fusions"]:
        if lacking := set(rule["scorers"]) - named:
            raise UsageError(f"score.fusions {rule['name']!r}: no machine has {', '.join(sorted(lacking))}")
        named.add(rule["name"])


def check_asked(scorers: tuple, known: tuple[str, ...]) -> None:
    """Raises UsageError for a scorer of what the system does not say of a clip."""
    for spec in scorers:
        arguments = inspect.signature(getattr(detectors, spec["detector"]["name"])).parameters
        asked = {k: spec["detector"].get(k, v.default) for k, v in arguments.items() if k in ("key", "error")}
        if lacking := set(asked.values()) - set(known):
            raise UsageError(
                f"scorer {spec['name']!r} asks for {', '.join(sorted(lacking))}; what the system says of a clip is: "
                f"{', '.join(known)}"
            )


@functools.lru_cache
def said(hearing: str, samples: int) -> tuple[str, ...]:
    """What a system says of clips of so many samples: the keys of embed's dict.

    Args:
        hearing: the sections HEARING of a config, in JSON.
        samples: T.

    Raises:
        UsageError: parts that do not fit together or to the clips.
    """
    config = json.loads(hearing)
    system = train.make(config, n_classes=2)
    wave = jax.ShapeDtypeStruct((2, samples), np.float32)
    whole = {"class": (2, 2), "target": (2,), "step": (2,)}
    label = {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in whole.items()}
    for spec in config["wave_ops"]:
        jax.eval_shape(build(augment, spec), jax.random.key(0), wave, label)
    batch = {"wave": wave}
    if config["data"]["bank"] == "features":
        bins = jax.eval_shape(train.frontend(config), wave).shape[2]
        width = train.unit_frames(config, samples).shape[1]
        batch = {"features": jax.ShapeDtypeStruct((2, width, bins), np.float32)}
    state = jax.eval_shape(system.init, jax.random.key(0), {**batch, "label": label})
    # and not `update`, which takes seconds to trace and fits where these do
    return tuple(jax.eval_shape(system.embed, state, wave))
