"""A run: the way from a config to scores and results."""

from __future__ import annotations

import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asdjax import evaluate, parallel, results, rundir, tables, train
from asdjax.core import Clips, InputError, UsageError
from asdjax.data import audio, dcase, sampling, synth
from asdjax.data import labels as classes
from asdjax.data.feed import Store
from asdjax.progress import reporter

KEYS = {
    "": "backbone cut data feature_ops frontend head optim score seed system train wave_ops",
    "data": (
        "root year train_on test_on ground_truth group_by label level sample_rate resample channel seconds length cache"
    ),
    "train": "steps batch_size chunk checkpoint_every",
    "score": "units scorers selections",
}


def run(config: Mapping[str, Any], workdir: Path) -> list[tuple]:
    """Trains and scores every group of a data set, writes the run directory, prints the result.

    The same config in the same folder resumes; where only `score` differs, the embeddings are scored anew.

    Args:
        config: plain nested dict in the form of configs/*.py.
        workdir: created where absent.

    Returns:
        the rows of results.csv.
    """
    began = time.perf_counter()
    check(config)
    workdir = Path(workdir)
    rundir.check(workdir, config)
    mesh = parallel.data_mesh()
    parallel.check_batch(mesh, config["train"]["batch_size"])
    clips, store, level = load(config["data"])
    check_shapes(config, store.wave.shape[1])
    groups = list(labelled_groups(clips, config["data"]["group_by"], config["data"]["label"]))
    rundir.claim(workdir, config, clips, store.gain, level)
    columns = []
    for name, own, labels in groups:
        folder = workdir / "groups" / name
        rows = np.flatnonzero(own & (clips.is_train | clips.is_test))
        e = embeddings(config, folder, clips, store._replace(label={"class": labels.onehot}), labels, rows, mesh)
        e["own_class"] = labels.own_class[rows]
        scorers = config["score"]["scorers"]
        for scorer, scores in evaluate.score_group(clips[rows], e, level[rows], scorers, folder):
            columns.append(score_columns(scorer, clips[rows], scores))
    scores = results.concatenate(columns)
    for selection in config["score"]["selections"]:
        scores = results.concatenate([scores, results.select(scores, **selection)])
    rundir.write_json(workdir / "config.json", config)  # `score` may be another than before
    rows, notes = finish(workdir, scores, config["data"]["year"])
    for note in notes:
        logging.info("note: %s", note)
    logging.info("done in %.0f s; everything is in %s", time.perf_counter() - began, workdir)
    return rows


def finish(workdir: Path, scores: dict, year) -> tuple[list, list[str]]:
    """Writes scores.csv, results.csv and submission/, and prints the tables."""
    results.write_scores(workdir / "scores.csv", scores)
    rows, notes = results.summarise(scores, year)
    results.write_results(workdir / "results.csv", rows)
    shutil.rmtree(workdir / "submission", ignore_errors=True)  # that of other scorers
    limits = results.write_submission(workdir / "submission", scores, year)
    names = ("scorer", "member", "machine", "threshold", "note")
    limits = [(*key, None if np.isnan(limit) else limit, note) for key, (limit, note) in limits.items()]
    rundir.write_json(workdir / "thresholds.json", [dict(zip(names, row, strict=True)) for row in limits])
    tables.print_tables(rows, year)
    return rows, notes


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
        "label": tuple(classes.LEVELS),
        "level": ("as_recorded", "rms"),
        "length": ("tile", "pad", "crop"),
        "test_on": ("dev", "eval"),
    }
    for name, known in choices.items():
        if config["data"][name] not in known:
            raise UsageError(f"config.data.{name} is {config['data'][name]!r}; there is: {', '.join(known)}")
    if config["seed"] < 0:
        raise UsageError(f"config.seed is {config['seed']}; it must be at least 0")
    for name, least in (("steps", 1), ("batch_size", 2), ("chunk", 0), ("checkpoint_every", 1)):
        if config["train"][name] < least:
            raise UsageError(f"config.train.{name} is {config['train'][name]}; it must be at least {least}")
    evaluate.check_scorers(config["score"]["scorers"], config["score"]["selections"], year.gives_test_domain)
    train.make(config, n_classes=2)


def check_shapes(config: Mapping[str, Any], samples: int) -> None:
    """Raises UsageError for parts that do not fit together or to clips of so many samples, before anything is run."""
    system = train.make(config, n_classes=2)
    wave = jax.ShapeDtypeStruct((2, samples), np.float32)
    batch = {"wave": wave, "label": {"class": jax.ShapeDtypeStruct((2, 2), np.float32)}}
    state = jax.eval_shape(system.init, jax.random.key(0), batch)
    if system.update is not None:
        jax.eval_shape(system.update, state, jax.random.key(0), batch)
    jax.eval_shape(system.embed, state, wave)


def labelled_groups(clips: Clips, group_by: str, label: str) -> Iterator[tuple[str, np.ndarray, classes.Labels]]:
    """(name, own (N,) bool, labels) of each group that has something to score; says what was made of the labels.

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
        yield name, own, labels


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


def embeddings(
    config, folder: Path, clips: Clips, store: Store, labels, rows: np.ndarray, mesh
) -> dict[str, np.ndarray]:
    """embed's dict over the clips `rows`: read where a finished run left it, else from a network trained now."""
    file = folder / "embeddings" / "embeddings.npz"
    if file.exists():
        try:
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            logging.warning("%s cannot be read (%s): embedding anew", file, error)
    name = folder.name
    system = train.make(config, len(labels.names))
    settings = config["train"]
    folder.mkdir(parents=True, exist_ok=True)
    logging.info("%s: training on %d clips, %d classes", name, labels.rows.sum(), len(labels.names))
    with reporter(f"{name}: compiling") as report:

        def on_chunk(step, stop, metrics, clips_per_s):
            values = "  ".join(f"{k} {metrics[k]:.{n}f}" for k, n in (("loss", 3), ("accuracy", 2)) if k in metrics)
            report(step, stop, f"{name}: step {step}  {values}  {clips_per_s:.0f} clips/s")

        state = train.train(
            system,
            store,
            sampling.uniform(labels.rows, batch_size=settings["batch_size"]),
            train.sample(store, labels.rows),
            folder,
            steps=settings["steps"],
            chunk=settings["chunk"],
            checkpoint_every=settings["checkpoint_every"],
            seed=config["seed"],
            mesh=mesh,
            progress=on_chunk,
        )
    if warning := train.collapse_warning(folder, len(labels.names)):
        logging.warning("warning: %s: %s", name, warning)
    with reporter(f"{name}: embedding") as report:
        e = evaluate.embed_clips(
            system,
            state,
            store,
            rows,
            units=config["score"]["units"],
            mesh=mesh,
            progress=lambda done, total: report(done, total, f"{name}: embedded {done} of {total} clips"),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".tmp"), "wb") as temporary:
        np.savez(temporary, **e)
    os.replace(file.with_suffix(".tmp"), file)
    return e


def score_columns(scorer: str, clips: Clips, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of scores.csv for the clips that have a score."""
    known = ~np.isnan(scores)
    clips = clips[known]
    return {
        "scorer": np.full(len(clips), scorer),
        "member": np.zeros(len(clips), int),
        "machine": clips.machine,
        "section": clips.section,
        "domain": clips.domain,
        "split": clips.split,
        "file": np.array(rundir.file_names(clips)),
        "label": clips.is_anomaly,
        "score": scores[known],
    }
