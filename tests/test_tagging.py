import csv
import json
import os
import signal

import numpy as np
import pytest
import soundfile
import tiny
from scipy import stats

from asdjax import parallel, steplog, tagging, timing
from asdjax.core import InputError, Preempted, System, UsageError
from asdjax.data import feed
from asdjax.tagging import Found

STEPS = 16
PITCHES = {"Hum, low": 300, "Whistle": 700, 'Hum "high"': 1200}


def write_tones(root, train=24, test=15):
    """AudioSet's format: clips of half a second in which one tone sounds, or two, and 'Silence' in none of them."""
    rng = np.random.default_rng(0)
    root.mkdir()
    with open(root / "class_labels_indices.csv", "w", newline="") as file:
        rows = [(i, f"/m/{i}", name) for i, name in enumerate((*PITCHES, "Silence"))]
        csv.writer(file).writerows([("index", "mid", "display_name"), *rows])
    t, pitches = np.arange(tiny.SR // 2) / tiny.SR, np.array([*PITCHES.values()])
    for name, n in (("balanced_train_segments", train), ("eval_segments", test)):
        lines = ["# a comment"]
        for i in range(n):
            tags = sorted({i % 3, (i * 7 // 5) % 3})
            wave = 0.2 * np.sin(2 * np.pi * pitches[tags, None] * t).sum(0) + 0.1 * rng.standard_normal(len(t))
            key = f"{name[0]}{i:010d}"
            soundfile.write(root / f"Y{key}.wav", wave, tiny.SR)
            mids = ",".join(f"/m/{tag}" for tag in tags)
            lines.append(f'{key}, 0.000, 10.000, "{mids}"')
        (root / f"{name}.csv").write_text("\n".join([*lines, ""]))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data") / "tones")


def settings(data, **changes):
    always = {
        "data.root": str(data), "data.year": "audioset", "data.train_on": ("balanced_train_segments",),
        "data.test_on": "eval_segments", "data.label": "tags", "data.seconds": 0.5, "data.length": "pad",
        "data.bank": "files", "data.resident": False, "sampler": {"name": "tag_balanced"}, "wave_ops": (),
        "head": {"name": "Linear", "loss": "bce"}, "score.scorers": (), "train.steps": STEPS,
    }  # fmt: skip
    return tiny.config(**{**always, **changes})


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "tones"
    return workdir, tagging.run(settings(data), workdir)


def table(workdir):
    with open(workdir / "tagging.csv") as file:
        return list(csv.DictReader(file))


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "groups/all/metrics.jsonl").open()]


def test_the_numbers_are_those_of_scikit_learn_on_the_same_logits(finished, data):
    from sklearn.metrics import average_precision_score, roc_auc_score

    workdir, rows = finished
    with np.load(workdir / "predictions.npz") as kept:
        files, logits = kept["name"], kept["logits"]
    tags = {}
    for line in (data / "eval_segments.csv").read_text().splitlines()[1:]:
        key, _, _, mids = line.split(", ")
        tags[f"Y{key}.wav"] = [f"/m/{c}" in mids for c in range(4)]
    truth = np.array([tags[file] for file in files])
    assert len(truth) == 15 and logits.shape == (15, 4) and logits.dtype == np.float32
    precision = [average_precision_score(truth[:, c], logits[:, c]) for c in range(3)]
    auc = [roc_auc_score(truth[:, c], logits[:, c]) for c in range(3)]
    mean, *by_class = table(workdir)
    for c, (row, name) in enumerate(zip(by_class[:3], PITCHES, strict=True)):
        assert row["class"] == name == rows[c].name and int(row["test clips"]) == truth[:, c].sum()
        assert float(row["average precision"]) == pytest.approx(precision[c], rel=1e-12)
        assert float(row["AUC"]) == pytest.approx(auc[c], rel=1e-12)
    assert by_class[3] == {
        "class": "Silence", "training clips": "0", "test clips": "0", "average precision": "", "AUC": "", "d-prime": "",
    }  # fmt: skip
    assert mean["class"] == "mean"
    assert float(mean["average precision"]) == pytest.approx(np.mean(precision), rel=1e-12)
    assert float(mean["AUC"]) == pytest.approx(np.mean(auc), rel=1e-12)
    assert float(mean["d-prime"]) == pytest.approx(np.sqrt(2) * stats.norm.ppf(np.mean(auc)), rel=1e-12)


def test_the_run_directory_is_complete(finished):
    workdir, _ = finished
    assert sorted(path.name for path in workdir.iterdir()) == [
        "config.json", "data.json", "environment.json", "groups", "predictions.npz", "tagging.csv", "timing.json",
    ]  # fmt: skip
    assert list((workdir / "groups/all/checkpoints").glob(str(STEPS))) and len(losses(workdir)) == STEPS
    assert {"load", "train", "embed", "report"} <= json.loads((workdir / "timing.json").read_text())["seconds"].keys()


def test_it_learns(finished):
    workdir, rows = finished
    loss = losses(workdir)
    assert np.mean(loss[-4:]) < 0.7 * np.mean(loss[:4])
    assert tagging.mean(rows)[1] > 0.75


def test_a_stopped_run_goes_on_as_the_unbroken_one(finished, data, tmp_path, monkeypatch, caplog):
    write, stopped = steplog.write, []

    def stopping(log, metrics, step, seconds):
        write(log, metrics, step, seconds)
        if step >= 2 and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(steplog, "write", stopping)
    with pytest.raises(Preempted, match="the same command resumes"):
        tagging.run(settings(data), tmp_path / "r")
    assert 2 <= len(losses(tmp_path / "r")) < STEPS and not (tmp_path / "r/tagging.csv").exists()
    with caplog.at_level("INFO"):
        rows = tagging.run(settings(data), tmp_path / "r")
    assert "resumed at step" in caplog.text
    np.testing.assert_array_equal(losses(tmp_path / "r"), losses(finished[0]))
    assert rows == finished[1] or str(rows) == str(finished[1])  # NaN is not equal to itself


def test_a_finished_run_is_evaluated_anew(finished, data, caplog, capsys):
    workdir, rows = finished
    before = (workdir / "tagging.csv").read_text()
    with caplog.at_level("INFO"):
        tagging.run(settings(data), workdir)
    assert (workdir / "tagging.csv").read_text() == before and len(losses(workdir)) == STEPS
    assert f"--config.init_from={workdir}" in caplog.text
    assert "4 classes, 24 training and 15 test clips" in caplog.text
    printed = capsys.readouterr().out
    precision, auc, _ = tagging.mean(rows)
    assert f"mean average precision {precision:.3f}, mean AUC {auc:.3f}, d-prime" in printed
    assert all(name in printed for name in PITCHES) and "Silence" not in printed


def test_other_recordings_or_another_config_in_the_same_folder_are_refused(finished, data, tmp_path):
    with pytest.raises(UsageError, match=r"another config: seed was 0, is 1"):
        tagging.run(settings(data, seed=1), finished[0])
    other = write_tones(tmp_path / "other", train=23)
    with pytest.raises(UsageError, match=r"other recordings \(39 clips, now 38\)"):
        tagging.run(settings(other), finished[0])
    whole = write_tones(tmp_path / "whole")
    labels = whole / "eval_segments.csv"
    labels.write_text(labels.read_text().replace('"/m/0"', '"/m/2"', 1))
    with pytest.raises(UsageError, match="other recordings"):
        tagging.run(settings(whole), finished[0])


def test_without_test_clips_it_is_trained_only(data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert tagging.run(settings(data, **{"data.test_on": ""}), tmp_path / "r") == []
    assert "no test clips" in caplog.text and not (tmp_path / "r/tagging.csv").exists()
    assert list((tmp_path / "r/groups/all/checkpoints").glob(str(STEPS)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.label": "machine"}, "data.label is 'machine'; .* 'tags'"),
        ({"data.group_by": "machine"}, "data.group_by is 'machine'; .* 'all'"),
        ({"data.level": "rms"}, "data.level is 'rms'"),
        ({"data.bank": "waves"}, "data.bank is 'waves'; .* 'files'"),
        ({"data.resident": True}, "data.resident is True"),
        ({"data.length": "tile"}, "data.length is 'tile'; .* 'pad'"),
        ({"data.channel": 1}, "data.channel is 1; .*mean of all channels"),
        ({"data.seconds": 0.0}, "data.seconds is 0.0"),
        ({"train.members": 2}, "train.members is 2"),
        ({"score.scorers": ({"name": "knn"},)}, "score.scorers is .*nothing is scored for anomalies"),
        ({"score.fusions": ({"name": "f"},)}, "score.fusions is"),
        ({"score.training_free": True}, "score.training_free is True"),
        ({"by_machine": {"fan": {}}}, "by_machine is not empty"),
        ({"train.stps": 3}, r"config.train has unknown keys \['stps'\]"),
        ({"train.batch_size": 1}, "at least 2"),
        ({"train.epochs": 2.0}, "steps is 16, epochs 2.0; expected one above 0"),
        ({"head": {}}, "head is empty"),
        ({"head": {"name": "Linear", "loss": "bse"}}, "'bse'; there is: softmax, focal, bce"),
        ({"backbone.colour": "red"}, "MobileFaceNet.*colour"),
        ({"sampler": {"name": "domain_mixed"}}, "tags have no domains"),
        ({"frontend.sample_rate": 8000}, "8000.*4000"),
        ({"cut": {"name": "cut", "width": 900, "hop": 8}}, "900"),
        ({"init_from": "/not/there"}, "/not/there is not there"),
        ({"data.root": "/not/there"}, "/not/there is no folder"),
        ({"data.train_on": "balanced_train_segments"}, "tuple of names"),
    ],
)
def test_a_wrong_config_is_told_before_a_folder_is_claimed(data, change, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        tagging.run(settings(data, **change), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_what_is_skipped_is_said(data, tmp_path, caplog):
    some = write_tones(tmp_path / "some")
    (some / "Yb0000000001.wav").unlink()
    with caplog.at_level("INFO"):
        tagging.load(settings(some)["data"])
    assert "1 of 24 segments of balanced_train_segments have no file" in caplog.text
    with pytest.raises(InputError, match=r"no strong_segments\.csv"):
        tagging.load(settings(some, **{"data.train_on": ("strong_segments",)})["data"])


def test_logits_of_a_clips_units_are_averaged():
    """Of three units with the first six samples as logits of two classes."""
    wave = np.arange(40, dtype=np.int16).reshape(4, 10)
    store = feed.Store(wave, np.ones(4, np.float32), {})
    system = System(None, None, lambda state, wave: {"logits": wave[:, :6].reshape(-1, 3, 2), "embedding": wave})
    rows = np.array([3, 0, 2])
    made = tagging.logits_of(settings(""), system, (), store, rows, parallel.data_mesh(), timing.Watch())
    np.testing.assert_array_equal(made, [[32, 33], [2, 3], [22, 23]])


def found(name, precision, auc):
    return Found(name, 1, 1, precision, auc)


def test_means_are_of_the_classes_that_have_values():
    rows = [found("a", 0.25, 0.5), found("b", np.nan, np.nan), found("c", 0.75, 1.0)]
    assert tagging.mean(rows) == (0.5, 0.75, pytest.approx(0.9538725524089))  # sqrt(2) * 0.6744897501960817
    # PANNs' table 3 (Kong et al. 2020), CNN14: mAP 0.431, AUC 0.973, d-prime 2.732, from an AUC of more digits
    assert tagging.mean([found("all", 0.431, 0.973)])[2] == pytest.approx(2.732, abs=0.02)
    assert np.isnan(tagging.mean(rows[1:2])).all() and tagging.mean(rows[2:])[2] == np.inf


def test_of_many_classes_the_best_and_the_worst_are_printed(capsys):
    rows = [found(f"sound {i:02d} [x]", (i + 1) / 40, 0.5) for i in range(30)]
    tagging.print_table([*rows, found("silent", np.nan, np.nan)], 50)
    printed = capsys.readouterr().out
    shown = [line.strip().split("  ")[0] for line in printed.splitlines() if line.startswith(" sound")]
    assert shown == [f"sound {i:02d} [x]" for i in (*range(29, 19, -1), *range(9, -1, -1))]
    assert "30 of 31 classes: the 10 found best and worst" in printed
    assert max(map(len, printed.splitlines())) <= 80
