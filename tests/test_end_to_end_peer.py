"""The PyTorch program that a run is timed against does the same work: same clips, classes, windows and metrics."""

import copy
import csv

import numpy as np
import pytest
import soundfile
import tiny

from asdjax import frontends, metrics, optim
from asdjax.data import dcase, labels, synth
from benchmarks import __main__ as benchmarks

torch = pytest.importorskip("torch")

from benchmarks.peers import pipeline  # noqa: E402

torch.set_num_threads(1)  # threads that wait in a spin make tiny networks slow wherever other work runs beside

CONFIG = tiny.config(
    **{
        "frontend": {"name": "log_mel", "sample_rate": 16000, "win": 1024, "hop": 512, "n_mels": 16},
        "wave_ops": ({"name": "mixup", "p": 0.5, "alpha": 1.0},),
        "optim": {"name": "adam", "lr": 1e-2, "schedule": "cosine", "end": 1e-4, "warmup": 2},
        "train.steps": 4,
    }
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    return synth.generate(folder, machines=("fan", "valve"), n_train=8, n_target=2, n_test=3)


def rows_of(folder):
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "tuned"])
def scored(request, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return pipeline.run(CONFIG, root, out, workers=0, tuned=request.param), rows_of(out)


def test_clips_and_classes_are_ours(root):
    clips = dcase.index(root, 2023)
    found = pipeline.index(root)
    for field in ("machine", "section", "domain", "split"):
        assert [getattr(clip, field) for clip in found] == getattr(clips, field).tolist()
    assert [str(clip.path) for clip in found] == clips.path.tolist()
    assert [clip.is_anomaly for clip in found] == (clips.is_anomaly == 1).tolist()
    ours = labels.class_labels(clips, np.ones(len(clips), bool), "machine_section_attribute")
    names, number = pipeline.classes([clip for clip in found if clip.split == "train"])
    assert ["/".join(name) for name in names] == list(ours.names)
    np.testing.assert_array_equal(number, ours.onehot[ours.rows].argmax(1))


def test_short_recordings_are_repeated(tmp_path):
    """As data.length='tile' of the config."""
    wave = np.arange(-3, 4, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    clip = pipeline.Clip(tmp_path / "a.wav", "fan", "00", "source", "train", False, "")
    heard, number = pipeline.Wavs([clip], samples=17)[0]
    assert number == 0
    np.testing.assert_array_equal(heard * 32768, [*wave, *wave, -3, -2, -1])


def test_every_test_clip_has_a_score_of_each_scorer(root, scored):
    _, rows = scored
    clips = dcase.index(root, 2023)
    test = clips[clips.is_test]
    clips = zip(test.machine, test.path, test.is_anomaly, strict=True)
    expected = {(machine, path.rsplit("/", 1)[-1], str(label)) for machine, path, label in clips}
    for scorer in ("knn", "lof"):
        own = [row for row in rows if row["scorer"] == scorer]
        assert {(row["machine"], row["file"], row["label"]) for row in own} == expected and len(own) == len(test)
        assert np.isfinite([float(row["score"]) for row in own]).all()


def test_official_score_is_that_of_our_metrics(scored):
    result, rows = scored
    for scorer in ("knn", "lof"):
        own = [row for row in rows if row["scorer"] == scorer]
        machine, section, domain, label, score = (
            np.array([row[name] for row in own]) for name in ("machine", "section", "domain", "label", "score")
        )
        table = metrics.Table(machine, section, domain, label.astype(int), score.astype(float))
        values, _ = metrics.official(2023, table, n_bootstrap=0)
        (ours,) = [row.value for row in values if row.metric == "official score" and row.machine == "all"]
        assert result[scorer] == pytest.approx(ours, abs=1e-12)


def test_log_mel_is_ours():
    wave = np.random.default_rng(0).standard_normal((2, 8000)).astype(np.float32)
    settings = {k: v for k, v in CONFIG["frontend"].items() if k != "name"}
    peer = pipeline.Frontend(CONFIG["frontend"])(torch.from_numpy(wave))
    np.testing.assert_allclose(peer, frontends.log_mel(**settings)(wave), atol=1e-3)  # dB


def test_windows_and_learning_rate_are_ours():
    for frames in (64, 65, 95, 96, 126):
        x = np.arange(frames, dtype=np.float32)[None, :, None]
        units = frontends.cut(width=64, hop=32, tail="align").units(x)
        assert pipeline.starts(frames, 64, 32) == units[0, :, 0, 0].astype(int).tolist()
    ours = optim.learning_rate(20, 1e-3, "cosine", 1e-5, 4)
    peer = [1e-3 * pipeline.learning_rate(s, steps=20, lr=1e-3, end=1e-5, warmup=4) for s in range(20)]
    np.testing.assert_allclose(peer, [float(ours(s)) for s in range(20)], rtol=1e-5, atol=1e-9)


def test_both_memory_layouts_are_one_network():
    torch.manual_seed(0)
    parts = {k: v for k, v in CONFIG["backbone"].items() if k != "name"}
    plain = pipeline.Network(**parts, bins=16, frames=16)
    tuned = pipeline.MobileFaceNet(**parts, bins=16, frames=16)
    tuned.load_state_dict(copy.deepcopy(plain.state_dict()))
    x = torch.randn(4, 16, 16)
    torch.testing.assert_close(plain(x), tuned.to(memory_format=torch.channels_last)(x))


def test_batches_run_through_all_clips_before_any_comes_again(root):
    data = pipeline.Wavs(pipeline.index(root)[:6], samples=64000)
    draws = pipeline.RandomSampler(data, num_samples=12)
    clips = torch.cat([clip for _, clip in pipeline.loader(data, 4, 0, draws)]).tolist()
    assert sorted(clips[:6]) == sorted(clips[6:]) == list(range(6))


def test_the_summary_shows_the_worst_row_against_its_bar():
    rows = [
        {"form": "a", "ratio": 0.5, "bar": 0.6},
        {"form": "b", "ratio": 0.65, "bar": 0.7},
        {"form": "c", "ratio": 0.9, "bar": None},
        {"form": "d", "ratio": 0.9, "bar": 0.8},
    ]
    found = benchmarks.summary("x", rows)
    assert (found["met"], found["worst row"], found["ratio"]) == ("2 of 3", "d", 0.9)
    assert benchmarks.summary("x", rows[:2])["worst row"] == "b"
    assert benchmarks.summary("x", rows[2:3])["met"] == "has no bar"
