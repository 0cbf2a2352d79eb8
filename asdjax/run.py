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

import numpy as np

from asdjax import (
    by_machine,
    checks,
    comparison,
    evaluate,
    learn,
    outcome,
    parallel,
    pictures,
    plan,
    results,
    rundir,
    scoretable,
    steplog,
    tables,
    timing,
    training_free,
    transfer,
)
from asdjax.core import Clips, InputError
from asdjax.data import audio, dcase, feed, synth
from asdjax.data import labels as classes
from asdjax.data.feed import Store
from asdjax.results import fusion


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
    checks.check(config)
    rundir.check(workdir, config)
    transfer.check(config["init_from"], workdir)
    mesh = parallel.data_mesh()
    with watch.phase("load"):
        clips, store, level = parallel.in_turn(lambda: load(config["data"]))
        groups = list(labelled_groups(config, clips))
        checks.check_groups(groups, store.wave.shape[1], config["score"])
        named = set(config["by_machine"]).union(*(s.get("by_machine", ()) for s in config["score"]["selections"]))
        if absent := sorted(named - set(clips.machine.tolist())):
            logging.info("config.by_machine and selections: there are no clips of %s", ", ".join(absent))
        rundir.claim(workdir, config, clips, store.gain, level)
        store = feed.on_devices(store, config["data"]["resident"], mesh, "clips")
    if (config["by_machine"] or config["score"]["selections"]) and groups[0].machine and parallel.is_first():
        plan.print_plan({group.machine: group.config for group in groups}, sections_of(clips))
    columns = scores_of_groups(config, workdir, groups, clips, store, level, mesh, watch)
    scores = with_joined(scoretable.concatenate(list(columns)), config["score"])
    if config["score"]["training_free"]:
        with watch.phase("training-free"):
            scores = with_training_free(scores, clips, store, level, config["data"]["sample_rate"], mesh)
    rundir.write_json(workdir / "config.json", config)  # `score` may be another than before
    with watch.phase("report"):
        rows, notes = outcome.write(workdir, scores, config["data"]["year"])
        if parallel.is_first():
            say(rows, config, clips.machine[clips.is_test])
    for note in filter(None, [*notes, steplog.hardly_trained(workdir, config["init_from"])]):
        logging.info("note: %s", note)
    rundir.write_json(workdir / "timing.json", watch.summary())
    return rows


def scores_of_groups(
    config, workdir: Path, groups: list[learn.Group], clips: Clips, store: Store, level: np.ndarray, mesh, watch
) -> Iterator[scoretable.Scores]:
    """The scores of every group by every member and scorer, and once its loudness."""
    rules = [rule for rule in config["score"]["fusions"] if rule["how"] not in fusion.RAW]  # a sum is of all or none
    together = config["train"]["groups"] == "together"
    for some in alike(groups) if together else [[group] for group in groups]:
        scorers = some[0].config["score"]["scorers"]
        fused = {name for rule in rules for name in rule["scorers"] or [spec["name"] for spec in scorers]}
        for group, networks in learn.learnt(some[0].config, workdir, some, clips, store, mesh, watch):
            rows = group.rows
            for member, (folder, e) in enumerate(networks):
                if member == 0 and parallel.is_first():
                    with watch.phase("pictures"):
                        draw(folder / "embeddings" / "tsne.png", e, clips[rows], group.name, config["score"]["tsne"])
                e["own_classes"] = group.labels.own_classes[rows]
                with watch.phase("score"):
                    for name, scores in evaluate.score_group(clips[rows], e, level[rows], scorers, folder, fused=fused):
                        if name != scoretable.RMS or member == 0:  # loudness has no members
                            yield scoretable.of_clips(name, member, clips[rows], scores)


def draw(file: Path, e: Mapping[str, np.ndarray], clips: Clips, name: str, most: int) -> None:
    """The picture of a group's embeddings, each clip's the mean over its units; says where there is none."""
    for old in (file, file.with_suffix(".csv")):
        old.unlink(missing_ok=True)
    if not most:
        return
    if "embedding" not in e:
        logging.info("%s: no picture of embeddings, the system gives none", name)
    elif said := pictures.tsne(file, e["embedding"].mean(1), clips, most=most, title=f"{name}, t-SNE of embeddings"):
        logging.info("%s: %s", name, said)


def alike(groups: list[learn.Group]) -> list[list[learn.Group]]:
    """The groups, those of one config together."""
    found: list[list[learn.Group]] = []
    for group in groups:
        same = next((own for own in found if own[0].config == group.config), None)
        if same is None:
            found.append([group])
        else:
            same.append(group)
    return found


def sections_of(clips: Clips) -> dict[str, tuple[list[str], list[str]]]:
    """The sections of each machine's training clips and of its test clips."""
    return {
        machine: tuple(np.unique(clips.section[(clips.machine == machine) & part]).tolist() for part in parts)
        for parts in [(clips.is_train, clips.is_test)]
        for machine in np.unique(clips.machine).tolist()
    }


def with_joined(scores: scoretable.Scores, settings: Mapping[str, Any]) -> scoretable.Scores:
    """The scores and those that are made of them: selections, fusions, ensembles."""
    single = [name for name, _ in scoretable.systems(scores) if name not in scoretable.BESIDE]
    for selection in settings["selections"]:
        scores = scoretable.concatenate([scores, results.select(scores, **selection)])
    for rule in settings["fusions"]:
        rule = {**rule, "scorers": rule["scorers"] or single}  # (): of no selection or fusion
        try:
            scores = scoretable.concatenate([scores, fusion.fuse(scores, **rule)])
        except InputError as error:  # the others' scores are not lost with it
            logging.warning("warning: no scores of %s: %s", rule["name"], error)
    return scoretable.concatenate([scores, scoretable.ensemble(scores)])


def with_training_free(scores, clips: Clips, store: Store, level: np.ndarray, sample_rate: int, mesh):
    """The scores and those of the training-free baseline, or a warning why there are none."""
    try:
        beside = training_free.scores(clips, store, level, sample_rate, mesh)
    except InputError as error:
        logging.warning("warning: no %s baseline beside: %s", scoretable.TRAINING_FREE, error)
        return scores
    return scoretable.concatenate([scores, beside])


def say(rows: list[results.Result], config: Mapping[str, Any], machines: np.ndarray) -> None:
    """Prints the tables: in detail the fusions where there are some, since they are made of all the rest.

    `machines` are those of the test clips, one each.
    """
    year, detail = config["data"]["year"], [rule["name"] for rule in config["score"]["fusions"]]
    tables.print_tables(rows, year, detail=detail)
    if config["data"]["root"]:  # the embedded machines only share their names with those of the challenge
        shown = [row for row in rows if not detail or row.scorer in detail]
        comparison.print_published(shown, year, config["data"]["test_on"], Counter(machines.tolist()))


def labelled_groups(config: Mapping[str, Any], clips: Clips) -> Iterator[learn.Group]:
    """Each group that has something to score; says what was made of the labels.

    Raises:
        InputError: a group that cannot learn, or none to score.
    """
    found = classes.groups(clips, config["data"]["group_by"])
    if not clips.is_test.any():
        raise InputError("no test clips to score; expected MACHINE/test/*.wav")
    for name, own in found:
        if not (own & clips.is_test).any():
            logging.info("%s: no test clips, hence no network of its own", name)
            continue
        try:
            labels = classes.class_labels(clips, own, config["data"]["label"])
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
        if labels.note:
            logging.info("%s: %s", name, labels.note)
        rows = np.flatnonzero(own & (clips.is_train | clips.is_test))
        machine = str(clips.machine[rows[0]]) if config["data"]["group_by"] != "all" else ""
        yield learn.Group(name, machine, labels, rows, by_machine.config_of(config, machine))


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
