"""A run that learns the tags of AudioSet's clips: how a network is pre-trained, and how well it finds the tags."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdjax import (
    checks,
    evaluate,
    learn,
    metrics,
    parallel,
    rundir,
    scoretable,
    steplog,
    tables,
    timing,
    train,
    transfer,
)
from asdjax.core import InputError, System, TrainState, UsageError
from asdjax.data import audioset, events, ondemand
from asdjax.data.feed import Store
from asdjax.progress import reporter

YEAR = "audioset"  # of data.year, by which main knows such a run
# What an ordinary run has in place of the values that only this one has, so that all the others are checked alike.
ORDINARY = {"label": "machine", "test_on": "eval", "bank": "waves"}
ONLY = {  # values that this run takes no others of, and why
    "data": {
        "label": ("tags", "its classes are tags"),
        "group_by": ("all", "one network learns all tags"),
        "level": ("as_recorded", "levels would need every file to be read first"),
        "length": ("pad", "shorter clips are padded with silence"),
        "channel": (0, "the mean of all channels is heard"),
        "bank": ("files", "files are decoded when they are needed"),
        "resident": (False, "files are decoded when they are needed"),
        "ground_truth": ("", "the tags are in the csv files"),
    },
    "train": {"members": (1, "one network learns all tags")},
    "score": dict.fromkeys(("scorers", "selections", "fusions"), ((), "nothing is scored for anomalies"))
    | {"training_free": (False, "nothing is scored for anomalies"), "tsne": (0, "nothing is scored for anomalies")},
}
TWO = audioset.Tagged(
    np.array(["a", "b"], object), np.array(["train"] * 2), audioset.multi_hot([(0,), (1,)], 2), ("a", "b"), ""
)
SHOWN = 10  # classes at either end of the printed table


class Found(NamedTuple):
    """How well a class is found, a row of tagging.csv.

    Attributes:
        name: of the class.
        training_clips, test_clips: how many have the tag.
        average_precision, auc: over all test clips; NaN where all of them or none have the tag.
    """

    name: str
    training_clips: int
    test_clips: int
    average_precision: float
    auc: float


def run(config: Mapping[str, Any], workdir: Path) -> list[Found]:
    """Trains a network to tag clips, evaluates it on the test clips, writes the run directory, prints the result.

    The same config in the same folder resumes; a finished run is evaluated anew.

    Args:
        config: plain nested dict in the form of configs/*.py, with data.year 'audioset'.
        workdir: created where absent. Of several processes the first alone writes there.

    Returns:
        the rows of tagging.csv but for the mean; none where there are no test clips.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as cleanup:
        folder = Path(workdir)
        if not parallel.is_first():  # every process does the same work, and the others' files are thrown away
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        rows = _run(config, folder)
    logging.info(
        "to go on from it: --config=configs/zeng2023.py:mv2_sec --config.init_from=%s, or another of its backbone",
        workdir,
    )
    logging.info("done in %.0f s; everything is in %s", time.perf_counter() - began, workdir)
    return rows


def _run(config: Mapping[str, Any], workdir: Path) -> list[Found]:
    watch = timing.Watch()
    check(config)
    rundir.check(workdir, config)
    transfer.check(config["init_from"], workdir)
    mesh = parallel.data_mesh()
    with watch.phase("load"):
        clips, store = parallel.in_turn(lambda: load(config["data"]))
        network = network_of(config, workdir, clips)
        names = [f"{split}/{os.path.basename(path)}" for split, path in zip(clips.split, clips.path, strict=True)]
        rundir.claim_files(workdir, config, names, clips.tags.start, clips.tags.column)
        network.folder.mkdir(parents=True, exist_ok=True)
    (state,) = learn.trained_states(config, [network], store, mesh, watch)
    rows, test = [], np.flatnonzero(clips.split == "test")
    if len(test):
        logits = logits_of(config, network.system, state, store, test, mesh, watch)
        with watch.phase("report"):
            rows = found(clips, logits)
            write(workdir, clips.path[test], logits, rows)
            if parallel.is_first():
                print_table(rows, len(test))
        if store.wave.failed:
            logging.warning("warning: %d files could not be decoded: heard as silence", len(store.wave.failed))
    else:
        logging.info("there are no test clips: the network is trained, how well it finds the tags is not known")
    if said := steplog.hardly_trained(workdir, config["init_from"]):
        logging.info("note: %s", said)
    rundir.write_json(workdir / "config.json", config)  # `score` may be another than before
    rundir.write_json(workdir / "timing.json", watch.summary())
    return rows


def check(config: Mapping[str, Any]) -> None:
    """Raises UsageError for unknown keys, values that make no sense here, and parts that do not go together."""
    checks.check_keys(config)
    for section, values in ONLY.items():
        for key, (value, why) in values.items():
            given = config[section][key]
            if given != value and (given or value):  # () and [] are alike
                raise UsageError(
                    f"config.{section}.{key} is {given!r}; with data.year 'audioset' it must be {value!r}: {why}"
                )
    if config["by_machine"]:
        raise UsageError("config.by_machine is not empty; with data.year 'audioset' it must be: there are no machines")
    seconds, rate = config["data"]["seconds"], config["data"]["sample_rate"]
    if seconds <= 0:
        raise UsageError(f"config.data.seconds is {seconds}; with data.year 'audioset' it must be above 0, as 10.0")
    ordinary = {**config, "data": {**config["data"], **ORDINARY}, "sampler": {"name": "uniform"}}
    checks.check_values(ordinary)
    checks.check_parts(ordinary)
    learn.sampler(config, TWO, np.ones(2, bool), units=1)
    try:
        heard = checks.said(json.dumps({k: ordinary[k] for k in checks.HEARING}, sort_keys=True), round(seconds * rate))
    except (TypeError, ValueError) as error:  # of a value that a part takes, but cannot work with
        if isinstance(error, InputError):
            raise
        raise UsageError(f"the parts of the config do not fit together: {error}") from error
    if "logits" not in heard:
        raise UsageError(f"config.system {config['system']['name']!r} gives no logits; it gives {', '.join(heard)}")


def load(data: Mapping[str, Any]) -> tuple[audioset.Tagged, Store]:
    """The clips with their tags, and the store that decodes their files."""
    root = data["root"] or events.embedded(cache=data["cache"] or None)
    clips = audioset.index(
        root,
        train_on=data["train_on"],
        test_on=data["test_on"],
        sample_rate=data["sample_rate"],
        resample=data["resample"],
    )
    if clips.note:
        logging.info("%s", clips.note)
    training, test = (int((clips.split == split).sum()) for split in ("train", "test"))
    logging.info("%s: %d classes, %d training and %d test clips", root, len(clips.classes), training, test)
    waves = ondemand.Waves(clips.path, round(data["seconds"] * data["sample_rate"]), data["sample_rate"])
    return clips, Store(waves, np.full(len(clips.path), 1 / 32768, np.float32), {})


def network_of(config: Mapping[str, Any], workdir: Path, clips: audioset.Tagged) -> train.Network:
    """The one network, and what it learns from."""
    rows, settings = clips.split == "train", config["train"]
    draws = learn.sampler(config, clips, rows, units=1)
    if draws.note:
        logging.info("%s", draws.note)
    steps = settings["steps"] or math.ceil(settings["epochs"] * draws.epoch)
    system = train.make({**config, "train": {**settings, "steps": steps}}, len(clips.classes))
    label = {"class": clips.tags, "target": np.zeros(len(rows), np.float32)}
    return train.Network(workdir / "groups" / "all", system, label, rows, draws.draw, config["seed"], steps)


def logits_of(config, system: System, state: TrainState, store: Store, rows: np.ndarray, mesh, watch) -> np.ndarray:
    """(M, C) float32, the logits of the clips `rows`, a mean over each clip's units."""
    only = System(None, None, lambda state, wave: {"logits": system.embed(state, wave)["logits"]})
    with reporter("test clips") as report, watch.phase("embed"):

        def on_batch(done, total):
            report(done, total, f"tagged {done} of {total} test clips")

        settings = dict(units=config["score"]["units"], mesh=mesh, progress=on_batch)
        (made,) = evaluate.embed_clips(only, [state], store, rows, **settings)
    return made["logits"].mean(1)


def found(clips: audioset.Tagged, logits: np.ndarray) -> list[Found]:
    """How well each class is found among the test clips by their logits (M, C)."""
    tags, names = clips.tags, clips.classes
    of_training = np.repeat(clips.split == "train", np.diff(tags.start))
    training = np.bincount(tags.column[of_training], minlength=len(names))
    positive = tags[clips.split == "test"]
    rows = []
    for c, name in enumerate(names):
        own, test = positive[:, c], int(positive[:, c].sum())
        defined = 0 < test < len(positive)
        values = [f(own, logits[:, c]) if defined else np.nan for f in (metrics.average_precision, metrics.auc)]
        rows.append(Found(name, int(training[c]), test, *values))
    return rows


def mean(rows: list[Found]) -> tuple[float, float, float]:
    """Mean average precision, mean AUC, and d-prime of that; NaN where no class is defined.

    Source: d-prime as by Hershey et al. 2017 (CNN architectures for large-scale audio classification).
    """
    from scipy.stats import norm

    defined = np.array([row[3:] for row in rows if not np.isnan(row.auc)], np.float64).reshape(-1, 2)
    if not len(defined):
        return np.nan, np.nan, np.nan
    precision, auc = defined.mean(0).tolist()
    return precision, auc, float(np.sqrt(2) * norm.ppf(auc))


def write(workdir: Path, paths: np.ndarray, logits: np.ndarray, rows: list[Found]) -> None:
    """Writes tagging.csv, the means first, and predictions.npz: file names and logits (M, C) of the test clips."""

    def text(value: float) -> str:
        return "" if np.isnan(value) else repr(float(value))

    precision, auc, d_prime = map(text, mean(rows))
    head = ("class", "training clips", "test clips", "average precision", "AUC", "d-prime")
    table = [(*row[:3], *map(text, row[3:]), "") for row in rows]
    scoretable.write_csv(workdir / "tagging.csv", [head, ("mean", "", "", precision, auc, d_prime), *table])
    temporary = workdir / "predictions.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, name=np.array([os.path.basename(path) for path in paths], str), logits=logits)
    os.replace(temporary, workdir / "predictions.npz")


def print_table(rows: list[Found], test_clips: int) -> None:
    """Prints the means, and the classes: of many those that are found best and worst."""
    from rich.markup import escape

    def text(value: float) -> str:
        return "-" if np.isnan(value) else f"{value:.3f}"

    precision, auc, d_prime = mean(rows)
    defined = sorted((row for row in rows if not np.isnan(row.auc)), key=lambda row: -row.average_precision)
    title = f"tags of {test_clips} test clips, {len(defined)} of {len(rows)} classes"
    parts = [defined]
    if len(defined) > 2 * SHOWN:
        title, parts = f"{title}: the {SHOWN} found best and worst", [defined[:SHOWN], defined[-SHOWN:]]
    columns = [("training clips", ""), ("test clips", ""), ("average precision", ""), ("AUC", "")]
    table = tables.new_table(title, ("class",), columns)
    for part in parts:
        for row in part:
            table.add_row(escape(row.name), str(row.training_clips), str(row.test_clips), *map(text, row[3:]))
        table.add_section()
    table.add_row("mean", "", "", text(precision), text(auc))
    tables.show(tables.console_of(80), table)
    print(f"mean average precision {text(precision)}, mean AUC {text(auc)}, d-prime {text(d_prime)}")
