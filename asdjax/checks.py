"""What can be wrong with a config, said before any data is read, or at least before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from asdjax import by_machine, detectors, evaluate, learn, train
from asdjax.core import Clips, UsageError
from asdjax.data import dcase
from asdjax.data import labels as classes
from asdjax.detectors import outputs
from asdjax.results import fusion

KEYS = {
    "": ("backbone by_machine cut data feature_ops frontend head optim sampler score seed system train wave_ops"),
    "data": (
        "root year train_on test_on ground_truth group_by label level sample_rate resample channel seconds length "
        "cache resident bank"
    ),
    "train": "steps epochs batch_size chunk checkpoint_every members groups",
    "score": "units scorers selections fusions training_free",
}
OF_CLASSES = ("log_softmax", "log_softmax_mse")  # detectors that ask for a clip's own classes
GROUPS = ("one_by_one", "together")  # how the groups' networks are trained


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
            evaluate.check_scorers(own["score"]["scorers"], gives_test_domain)
        except UsageError as error:
            raise UsageError(f"config.by_machine.{machine}: {error}" if machine else str(error)) from error
        names += [spec["name"] for spec in own["score"]["scorers"]]
    names = list(dict.fromkeys(names))
    evaluate.check_selections(score["selections"], names, gives_test_domain)
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
    learn.sampler(config, TWO, np.ones(2, bool), units=1)
    train.make(config, n_classes=2)


_name, _zero = np.array(["a", "b"]), np.zeros(2, np.int8)
TWO = Clips(_name, _name, _name, np.array(["source", "target"]), np.array(["train"] * 2), _zero, _name)


def check_shapes(config: Mapping[str, Any], samples: int) -> None:
    """Raises UsageError for parts that do not fit together or to clips of so many samples, before anything is run.

    Also for scorers of what the system does not say of a clip.
    """
    system = train.make(config, n_classes=2)
    wave = jax.ShapeDtypeStruct((2, samples), np.float32)
    batch = {"wave": wave}
    if config["data"]["bank"] == "features":
        bins = jax.eval_shape(train.frontend(config), wave).shape[2]
        width = train.unit_frames(config, samples).shape[1]
        batch = {"features": jax.ShapeDtypeStruct((2, width, bins), np.float32)}
    label = {"class": jax.ShapeDtypeStruct((2, 2), np.float32)}
    state = jax.eval_shape(system.init, jax.random.key(0), {**batch, "label": label})
    # and not `update`, which takes seconds to trace and fits where these do
    said = jax.eval_shape(system.embed, state, wave)
    for spec in config["score"]["scorers"]:
        arguments = inspect.signature(getattr(detectors, spec["detector"]["name"])).parameters
        asked = {k: spec["detector"].get(k, v.default) for k, v in arguments.items() if k in ("key", "error")}
        if lacking := set(asked.values()) - set(said):
            raise UsageError(
                f"scorer {spec['name']!r} asks for {', '.join(sorted(lacking))}; what system "
                f"{config['system']['name']} says of a clip is: {', '.join(said)}"
            )


def check_groups(groups: Iterable[learn.Group], selections: tuple) -> None:
    """Raises UsageError where a scorer asks for what is not known of a group's clips, or a selection for no scorer."""
    for group in groups:
        scorers = group.config["score"]["scorers"]
        classifying = [spec["name"] for spec in scorers if spec["detector"]["name"] in OF_CLASSES]
        if classifying and not group.labels.own_classes[group.rows].any(1).all():
            raise UsageError(f"scorer {classifying[0]!r} of {group.name}: {outputs.NO_CLASS}")
        names = {spec["name"] for spec in scorers}
        for selection in selections:
            rule = dict(selection.get("by_machine", {})).get(group.machine, selection)
            if lacking := {rule["source"], rule["target"]} - names:
                raise UsageError(
                    f"score.selections {selection['name']!r} takes {', '.join(sorted(lacking))} of {group.machine}, "
                    f"which has only {', '.join(sorted(names))}"
                )
