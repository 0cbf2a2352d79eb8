import csv
import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import tiny
import trees
from scipy import special

from asdjax import checks, chunks, ensemble, evaluate, learn, parallel, run, rundir, scoretable, steplog, tagging, train
from asdjax.core import UsageError
from asdjax.data import feed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.hums(tmp_path_factory.mktemp("data"))


def settings(data, **changes):
    return tiny.config(**{"data.root": str(data), "data.cache": str(data / "cache"), **changes})


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "tiny"
    return workdir, run.run(settings(data), workdir)


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def value(workdir, **wanted):
    found = [row for row in table(workdir / "results.csv") if all(row[k] == v for k, v in wanted.items())]
    assert len(found) == 1, f"{wanted}: {len(found)} rows"
    return float(found[0]["value"])


def test_the_run_directory_is_complete(finished):
    workdir, rows = finished
    for name in ("config.json", "environment.json", "scores.csv", "results.csv", "thresholds.json",
                 "groups/all/metrics.jsonl",
                 "groups/all/embeddings/embeddings.npz", "groups/all/detectors/lof/fan_00.npz",
                 "submission/knn/anomaly_score_fan_section_00_test.csv",
                 "submission/knn/decision_result_pump_section_01_test.csv"):  # fmt: skip
        assert (workdir / name).exists(), name
    assert list((workdir / "groups/all/checkpoints").glob("8"))
    scores = table(workdir / "scores.csv")
    assert {row["scorer"] for row in scores} == {"knn", "lof", "rms-only"}
    assert len(scores) == 3 * (22 + 24)  # training and test clips of both machines
    assert len(table(workdir / "results.csv")) == len(rows)


def test_the_numbers_are_those_of_the_scores(finished):
    """AUC and the official score of 2023, from scores.csv by scikit-learn."""
    from sklearn.metrics import roc_auc_score

    workdir, _ = finished
    rows = [r for r in table(workdir / "scores.csv") if r["scorer"] == "knn" and r["split"] == "test"]

    def auc(machine, domain, **kwargs):
        some = [r for r in rows if r["machine"] == machine and (r["label"] == "1" or r["domain"] in domain)]
        return roc_auc_score([int(r["label"]) for r in some], [float(r["score"]) for r in some], **kwargs)

    expected = {
        ("fan", "source"): auc("fan", "source"),
        ("fan", "target"): auc("fan", "target"),
        ("pump", "source"): auc("pump", "source"),
    }
    sections = {"fan": "00", "pump": "01"}
    for (machine, domain), number in expected.items():
        place = {"machine": machine, "section": sections[machine], "domain": domain}
        assert value(workdir, scorer="knn", metric="AUC", **place) == pytest.approx(number, rel=1e-12)
    paucs = [auc("fan", ("source", "target"), max_fpr=0.1), auc("pump", ("source", "target"), max_fpr=0.1)]
    values = [*expected.values(), *paucs]  # pump has no target clips: five values
    official = len(values) / sum(1 / max(v, np.finfo(float).eps) for v in values)
    assert value(workdir, scorer="knn", machine="all", metric="official score") == pytest.approx(official, rel=1e-12)


def test_it_tells_a_strange_hum_from_a_known_one(finished):
    assert value(finished[0], scorer="knn", machine="fan", section="00", domain="source", metric="AUC") > 0.6


@pytest.fixture(scope="module")
def machines_with_members(data, tmp_path_factory):
    """Two members of a network for each machine, all four in one program."""
    workdir = tmp_path_factory.mktemp("members") / "r"
    changes = {"data.group_by": "machine", "train.groups": "together", "train.members": 2, "train.steps": 4}
    return workdir, run.run(settings(data, **changes), workdir), changes


def test_members_and_their_ensemble_are_scored(machines_with_members):
    from sklearn.metrics import roc_auc_score

    workdir, _, _ = machines_with_members
    rows = [r for r in table(workdir / "scores.csv") if r["scorer"] == "knn" and r["split"] == "test"]
    rows = [r for r in rows if r["machine"] == "fan" and (r["domain"] == "source" or r["label"] == "1")]
    scores = {m: {r["file"]: float(r["score"]) for r in rows if r["member"] == m} for m in ("0", "1", "ensemble")}
    assert scores["0"] != scores["1"]
    for file, score in scores["ensemble"].items():
        assert score == pytest.approx((scores["0"][file] + scores["1"][file]) / 2)
    label = {r["file"]: int(r["label"]) for r in rows}
    place = {"scorer": "knn", "machine": "fan", "section": "00", "domain": "source", "metric": "AUC"}
    auc = {}
    for member, found in scores.items():
        auc[member] = roc_auc_score([label[file] for file in found], list(found.values()))
        assert value(workdir, member=member, **place) == pytest.approx(auc[member])
    assert value(workdir, member="mean", **place) == pytest.approx((auc["0"] + auc["1"]) / 2)
    assert value(workdir, member="std", **place) == pytest.approx(np.std([auc["0"], auc["1"]], ddof=1))


def test_networks_trained_together_are_those_trained_one_by_one(machines_with_members, data, tmp_path):
    """Up to rounding: fan has three classes, pump two, so that pump's network is padded."""
    workdir, _, changes = machines_with_members
    run.run(settings(data, **{**changes, "train.groups": "one_by_one"}), tmp_path / "r")
    for machine in ("fan", "pump"):
        for member in ("member_0", "member_1"):
            log = Path("groups", machine, member, "metrics.jsonl")
            together, alone = (
                [json.loads(line)["loss"] for line in (folder / log).read_text().splitlines()]
                for folder in (workdir, tmp_path / "r")
            )
            np.testing.assert_allclose(together, alone, rtol=1e-4)


AUTOENCODER = {
    "system": {"name": "reconstruct"}, "data.bank": "features", "data.label": "none", "data.group_by": "machine",
    "cut": {"name": "cut", "width": 5, "hop": 1}, "wave_ops": (), "head": {}, "train.steps": 0, "train.epochs": 0.2,
    "backbone": {"name": "Autoencoder", "widths": (16, 4, 16)}, "optim": {"name": "adam", "schedule": "constant"},
    "score.scorers": (
        {"name": "mse", "fit": "section", "detector": {"name": "passthrough"}},
        {"name": "mahala", "fit": "section", "detector": {"name": "selective_mahalanobis"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("resident", [True, False])
def test_autoencoders_trained_together_are_those_trained_one_by_one(data, tmp_path, resident, caplog):
    """From a bank of features. fan has 12 training clips of 59 vectors, pump 10: not the same number of steps."""
    with caplog.at_level("INFO"):
        for groups in ("together", "one_by_one"):
            changes = {**AUTOENCODER, "train.groups": groups, "data.resident": resident}
            run.run(settings(data, **changes), tmp_path / groups)
    for machine, steps in (("fan", 10), ("pump", 8)):  # a fifth of 708 and 590 vectors in 16s, in whole chunks of 2
        together, alone = (
            [json.loads(line)["loss"] for line in (tmp_path / how / "groups" / machine / "metrics.jsonl").open()]
            for how in ("together", "one_by_one")
        )
        assert len(alone) == steps
        np.testing.assert_allclose(together, alone, rtol=1e-5)
    rows = [{(r["scorer"], r["file"]): float(r["score"]) for r in table(tmp_path / how / "scores.csv")}
            for how in ("together", "one_by_one")]  # fmt: skip
    assert rows[0].keys() == rows[1].keys() and {scorer for scorer, _ in rows[0]} == {"mse", "mahala", "rms-only"}
    for key, score in rows[0].items():
        assert score == pytest.approx(rows[1][key], rel=1e-4), key


def test_windows_of_a_bank_of_features_are_classified(data, tmp_path):
    """The same network learns from features made once."""
    changes = {"data.bank": "features", "wave_ops": (), "train.steps": 4}
    rows = run.run(settings(data, **changes), tmp_path / "r")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "r/groups/all/metrics.jsonl").open()]
    assert len(losses) == 4 and np.isfinite(losses).all() and rows


def test_scores_of_classes_of_several_attributes(data, tmp_path):
    """fan has one section: its classes are attributes, of which the likeliest is taken, unit by unit."""
    scorer = {"name": "own", "fit": "section", "detector": {"name": "log_softmax", "form": "neglog"}}
    changes = {"data.group_by": "machine", "data.label": "section", "train.steps": 2, "score.scorers": (scorer,)}
    run.run(settings(data, **changes), tmp_path / "r")
    rows = [r for r in table(tmp_path / "r/scores.csv") if r["scorer"] == "own" and r["machine"] == "fan"]
    assert len(rows) == 28
    with np.load(tmp_path / "r/groups/fan/embeddings/embeddings.npz") as e:
        expected = -special.log_softmax(e["logits"].astype(float), -1).max(-1).mean(1)
    np.testing.assert_allclose([float(r["score"]) for r in rows], expected, rtol=1e-5)


def test_scores_of_classes_need_classes_before_anything_is_trained(tmp_path):
    """A section of the test alone is none of the classes."""
    trees.write_machine(tmp_path / "d", "fan", 300)
    trees.write_machine(tmp_path / "d", "fan", 500, section="01")
    for file in (tmp_path / "d/fan/train").glob("section_01*"):
        file.unlink()
    scorer = {"name": "own", "fit": "section", "detector": {"name": "log_softmax"}}
    changes = {"data.group_by": "machine", "data.label": "section", "score.scorers": (scorer,)}
    with pytest.raises(UsageError, match=r"'own' of fan: .*no class"):
        run.run(settings(tmp_path / "d", **changes), tmp_path / "r")
    assert not (tmp_path / "r").exists()


BY_MACHINE = {
    "pump": {
        "frontend": {"name": "spectrogram", "win": 64, "hop": 64}, "sampler": {"name": "domain_mixed", "n_target": 2},
        "head": {"name": "Linear", "loss": "focal"}, "feature_ops": ({"name": "mixup", "p": 1.0, "lam": "batch"},),
        "scorers": ({"name": "mean", "fit": "section", "detector": {"name": "cosine_mean"}},),
    },
    "valve": {  # which there is not
        "scorers": ({"name": "other", "fit": "section", "detector": {"name": "cosine_mean"}},),
    },
}  # fmt: skip
SUBMISSION = {
    "name": "submission", "source": "lof", "target": "lof",
    "by_machine": {"pump": {"source": "mean", "target": "mean"}, "valve": {"source": "other", "target": "other"}},
}  # fmt: skip


def test_each_machine_may_have_a_system_of_its_own(data, tmp_path, caplog, capsys):
    """fan's networks are those of a run without by_machine, pump's those of a run with its sections."""
    base = {"data.group_by": "machine", "train.steps": 4, "data.bank": "features", "wave_ops": ()}
    mixed = {**base, "by_machine": BY_MACHINE, "score.selections": (SUBMISSION,)}
    own = {k: v for k, v in BY_MACHINE["pump"].items() if k != "scorers"}
    runs = {
        "one_by_one": mixed,
        "together": {**mixed, "train.groups": "together"},
        "base": base,
        "own": {**base, **own, "score.scorers": BY_MACHINE["pump"]["scorers"]},
    }
    scores = {}
    for name, changes in runs.items():
        with caplog.at_level("INFO"):
            run.run(settings(data, **changes), tmp_path / name)
        scores[name] = table(tmp_path / name / "scores.csv")
        if name == "one_by_one":
            assert "pump: there are no training clips of the target domain" in caplog.text
            assert "there are no clips of valve" in caplog.text
            assert "focal" in capsys.readouterr().out  # what each machine gets

    def of(run_name, scorer, machine):
        rows = [r for r in scores[run_name] if r["scorer"] == scorer and r["machine"] == machine]
        return {r["file"]: float(r["score"]) for r in rows}

    for groups in ("one_by_one", "together"):
        assert {(r["scorer"], r["machine"]) for r in scores[groups]} == {
            ("knn", "fan"), ("lof", "fan"), ("mean", "pump"), ("submission", "fan"), ("submission", "pump"),
            ("rms-only", "fan"), ("rms-only", "pump"),
        }  # fmt: skip
        for there, scorer, machine in (("base", "lof", "fan"), ("own", "mean", "pump")):
            expected = pytest.approx(of(there, scorer, machine), rel=1e-4)
            assert of(groups, scorer, machine) == expected and of(groups, "submission", machine) == expected
    for machine, section in (("fan", "00"), ("pump", "01")):
        file = tmp_path / f"together/submission/submission/anomaly_score_{machine}_section_{section}_test.csv"
        assert len(file.read_text().splitlines()) == (16 if machine == "fan" else 8)


def test_what_a_network_learns_from_says_the_domain(data):
    """Domain-mixed batches of fan: two of its two target clips in each, which the label tells from the others."""
    config = settings(data, **{"data.group_by": "machine", "sampler": {"name": "domain_mixed", "n_target": 2}})
    clips, store, _ = run.load(config["data"])
    fan, _ = run.labelled_groups(config, clips)
    (network,) = learn.members(config, fan, [Path("fan")], clips, np.arange(len(clips)), store.units)
    np.testing.assert_array_equal(network.label["target"], clips.domain == "target")
    for step in range(20):
        rows = network.sampler(0, step)
        assert network.label["target"][rows].sum() == 2 and set(clips.machine[rows]) == {"fan"}


def test_mixing_across_domains_trains_as_one_network_or_two(data, tmp_path):
    """fan's partners are of the other domain; pump has no target clips. The seeds of two members are those of one."""
    mixup = {"name": "mixup", "p": 1.0, "lam": "batch", "pairing": "cross_domain"}
    changes = {
        "data.group_by": "machine", "sampler": {"name": "domain_mixed", "n_target": 4}, "data.bank": "features",
        "wave_ops": (), "feature_ops": ({"name": "alternate", "ops": ({"name": "fmix"}, mixup)},), "train.steps": 4,
    }  # fmt: skip
    run.run(settings(data, **changes), tmp_path / "one")
    run.run(settings(data, **changes, **{"train.members": 2, "train.groups": "together"}), tmp_path / "two")
    for machine in ("fan", "pump"):
        logs = (tmp_path / "one/groups" / machine, tmp_path / "two/groups" / machine / "member_0")
        one, two = ([json.loads(line)["loss"] for line in open(folder / "metrics.jsonl")] for folder in logs)
        np.testing.assert_allclose(one, two, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by_machine": ()}, r"by_machine is \(\)"),
        (
            {"by_machine": {"pump": {"head": "ArcFace"}}},
            r"by_machine\.pump\.head is 'ArcFace'; expected a dict with a name",
        ),
        ({"by_machine": {"pump": {"sampler": {"n_target": 3}}}}, "expected a dict with a 'name'"),
        ({"by_machine": {"pump": {"cut": {"name": "cut", "width": 900, "hop": 8}}}}, "pump: .*900"),
        (
            {"score.selections": ({**SUBMISSION, "by_machine": {"pump": {"source": "mean"}}},)},
            r"found keys \['source'\]",
        ),
        ({"score.fusions": ({"name": "f", "scorers": ("far", "lof"), "how": "mean"},)}, "far"),
        ({"wave_ops": ({"name": "fmix"},)}, "use feature_ops"),
        ({"data.group_by": "all"}, "group_by='machine'"),
        ({"by_machine": {"pump": {"train": {"steps": 3}}}}, "by_machine.pump has train"),
        ({"by_machine": {"pump": {"head": {"name": "Lin"}}}}, "by_machine.pump: .*no 'Lin'"),
        ({"by_machine": {"pump": {"sampler": {"name": "domain_mixed", "n_target": 99}}}}, "n_target"),
        (
            {"score.scorers": ({"name": "m", "fit": "section", "detector": {"name": "log_softmax_mse"}},)},
            "'m' asks for mse; what the system says of a clip is: embedding, logits",
        ),
        ({"by_machine": {}, "backbone": {"name": "DualPathTransformer"}}, "classify: DualPathTransformer gives more"),
        ({"score.selections": ({**SUBMISSION, "by_machine": {}},)}, "takes lof of pump, which has only mean"),
        ({"score.selections": ({**SUBMISSION, "source": "knnn", "target": "knnn"},)}, "no scorer .*knnn"),
    ],
)
def test_mistakes_in_what_is_for_one_machine_are_told_before_training(data, tmp_path, changes, message):
    config = settings(data, **{"data.group_by": "machine", "by_machine": BY_MACHINE, **changes})
    with pytest.raises(UsageError, match=message):
        run.run(config, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_other_scorers_of_one_machine_are_only_scored_anew(data, tmp_path):
    changes = {"data.group_by": "machine", "train.steps": 2}
    for n in (1, 2):
        scorers = ({"name": "nearest", "fit": "section", "detector": {"name": "knn", "k": n}},)
        run.run(settings(data, **changes, by_machine={"pump": {"scorers": scorers}}), tmp_path / "r")
    with pytest.raises(UsageError, match=r"by_machine\.pump\.head"):
        run.run(settings(data, **changes, by_machine={"pump": {"head": {"name": "Linear"}}}), tmp_path / "r")


def test_scores_of_a_hardly_trained_network_are_called_so(finished, data, caplog):
    with caplog.at_level("INFO"):
        run.run(settings(data), finished[0])
    assert "note: trained for 8 steps only: these are nearly the scores of an untrained network" in caplog.text


def test_how_few_steps_are_told(tmp_path):
    assert steplog.hardly_trained(tmp_path, "") == ""  # nothing is trained
    for name, steps in (("a", 60), ("b/member_0", 50)):
        (tmp_path / "groups" / name).mkdir(parents=True)
        (tmp_path / "groups" / name / "metrics.jsonl").write_text("{}\n" * steps)
    assert steplog.hardly_trained(tmp_path, "") == ""
    (tmp_path / "groups" / "b" / "member_0" / "metrics.jsonl").write_text("{}\n" * 49)
    assert steplog.hardly_trained(tmp_path, "runs/a") == (
        "trained for 49 steps only: these are nearly the scores of the network that it began with, runs/a"
    )


def test_a_picture_of_the_embeddings_is_drawn_where_it_is_asked_for(finished, data, caplog):
    """Of every clip of the group; and it goes with the wish for it."""
    folder = finished[0] / "groups" / "all" / "embeddings"
    with caplog.at_level("INFO"):
        run.run(settings(data, **{"score.tsne": 20}), finished[0])
        assert "training on" not in caplog.text
    drawn, scores = table(folder / "tsne.csv"), table(finished[0] / "scores.csv")
    assert (folder / "tsne.png").exists() and len(drawn) == 20
    known = {(r["machine"], r["split"], r["file"], r["label"]) for r in scores}
    assert {(r["machine"], r["split"], r["file"], r["label"]) for r in drawn} <= known
    run.run(settings(data), finished[0])
    assert not list(folder.glob("tsne.*"))


@pytest.mark.parametrize(
    ("variant", "runner"), [("ensemble1", "ensemble"), ("mv2_pretrain", "tagging"), ("mv2_sec", "run")]
)
def test_what_a_config_is_run_by(variant, runner, monkeypatch, tmp_path):
    """The command, with the three runs replaced by ones that only say that they were called."""
    code = (
        "import sys\n"
        "from asdjax import ensemble, main, run, tagging\n"
        "for module in (ensemble, run, tagging):\n"
        "    module.run = lambda config, workdir, name=module.__name__: print(name, workdir)\n"
        "main.app.run(lambda argv: main.end(main.main(argv)), flags_parser=main.parse_flags)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, f"--config=configs/zeng2023.py:{variant}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.stdout.split() == [f"asdjax.{runner}", f"runs/zeng2023-{variant}"], process.stderr


def test_a_config_without_data_is_refused(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'seed': 0})"
    )
    process = call(f"--config={tmp_path / 'odd.py'}")
    assert process.returncode == 2 and process.stderr.startswith("error: config lacks backbone")


def test_where_the_time_went_is_kept(finished):
    timing = json.loads((finished[0] / "timing.json").read_text())
    assert {"load", "score", "report", "total"} <= timing["seconds"].keys()
    assert timing["seconds"]["total"] >= sum(timing["seconds"][k] for k in ("load", "score", "report"))


def test_a_second_call_only_scores_anew(finished, data, caplog):
    workdir, _ = finished
    before = (workdir / "groups/all/embeddings/embeddings.npz").stat().st_mtime_ns
    scorer = {"name": "knn2", "fit": "section", "detector": {"name": "knn", "k": 2}}
    with caplog.at_level("INFO"):
        run.run(settings(data, **{"score.scorers": (scorer,)}), workdir)
    assert "training" not in caplog.text.replace("training and", "")
    assert (workdir / "groups/all/embeddings/embeddings.npz").stat().st_mtime_ns == before
    assert {row["scorer"] for row in table(workdir / "scores.csv")} == {"knn2", "rms-only"}
    run.run(settings(data), workdir)  # as it was, for the other tests


def test_another_config_in_the_same_folder_is_refused(finished, data):
    with pytest.raises(UsageError, match=r"another config: optim.lr was 0.02, is 0.1; seed was 0, is 1"):
        run.run(settings(data, **{"optim.lr": 0.1, "seed": 1}), finished[0])


def test_a_folder_of_which_nothing_came_is_free(data, tmp_path):
    """A start of no use is told when the data is read and the folder taken; the next call has another."""
    other = {"name": "ViT", "patch": 8, "width": 8, "heads": 2, "dim_head": 4, "mlp": 8, "input_bn": False}
    run.run(settings(data, **{"train.steps": 1}), tmp_path / "first")
    with pytest.raises(UsageError, match="no weights for this backbone"):
        run.run(settings(data, backbone=other, init_from=str(tmp_path / "first")), tmp_path / "second")
    rundir.check(tmp_path / "second", settings(data))
    assert not (tmp_path / "second" / "config.json").exists()
    with pytest.raises(UsageError, match=r"holds a run of another config: seed was 0, is 1"):
        rundir.check(tmp_path / "first", settings(data, **{"train.steps": 1, "seed": 1}))


def test_beliefs_are_those_of_the_loss(data):
    """A softmax takes one class for granted, sigmoids do not."""
    for loss, wrong, right in (("bce", "log_softmax", "log_sigmoid"), ("softmax", "log_sigmoid", "log_softmax")):
        scorer = {"name": "nll", "fit": "section", "detector": {"name": wrong}}
        config = settings(data, head={"name": "Linear", "loss": loss}, **{"score.scorers": (scorer,)})
        with pytest.raises(UsageError, match=f"'nll' is {wrong}, which does not go .* {loss!r}; expected {right}"):
            checks.check(config)
        checks.check_belief(({**scorer, "detector": {"name": right}},), config["head"])


def test_a_cut_longer_than_the_clips_claims_no_folder(data, tmp_path):
    cut = {"name": "cut", "width": 1000, "hop": 8}
    with pytest.raises(UsageError, match="fewer than one unit of width=1000"):
        run.run(settings(data, cut=cut), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_folder_may_move_and_truth_may_come_later(finished, data, tmp_path):
    (tmp_path / "elsewhere").symlink_to(data)
    config = settings(data, **{"data.root": str(tmp_path / "elsewhere"), "data.ground_truth": ""})
    rows = run.run(config, finished[0])
    assert len(rows) == len(finished[1])
    run.run(settings(data), finished[0])


def test_plain_clips_of_one_name_are_told_apart(data):
    clips = run.load(settings(data)["data"])[0]
    paths = np.array(["/x/fan/test/normal/0.wav", "/x/fan/test/anomaly/0.wav", "/x/fan/train/1.wav"])
    some = dataclasses.replace(clips[np.arange(3)], path=paths, machine=np.array(["fan"] * 3))
    assert scoretable.file_names(some) == ["normal/0.wav", "anomaly/0.wav", "1.wav"]


def test_other_recordings_in_the_same_folder_are_refused(finished, data):
    late = data / "fan" / "test" / "section_00_source_test_normal_0099_spd_0.wav"
    soundfile.write(late, np.zeros(tiny.SR), tiny.SR)
    try:
        with pytest.raises(UsageError, match=r"other recordings \(46 clips, now 47\)"):
            run.run(settings(data), finished[0])
    finally:
        late.unlink()


def test_one_network_per_machine_says_what_it_learns_from(data, tmp_path, caplog):
    """One section: the label falls back to the attributes, aloud. Evaluation clips without labels are only scored."""
    for part, split in (("dev_data", "train"), ("eval_data", "test")):
        (tmp_path / part / "fan" / split).mkdir(parents=True)
    for file in (data / "fan" / "train").iterdir():
        (tmp_path / "dev_data" / "fan" / "train" / file.name).symlink_to(file)
    for i, file in enumerate(sorted((data / "fan" / "test").iterdir())):
        (tmp_path / "eval_data" / "fan" / "test" / f"section_00_{i:04d}.wav").symlink_to(file)
    changes = {"data.group_by": "machine", "data.label": "section", "data.test_on": "eval", "train.steps": 2}
    with caplog.at_level("INFO"):
        rows = run.run(settings(tmp_path, **changes), tmp_path / "r")
    assert "fan: data.label='section' leaves one class" in caplog.text and "attribute" in caplog.text
    assert rows == [] and "no metrics" in caplog.text
    assert {p.name for p in (tmp_path / "r" / "groups").iterdir()} == {"fan"}
    handed_in = (tmp_path / "r/submission/knn/anomaly_score_fan_section_00_test.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in handed_in] == [f"section_00_{i:04d}.wav" for i in range(16)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.stps": 3}, r"config.train has unknown keys \['stps'\]; there is: batch_size"),
        ({"backbone.rows": ((1, 2),), "backbone.colour": "red"}, "MobileFaceNet.*colour"),
        ({"train.batch_size": 1}, "at least 2"),
        ({"data.label": "sektion"}, "'sektion'; there is: none, section, machine"),
        ({"optim.lr": 0.0}, "lr > 0"),
        ({"train.members": 0}, "members is 0; it must be at least 1"),
        ({"train.epochs": 2.0}, "steps is 8, epochs 2.0; expected one above 0"),
        ({"train.steps": 0}, "steps is 0, epochs 0.0; expected one above 0"),
        ({"data.label": "none"}, "label is 'none' and config.head is {'name': 'ArcFace'"),
        ({"head": {}}, "and config.head is empty"),
        ({"data.bank": "features"}, "wave_ops must be ()"),
        ({"train.groups": "all"}, "'all'; there is: one_by_one, together"),
        ({"seed": -1}, "at least 0"),
        ({"score.scorers": ()}, "expected one scorer at least"),
        ({"score.fusions": ({"name": "f", "scorer": ("knn",)},)}, "score.fusions: found keys .*expected .*'how'"),
        (
            {"score.fusions": ({"name": "f", "scorers": ("nn",), "how": "mean"},)},
            "'f': no scorer 'nn'; expected .* of knn, lof",
        ),
        ({"score.fusions": ({"name": "f", "scorers": (), "how": "median"},)}, "how is 'median'"),
        ({"score.fusions": ({"name": "training-free", "scorers": (), "how": "max"},)}, "names must differ"),
        ({"data.year": "1999"}, "1999.*2020"),
        ({"frontend.sample_rate": 8000}, "8000.*4000"),
    ],
)
def test_a_wrong_config_is_told_before_data_is_read(change, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run.run(settings(tmp_path / "not there", **change), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def call(*flags, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "asdjax.main", *flags], capture_output=True, text=True, cwd=cwd, timeout=100
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 2, "no config given"),
        (("--config=configs/none.py",), 2, "configs/none.py"),
        (("--config=configs/mfn.py:1999",), 2, "no such variant; there is: 2020"),
        (("--config=configs/mfn.py", "--config.train.stps=3"), 2, 'Did you mean "steps"'),
        (("--config=configs/mfn.py", "--config.score.scorers[2].detector.k=4"), 2, "does not have"),
        (("--config=configs/mfn.py", "--config.score.scorers[0].detector.kk=4"), 2, "kk"),
        (("--config=configs/mfn.py", "--config.data.root=/not/there"), 2, "/not/there"),
        (("--config=configs/mfn.py", "--config.data.root=."), 1, "no machines"),
    ],
)
def test_mistakes_on_the_command_line(flags, code, message, tmp_path):
    workdir = [f"--workdir={tmp_path / 'r'}"] if flags else []
    done = call(*flags, *workdir)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("several", [False, True])
def test_sigterm_before_training_is_no_failure(several, tmp_path):
    """75: what started the run shall start it again. JAX takes the signal to itself where processes are joined."""
    command = [sys.executable, "-m", "asdjax.main", "--config=configs/mfn.py", f"--workdir={tmp_path / 'r'}"]
    if several:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command += [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--processes=1"]
    env = {**os.environ, "ASDJAX_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert any("making the embedded data set" in line for line in process.stderr)
    process.terminate()
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and "the same command resumes" in said


def configuration(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_builds(file):
    module = configuration(file)
    for variant in module.VARIANTS:
        config = module.get_config(variant).to_dict()
        if "ensemble" in config:
            ensemble.check(config, {name: ensemble.of_member(config, name) for name in config["ensemble"]})
        elif config["data"]["year"] == tagging.YEAR:
            tagging.check(config)
        else:
            checks.check(config)
        json.dumps(config)
    with pytest.raises(ValueError, match="no such variant"):
        module.get_config("nonsense")


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("mfn", ""),
        ("morita2021", "mfn"),
        ("morita2021", "mnv2"),
        ("baseline", "ae"),
        ("baseline", "mnv2"),
        ("bai2022", "mfn_stft,mixing=fmix_mixup"),
        ("bai2022", "dpt"),
        ("zeng2023", "mv2_sed"),
        ("zeng2023", "vit_sec"),
        ("zeng2023", "mv2_pretrain"),
    ],
)
def test_every_train_step_and_embedding_lowers_for_tpu(file, variant):
    """Nothing here has run on a TPU; that the programs are accepted for one is the least to be shown."""
    config = configuration(ROOT / "configs" / f"{file}.py").get_config(variant).to_dict()
    system, mesh = train.make(config, n_classes=6), parallel.data_mesh()
    rows, width = jax.ShapeDtypeStruct((1, 2, 4), np.int32), config["cut"]["width"]
    samples = config["frontend"]["hop"] * width if config["cut"]["at"] == "frames" else width
    label = {"class": jax.ShapeDtypeStruct((8, 6), np.float32), "target": jax.ShapeDtypeStruct((8,), np.float32)}
    gain = jax.ShapeDtypeStruct((8,), np.float32)
    waves = store = feed.Store(jax.ShapeDtypeStruct((8, samples), np.int16), gain, label)
    if config["data"]["bank"] == "features":
        frames = jax.eval_shape(train.frontend(config), jax.ShapeDtypeStruct((8, samples), np.float32))
        store = feed.Frames(frames, train.unit_frames(config, samples), label)
    network = train.Network(Path(), system, {k: np.zeros(v.shape, v.dtype) for k, v in label.items()}, None, None, 0)
    state = train.shapes(network, store)
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), state)
    seeds, asked = jax.ShapeDtypeStruct((1,), np.uint32), jax.ShapeDtypeStruct((1,), bool)
    chunk = chunks.make_chunk(system, mesh, lowering="map", resident=True)
    exported = jax.export.export(chunk, platforms=["tpu"])(states, seeds, store, (rows, rows), asked)
    if variant not in ("ae", "dpt", "vit_sec"):  # which have none
        assert "stablehlo.convolution" in exported.mlir_module()  # the form of TPUs, not that of CPUs
    lower_embedding(system, state, waves)


def lower_embedding(system, state, waves):
    embed = evaluate.make_embed(system, parallel.data_mesh(), resident=True)
    rows = jax.ShapeDtypeStruct((4,), np.int32)
    jax.export.export(embed, platforms=["tpu"])(state, waves._replace(label={}), (rows, rows))


def test_statistics_lower_for_tpu():
    config = configuration(ROOT / "configs" / "statistics.py").get_config().to_dict()
    system = train.make(config, n_classes=0)
    wave, gain = jax.ShapeDtypeStruct((8, 16000), np.int16), jax.ShapeDtypeStruct((8,), np.float32)
    lower_embedding(system, system.init(jax.random.key(0), {}), feed.Store(wave, gain, {}))


def test_flatten():
    assert rundir.flatten({"a": {"b": 1}, "c": [2, {"d": 3}], "e": []}) == {"a.b": 1, "c[0]": 2, "c[1].d": 3}


def test_devices_are_those_of_the_environment(finished):
    environment = json.loads((finished[0] / "environment.json").read_text())
    assert environment["devices"] == [f"{d.platform} {d.device_kind}" for d in jax.devices()]


def test_what_is_trained_has_a_name():
    fan, pump = Path("groups/fan"), Path("groups/pump")
    assert learn.called([fan]) == "fan" and learn.called([fan, pump]) == "2 groups"
    assert learn.called([fan / "member_0", fan / "member_1"]) == "fan (2 networks)"
    assert learn.called([m / f"member_{i}" for m in (fan, pump) for i in range(3)]) == "2 groups (6 networks)"
