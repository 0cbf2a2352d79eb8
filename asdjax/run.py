"""A run: the way from a config to scores and results."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asdjax import (
    comparison,
    evaluate,
    learn,
    outcome,
    parallel,
    results,
    rundir,
    scoretable,
    tables,
    timing,
    train,
    training_free,
)
from asdjax.core import Clips, InputError, UsageError
from asdjax.data import audio, dcase, feed, synth
from asdjax.data import labels as classes
from asdjax.data.feed import Store
from asdjax.detectors import outputs
from asdjax.results import fusion

KEYS = {
    "": "backbone cut data feature_ops frontend head optim score seed system train wave_ops",
    "data": (
        "root year train_on test_on ground_truth group_by label level sample_rate resample channel seconds length "
        "cache resident bank"
    ),
    "train": "steps epochs batch_size chunk checkpoint_every members groups",
    "score": "units scorers selections fusions training_free",
}
GROUPS = ("one_by_one", "together")  # how the groups' networks are trained


def run(config: Mapping[str, Any], workdir: Path) -> list[tuple]:
    """Trains and scores every group of a data set, writes the run directory, prints the result.

    The same config in the same folder resumes; where only `score` differs, the embeddings are scored anew.

    Args:
        config: plain nested dict in the form of configs/*.py.
        workdir: created where absent. Of several processes the first alone writes there.

    Returns:
        the rows of results.csv.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as cleanup:
        if not parallel.is_first():  # every process does the same work, and the others' files are thrown away
            workdir = cleanup.enter_context(tempfile.TemporaryDirectory())
        rows = _run(config, Path(workdir))
    logging.info("done in %.0f s; everything is in %s", time.perf_counter() - began, workdir)
    return rows


def _run(config: Mapping[str, Any], workdir: Path) -> list[tuple]:
    watch = timing.Watch()
    check(config)
    rundir.check(workdir, config)
    mesh = parallel.data_mesh()
    with watch.phase("load"):
        clips, store, level = parallel.in_turn(lambda: load(config["data"]))
        check_shapes(config, store.wave.shape[1])
        groups = list(labelled_groups(clips, config["data"]["group_by"], config["data"]["label"]))
        check_classes(groups, config["score"]["scorers"])
        rundir.claim(workdir, config, clips, store.gain, level)
        store = feed.on_devices(store, config["data"]["resident"], mesh, "clips")
    columns = scores_of_groups(config, workdir, groups, clips, store, level, mesh, watch)
    scores = with_joined(scoretable.concatenate(list(columns)), config["score"])
    if config["score"]["training_free"]:
        with watch.phase("training-free"):
            scores = with_training_free(scores, clips, store, level, config["data"]["sample_rate"], mesh)
    rundir.write_json(workdir / "config.json", config)  # `score` may be another than before
    with watch.phase("report"):
        rows, notes = outcome.write(workdir, scores, config["data"]["year"])
        if parallel.is_first():
            say(rows, config, clips)
    for note in notes:
        logging.info("note: %s", note)
    rundir.write_json(workdir / "timing.json", watch.summary())
    return rows


def scores_of_groups(
    config, workdir: Path, groups: list[learn.Group], clips: Clips, store: Store, level: np.ndarray, mesh, watch
) -> Iterator[scoretable.Scores]:
    """The scores of every group by every member and scorer, and once its loudness."""
    scorers, rules = config["score"]["scorers"], config["score"]["fusions"]
    fused = {name for rule in rules for name in rule["scorers"] or [spec["name"] for spec in scorers]}
    together = config["train"]["groups"] == "together"
    for some in [groups] if together else [[group] for group in groups]:
        for group, networks in learn.learnt(config, workdir, some, store, mesh, watch):
            rows = group.rows
            for member, (folder, e) in enumerate(networks):
                e["own_class"] = group.labels.own_class[rows]
                with watch.phase("score"):
                    for name, scores in evaluate.score_group(clips[rows], e, level[rows], scorers, folder, fused=fused):
                        if name != scoretable.RMS or member == 0:  # loudness has no members
                            yield scoretable.of_clips(name, member, clips[rows], scores)


def with_joined(scores: scoretable.Scores, settings: Mapping[str, Any]) -> scoretable.Scores:
    """The scores and those that are made of them: selections, fusions, ensembles."""
    for selection in settings["selections"]:
        scores = scoretable.concatenate([scores, results.select(scores, **selection)])
    single = [name for name, _ in scoretable.systems(scores)]
    for rule in settings["fusions"]:
        rule = {**rule, "scorers": rule["scorers"] or single}  # never of fusions
        scores = scoretable.concatenate([scores, fusion.fuse(scores, **rule)])
    return scoretable.concatenate([scores, scoretable.ensemble(scores)])


def with_training_free(scores, clips: Clips, store: Store, level: np.ndarray, sample_rate: int, mesh):
    """The scores and those of the training-free baseline, or a warning why there are none."""
    try:
        beside = training_free.scores(clips, store, level, sample_rate, mesh)
    except InputError as error:
        logging.warning("warning: no %s baseline beside: %s", scoretable.TRAINING_FREE, error)
        return scores
    return scoretable.concatenate([scores, beside])


def say(rows: list[results.Result], config: Mapping[str, Any], clips: Clips) -> None:
    """Prints the tables: in detail the fusions where there are some, since they are made of all the rest."""
    year, detail = config["data"]["year"], [rule["name"] for rule in config["score"]["fusions"]]
    tables.print_tables(rows, year, detail=detail)
    if config["data"]["root"]:  # the embedded machines only share their names with those of the challenge
        shown = [row for row in rows if not detail or row.scorer in detail]
        counts = Counter(clips.machine[clips.is_test].tolist())
        comparison.print_published(shown, year, config["data"]["test_on"], counts)


def check(config: Mapping[str, Any]) -> None:
    """Raises UsageError for unknown or missing keys and for parts that cannot be built, before data is read."""
    for section, known in KEYS.items():
        found, known = set(config[section] if section else config), set(known.split())
        at = f"config.{section}" if section else "config"
        if found - known:
            raise UsageError(f"{at} has unknown keys {sorted(found - known)}; there is: {', '.join(sorted(known))}")
        if known - found:
            raise UsageError(f"{at} lacks {', '.join(sorted(known - found))}")
    year = dcase.year_of(config["data"]["year"])
    heard, expected = config["frontend"].get("sample_rate"), config["data"]["sample_rate"]
    if heard not in (None, expected):
        raise UsageError(f"config.frontend.sample_rate is {heard} Hz, but config.data.sample_rate {expected} Hz")
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
    if bool(config["head"]) == (config["data"]["label"] == "none"):
        raise UsageError(
            f"config.data.label is {config['data']['label']!r} and config.head is {config['head'] or 'empty'}; "
            "expected classes for a head to tell apart, or neither: label 'none' and an empty head"
        )
    score = config["score"]
    evaluate.check_scorers(score["scorers"], score["selections"], year.gives_test_domain)
    fusion.check(score["fusions"], [spec["name"] for spec in (*score["scorers"], *score["selections"])])
    train.make(config, n_classes=2)


def check_shapes(config: Mapping[str, Any], samples: int) -> None:
    """Raises UsageError for parts that do not fit together or to clips of so many samples, before anything is run."""
    system = train.make(config, n_classes=2)
    wave = jax.ShapeDtypeStruct((2, samples), np.float32)
    batch = {"wave": wave}
    if config["data"]["bank"] == "features":
        bins = jax.eval_shape(train.frontend(config), wave).shape[2]
        width = train.unit_frames(config, samples).shape[1]
        batch = {"features": jax.ShapeDtypeStruct((2, width, bins), np.float32)}
    label = {"class": jax.ShapeDtypeStruct((2, 2), np.float32)}
    state = jax.eval_shape(system.init, jax.random.key(0), {**batch, "label": label})
    jax.eval_shape(system.embed, state, wave)  # and not `update`, which takes seconds to trace and fits where these do


def check_classes(groups: list[learn.Group], scorers: tuple) -> None:
    """Raises UsageError where a scorer asks for a clip's own class and it is not known, before anything is trained."""
    names = [spec["name"] for spec in scorers if spec["detector"]["name"] == "log_softmax"]
    for group in groups:
        if names and (group.labels.own_class[group.rows] < 0).any():
            raise UsageError(f"scorer {names[0]!r} of {group.name}: {outputs.NO_CLASS}")


def labelled_groups(clips: Clips, group_by: str, label: str) -> Iterator[learn.Group]:
    """Each group that has something to score; says what was made of the labels.

    Raises:
        InputError: a group that cannot learn, or none to score.
    """
    found = classes.groups(clips, group_by)
    if not clips.is_test.any():
        raise InputError("no test clips to score; expected MACHINE/test/*.wav")
    for name, own in found:
        if not (own & clips.is_test).any():
            logging.info("%s: no test clips, hence no network of its own", name)
            continue
        try:
            labels = classes.class_labels(clips, own, label)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
        if labels.note:
            logging.info("%s: %s", name, labels.note)
        yield learn.Group(name, own, labels, np.flatnonzero(own & (clips.is_train | clips.is_test)))


def load(data: Mapping[str, Any]) -> tuple[Clips, Store, np.ndarray]:
    """The data set: index, bank with the gain of `data.level` applied on use, and each clip's level in dB."""
    root = data["root"] or synth.embedded(cache=data["cache"] or None)
    clips = dcase.index(
        root,
        data["year"],
        train_on=data["train_on"],
        test_on=data["test_on"],
        ground_truth=data["ground_truth"] or None,
    )
    clips = clips[clips.is_train | clips.is_test]  # supplemental clips are for systems that ask for them
    bank = audio.bank(
        clips,
        sample_rate=data["sample_rate"],
        seconds=data["seconds"] or None,
        length=data["length"],
        channel=data["channel"],
        resample=data["resample"],
        cache=data["cache"] or None,
    )
    machines = len(np.unique(clips.machine))
    logging.info(
        "%s: %d machines, %d training and %d test clips of %.1f s",
        root,
        machines,
        clips.is_train.sum(),
        clips.is_test.sum(),
        bank.wave.shape[1] / bank.sample_rate,
    )
    return clips, Store(bank.wave, audio.gain(bank, data["level"]), {}), audio.loudness(bank, data["level"])
