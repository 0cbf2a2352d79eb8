"""A run: the folder it lives in, and the way from a config to scores and results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asdjax import evaluate, parallel, results, tables, train
from asdjax.core import Clips, InputError, UsageError
from asdjax.data import audio, dcase, sampling, synth
from asdjax.data import labels as classes
from asdjax.data.feed import Store

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
    check_folder(workdir, config)
    mesh = parallel.data_mesh()
    parallel.check_batch(mesh, config["train"]["batch_size"])
    clips, store, level = load(config["data"])
    claim(workdir, config, clips, store.gain, level)
    columns = []
    for name, own in classes.groups(clips, config["data"]["group_by"]):
        if not (own & clips.is_test).any():
            logging.info("%s: no test clips, hence no network of its own", name)
            continue
        labels = classes.class_labels(clips, own, config["data"]["label"])
        if labels.note:
            logging.info("%s: %s", name, labels.note)
        folder = workdir / "groups" / name
        rows = np.flatnonzero(own & (clips.is_train | clips.is_test))
        e = embeddings(config, folder, clips, store._replace(label={"class": labels.onehot}), labels, rows, mesh)
        e["own_class"] = labels.own_class[rows]
        scorers = config["score"]["scorers"]
        for scorer, scores in evaluate.score_group(clips[rows], e, level[rows], scorers, folder):
            columns.append(score_columns(scorer, clips[rows], scores))
    if not columns:
        raise InputError(f"{config['data']['root']}: no test clips to score; expected MACHINE/test/*.wav")
    scores = results.concatenate(columns)
    for selection in config["score"]["selections"]:
        scores = results.concatenate([scores, results.select(scores, **selection)])
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
    results.write_submission(workdir / "submission", scores, year)
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
    for name, least in (("steps", 1), ("batch_size", 2), ("chunk", 0), ("checkpoint_every", 1)):
        if config["train"][name] < least:
            raise UsageError(f"config.train.{name} is {config['train'][name]}; it must be at least {least}")
    evaluate.check_scorers(config["score"]["scorers"], config["score"]["selections"], year.gives_test_domain)
    train.make(config, n_classes=2)


def check_folder(workdir: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError where the folder holds a run of another config (but for `score`), naming what differs."""
    file = workdir / "config.json"
    if file.exists():
        try:
            old = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(
                f"{file}: not a config of this program ({error}); delete the folder or take another"
            ) from error
        before, after = flatten(old), flatten(json.loads(json.dumps(config)))
        differing = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
        lasting = [k for k in differing if not k.startswith("score.") and k != "data.cache"]
        if lasting:
            changes = "; ".join(f"{k} was {before.get(k)!r}, is {after.get(k)!r}" for k in lasting)
            raise UsageError(f"{workdir} holds a run of another config: {changes}. Take another --workdir or delete it")


def claim(workdir: Path, config: Mapping[str, Any], clips: Clips, *sound: np.ndarray) -> None:
    """Writes config.json, data.json and environment.json; only now, so that a mistyped folder of data claims nothing.

    Raises:
        UsageError: the recordings are not those that the run in this folder began with.
    """
    names = "\n".join(f"{m}/{s}/{Path(p).name}" for m, s, p in zip(clips.machine, clips.split, clips.path, strict=True))
    digest = hashlib.blake2b(names.encode(), digest_size=16)
    for array in sound:  # levels change where the sound does
        digest.update(array.tobytes())
    data = {"clips": len(clips), "hash": digest.hexdigest()}
    file = workdir / "data.json"
    if file.exists() and (old := json.loads(file.read_text())) != data:
        raise UsageError(
            f"{workdir} began with other recordings ({old.get('clips')} clips, now {len(clips)}); "
            "take another --workdir or delete it"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config)
    write_json(file, data)
    versions = {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax", "numpy", "librosa", "scikit-learn")}
    environment = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "versions": {"asdjax": metadata.version("asdjax"), **versions},
    }
    write_json(workdir / "environment.json", environment)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}, 'c': [2]} -> {'a.b': 1, 'c[0]': 2}"""
    if isinstance(tree, dict):
        items = [(f"{prefix}.{k}" if prefix else k, v) for k, v in tree.items()]
    elif isinstance(tree, list):
        items = [(f"{prefix}[{i}]", v) for i, v in enumerate(tree)]
    else:
        return {prefix: tree}
    return {k: v for key, value in items for k, v in flatten(value, key).items()}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


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
            text = f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}  {clips_per_s:.0f} clips/s"
            report(step, stop, f"{name}: step {step}  {text}")

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
        "file": np.array([Path(p).name for p in clips.path]),
        "label": clips.is_anomaly,
        "score": scores[known],
    }


@contextlib.contextmanager
def reporter(text: str) -> Iterator:
    """Progress on stderr: yields report(done, total, text). A bar on a terminal, else a line every tenth or 20 s."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        first, last = [], [0.0, time.monotonic()]

        def line(done, total, text):
            now = time.monotonic()
            first[:] = first or [done, now]  # the first call holds the compilation, which says nothing of the rest
            if done == total or done / total - last[0] >= 0.1 or now - last[1] > 20:
                last[:] = done / total, now
                left = (now - first[1]) / max(done - first[0], 1) * (total - done)
                logging.info("%s  (%d %%, %.0f s left)", text, 100 * done // total, left)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
