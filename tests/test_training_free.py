"""The training-free baseline that every run prints beside its own numbers."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny
import trees

from asdjax import run, scoretable, training_free
from asdjax.core import InputError

ROOT = Path(__file__).parents[1]


def default():
    spec = importlib.util.spec_from_file_location("statistics_config", ROOT / "configs" / "statistics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def test_it_is_the_default_of_its_config():
    config = default()
    assert tuple(config["score"]["scorers"]) == training_free.SCORERS
    assert config["score"]["fusions"] == ({"name": "fusion", "scorers": (), "how": "mean"},)


def scores(workdir, scorer):
    with open(workdir / "scores.csv") as file:
        return {(r["split"], r["file"]): float(r["score"]) for r in csv.DictReader(file) if r["scorer"] == scorer}


def test_beside_a_run_it_gives_the_numbers_of_its_own(tmp_path):
    """configs/statistics.py on the same clips; a network with two members has one such baseline."""
    data = trees.hums(tmp_path / "data")
    common = {"data.root": str(data), "data.cache": str(tmp_path / "cache")}
    beside = {"train.steps": 2, "train.members": 2, "score.training_free": True}
    run.run(tiny.config(**common, **beside), tmp_path / "network")
    alone = default()
    alone["data"] |= {"root": str(data), "cache": str(tmp_path / "cache"), "sample_rate": tiny.SR}
    alone["frontend"]["sample_rate"] = tiny.SR
    run.run(alone, tmp_path / "alone")
    found, expected = scores(tmp_path / "network", scoretable.TRAINING_FREE), scores(tmp_path / "alone", "fusion")
    assert found.keys() == expected.keys() and len(found) == 46
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=1e-9), key
    with open(tmp_path / "network" / "results.csv") as file:
        rows = [r for r in csv.DictReader(file) if r["scorer"] == scoretable.TRAINING_FREE]
    assert {r["member"] for r in rows} == {"0"} and any(r["metric"] == "official score" for r in rows)


def test_where_it_cannot_be_fitted_the_run_goes_on(monkeypatch, caplog):
    def refuse(*_):
        raise InputError("too few clips")

    monkeypatch.setattr(training_free, "scores", refuse)
    given = {"score": np.zeros(2)}
    assert run.with_training_free(given, None, None, None, 16000, None) is given
    assert "no training-free baseline beside: too few clips" in caplog.text


@trees.needs_recordings
def test_real_recordings_at_one_level(tmp_path):
    """Loudness alone is at chance; what is left is heard, far above it."""
    config = default()
    config["data"] |= {"root": str(trees.MINI_ASD), "cache": str(tmp_path), "level": "rms"}
    rows = run.run(config, tmp_path / "run")
    found = {(row.scorer, row.machine, row.metric): row.value for row in rows if row.section == ""}
    assert 0.7 < found["fusion", "all", "official score"] < 0.8
    loudness = [row.value for row in rows if row.metric == "rms-only AUC" and row.scorer == "fusion"]
    assert len(loudness) > 3 and np.allclose(loudness, 0.5, atol=0.01)
