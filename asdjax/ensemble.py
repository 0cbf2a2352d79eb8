"""An ensemble of systems: each is a run of its own, and their scores are fused.

Its config is that of a run without the sections in which the members differ, and with

    ensemble = {name: dict(run=folder, SECTION=..., ...)}

`run` is the member's folder, beside the ensemble's unless it is absolute: what is not trained there is trained, and all
of it is scored anew. 'scorers' among the sections stands for score.scorers. Scorers are called NAME/SCORER, and
`score.fusions` makes one of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asdjax import checks, outcome, parallel, rundir, scoretable, steplog, transfer
from asdjax import run as single
from asdjax.core import UsageError
from asdjax.results import Result, fusion


def run(config: Mapping[str, Any], workdir: Path) -> list[Result]:
    """Trains the members that are not there, fuses all of their scores, writes the run directory, prints the result.

    Args:
        config: plain nested dict, see the module's head.
        workdir: created where absent. Of several processes the first alone writes there.

    Returns:
        the rows of results.csv.
    """
    began = time.perf_counter()
    if not isinstance(config["ensemble"], Mapping) or not config["ensemble"]:
        raise UsageError(f"config.ensemble is {config['ensemble']!r}; expected {{name: dict(run=FOLDER, ...)}}")
    members = {name: of_member(config, name) for name in config["ensemble"]}
    check(config, members)
    workdir = Path(workdir)
    folders = {name: workdir.parent / config["ensemble"][name]["run"] for name in members}
    if parallel.is_first():
        check_folders(config, workdir, members, folders)
    tables = {}
    for name, member in members.items():
        logging.info("%s, in %s", name, folders[name])
        single.run(member, folders[name])
        if parallel.is_first():
            tables[name] = own_members(scoretable.read_scores(folders[name] / "scores.csv"))
    if not parallel.is_first():
        return []
    scores = single.with_joined(fusion.joined(tables, prefix=True), config["score"])
    workdir.mkdir(parents=True, exist_ok=True)
    rundir.write_json(workdir / "config.json", config)
    rows, notes = outcome.write(workdir, scores, config["data"]["year"])
    single.say(rows, config, test_machines(scores))
    few = {name: steplog.hardly_trained(folders[name], member["init_from"]) for name, member in members.items()}
    for note in (*notes, *(f"{name}: {said}" for name, said in few.items() if said)):
        logging.info("note: %s", note)
    logging.info("done in %.0f s; everything is in %s", time.perf_counter() - began, workdir)
    return rows


def of_member(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of a member's own run."""
    if "score" not in config:
        raise UsageError("config lacks score")
    if not isinstance(own := config["ensemble"][name], Mapping) or not isinstance(own.get("run"), str):
        raise UsageError(f"config.ensemble.{name} is {own!r}; expected dict(run=FOLDER, SECTION=..., ...)")
    own = {section: value for section, value in own.items() if section != "run"}
    base = {section: value for section, value in config.items() if section != "ensemble"}
    scorers = own.pop("scorers", base["score"]["scorers"])
    return {**base, **own, "score": {**base["score"], "scorers": scorers, "fusions": ()}}


def check(config: Mapping[str, Any], members: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UsageError for a member that cannot be built, or a fusion of scorers that are not there."""
    names = []
    for name, member in members.items():
        try:
            checks.check(member)
        except UsageError as error:
            raise UsageError(f"config.ensemble.{name}: {error}") from error
        names += [f"{name}/{spec['name']}" for spec in member["score"]["scorers"]]
    if config["score"]["selections"] or not config["score"]["fusions"]:
        raise UsageError(
            "config.score: an ensemble needs a rule of fusions, by which to make one score, and no selections"
        )
    fusion.check(config["score"]["fusions"], names)


def check_folders(
    config: Mapping[str, Any],
    workdir: Path,
    members: Mapping[str, Mapping[str, Any]],
    folders: Mapping[str, Path],
) -> None:
    """Raises UsageError where a folder is another run's, or has nothing to start from: before the first is trained."""
    taken = {workdir.resolve(): "the ensemble itself"}
    for name, folder in folders.items():
        if other := taken.get(folder.resolve()):
            raise UsageError(f"config.ensemble.{name}.run: {folder} is the folder of {other}; expected one of its own")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").exists():
            raise UsageError(f"config.ensemble.{name}.run: {folder} holds something else; expected a folder of its own")
        taken[folder.resolve()] = name
    rundir.check(workdir, config)
    for name, member in members.items():
        try:
            rundir.check(folders[name], member)
            transfer.check(member["init_from"], folders[name])
        except UsageError as error:
            said = str(error).replace("--workdir", f"config.ensemble.{name}.run")  # which is its folder here
            raise UsageError(f"config.ensemble.{name}: {said}") from error


def own_members(scores: scoretable.Scores) -> scoretable.Scores:
    """Scores without the means over members, which are taken anew of the fused ones."""
    kept = scores["member"] != scoretable.ENSEMBLE
    return {name: column[kept] for name, column in scores.items()}


def test_machines(scores: scoretable.Scores) -> np.ndarray:
    """The machine of every test clip."""
    rows = next(iter(next(iter(scoretable.systems(scores)))[1].values()))  # of one scorer's one member
    return scores["machine"][rows[scores["split"][rows] == "test"]]
