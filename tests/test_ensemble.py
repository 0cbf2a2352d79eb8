import copy
import csv
import logging

import pytest
import tiny
import trees

from asdjax import ensemble, run
from asdjax.core import UsageError

RULES = (
    {"name": "total", "scorers": ("small/knn", "large/knn"), "how": "sum"},
    {"name": "squared", "scorers": ("total", "total_again"), "how": "product"},
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.hums(tmp_path_factory.mktemp("data"))


def settings(data, **changes):
    config = tiny.config(**{"data.root": str(data), "data.cache": str(data / "cache"), "train.steps": 2, **changes})
    small = config.pop("backbone")
    del config["init_from"]  # as in configs/, the members have it
    config["ensemble"] = {
        "small": {"run": "first", "backbone": small, "init_from": ""},
        "large": {"run": "second", "backbone": {**small, "embedding": 12}, "init_from": ""},
    }
    config["score"]["fusions"] = (
        RULES[0],
        {"name": "scaled", "scorers": (), "how": "mean"},
        {"name": "twice", "scorers": ("total", "large/knn"), "how": "product"},
    )
    return config


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def scores(path, scorer, member="0"):
    rows = [r for r in table(path) if r["scorer"] == scorer and r["member"] == member]
    return {(r["machine"], r["split"], r["file"]): float(r["score"]) for r in rows}


def test_members_are_runs_and_their_scores_are_fused(data, tmp_path, caplog, capsys):
    config = settings(data, **{"train.members": 2})
    with caplog.at_level(logging.INFO):
        rows = ensemble.run(config, tmp_path / "both")
    assert "small, in" in caplog.text and "training on" in caplog.text
    assert "note: large: trained for 2 steps only: these are nearly the scores of an untrained network" in caplog.text
    own = tmp_path / "both" / "scores.csv"
    for member in ("0", "1"):
        small, large = (scores(tmp_path / name / "scores.csv", "knn", member) for name in ("first", "second"))
        total, twice = scores(own, "total", member), scores(own, "twice", member)
        assert len(total) == len(small) == 46 and small != large
        for clip, score in total.items():
            assert score == pytest.approx(small[clip] + large[clip], rel=1e-12)
            assert twice[clip] == pytest.approx(score * large[clip], rel=1e-12)
    mean = scores(own, "total", "ensemble")
    one, two = (scores(own, "total", member) for member in "01")
    assert all(mean[clip] == pytest.approx((one[clip] + two[clip]) / 2, rel=1e-12) for clip in one)
    assert {r.scorer for r in rows} >= {"small/knn", "large/lof", "total", "scaled", "twice"}
    assert (tmp_path / "both" / "submission" / "total_ensemble").is_dir()
    assert "total" in capsys.readouterr().out

    caplog.clear()
    with caplog.at_level(logging.INFO):
        ensemble.run(config, tmp_path / "both")
        assert "training on" not in caplog.text  # finished runs are read
    another = {**config, "ensemble": {**config["ensemble"], "small": {**config["ensemble"]["small"], "run": "third"}}}
    another["ensemble"]["large"] = {**another["ensemble"]["large"], "optim": {"name": "sgd", "lr": 1e-3}}
    with pytest.raises(UsageError, match=r"ensemble.large: .*second holds a run of another config: optim"):
        ensemble.run(another, tmp_path / "new")
    assert not (tmp_path / "third").exists()  # what a later member stops at is found before the first is trained
    changed = copy.deepcopy(config)
    changed["ensemble"]["large"]["backbone"]["embedding"] = 9
    with pytest.raises(UsageError, match=r"holds a run of another config: ensemble.large.backbone.embedding was 12"):
        ensemble.run(changed, tmp_path / "both")


def test_a_member_is_the_run_that_it_would_be_alone(data, tmp_path):
    config = settings(data)
    ensemble.run(config, tmp_path / "e")
    alone = tiny.config(**{"data.root": str(data), "data.cache": str(data / "cache"), "train.steps": 2})
    run.run(alone, tmp_path / "alone")
    assert scores(tmp_path / "alone" / "scores.csv", "lof") == scores(tmp_path / "first" / "scores.csv", "lof")


def no_run(config):
    del config["ensemble"]["small"]["run"]


def no_members(config):
    config["ensemble"] = "mv2"


def no_dict(config):
    config["ensemble"]["small"] = "first"


def no_rule(config):
    config["score"]["fusions"] = ()


def unknown(config):
    config["score"]["fusions"] = (RULES[1],)


def odd_backbone(config):
    config["ensemble"]["large"]["backbone"]["rows"] = 3
    config["ensemble"]["large"]["backbone"]["name"] = "Nothing"


def itself(config):
    config["ensemble"]["small"]["run"] = "e"


def no_run_there(config):
    config["ensemble"]["small"]["run"] = config["data"]["root"]


def one_folder(config):
    config["ensemble"]["small"]["run"] = "second"


def selections(config):
    config["score"]["selections"] = ({"name": "s", "source": "knn", "target": "knn"},)


def nothing_to_start_from(config):
    config["ensemble"]["large"]["init_from"] = "nowhere"


@pytest.mark.parametrize(
    "change, message",
    [
        (no_run, r"config.ensemble.small is \{.*expected dict\(run=FOLDER"),
        (no_members, r"config.ensemble is 'mv2'; expected \{name"),
        (no_dict, "config.ensemble.small is 'first'; expected dict"),
        (no_rule, "needs a rule of fusions"),
        (unknown, "no scorer 'total'"),
        (odd_backbone, "config.ensemble.large: .*has no 'Nothing'"),
        (itself, "is the folder of the ensemble itself"),
        (no_run_there, r"config.ensemble.small.run: .*data\d holds something else"),
        (one_folder, r"config.ensemble.large.run: .*second is the folder of small"),
        (selections, "no selections"),
        (nothing_to_start_from, r"config.ensemble.large: config.init_from: nowhere is not there"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_mistakes_are_told_before_anything_is_trained(data, tmp_path, change, message):
    config = copy.deepcopy(settings(data))
    change(config)
    with pytest.raises(UsageError, match=message):
        ensemble.run(config, tmp_path / "e")
    assert not list(tmp_path.iterdir())
