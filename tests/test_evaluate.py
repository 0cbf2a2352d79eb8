import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from trees import MINI_ASD, needs_recordings

from asdjax import detectors, evaluate, metrics, parallel
from asdjax.core import Clips, Detector, InputError, System
from asdjax.data import audio, dcase, feed

# the distance of a clip's number to the nearest number it was fitted on: easy to follow by hand
NEAREST = Detector(
    fit=lambda e, is_target: {"x": e["x"], "targets": is_target.sum()},
    score=lambda state, e: np.abs(e["x"][:, None] - state["x"][None]).min(1),
)


def clips(split, domain, section=None, machine=None):
    n = len(split)
    text = np.array([f"{i}.wav" for i in range(n)])
    return Clips(
        path=text,
        machine=np.array(machine or ["fan"] * n),
        section=np.array(section or ["00"] * n),
        domain=np.array(domain),
        split=np.array(split),
        is_anomaly=np.zeros(n, np.int8),
        attributes=np.array([""] * n),
    )


def test_training_clips_are_never_their_own_neighbours():
    some = clips(["train"] * 3 + ["test"] * 2, ["source"] * 5)
    e = {"x": np.array([0.0, 1.0, 5.0, 5.0, 7.0])}
    (pair,) = evaluate.fit_and_score_rows(some, np.ones(5, bool), "section")
    scores, states = evaluate.scores_of_section(NEAREST, e, [pair], some.is_train, some.domain == "target")
    # training: 0 -> 1, 1 -> 0, 5 -> 1; test: 5 is a training value, 7 is two away
    np.testing.assert_array_equal(scores, [1, 1, 4, 0, 2])
    np.testing.assert_array_equal(states[0]["x"], [0, 1, 5])


def test_a_detector_that_can_leave_a_clip_out_is_asked_to():
    """Not the folds: 12 clips at distances 1, 2, 3, ... from the next, of which a fold of three lacks more than one."""
    place = np.cumsum(np.arange(12.0))
    some = clips(["train"] * 12 + ["test"], ["source"] * 13)
    e = {"embedding": np.append(place, 100.0)[:, None, None]}
    (pair,) = evaluate.fit_and_score_rows(some, np.ones(13, bool), "section")
    for k in (1, 2):
        detector = detectors.knn(k=k, metric="euclidean")
        scores, states = evaluate.scores_of_section(detector, e, [pair], some.is_train, np.zeros(13, bool))
        apart = np.abs(place[:, None] - place) + np.diag(np.full(12, np.inf))
        np.testing.assert_allclose(scores[:12], np.sort(apart)[:, :k].mean(1), rtol=1e-6)
        by_folds, _ = evaluate.scores_of_section(
            detector._replace(own=None), e, [pair], some.is_train, np.zeros(13, bool)
        )
        assert scores[12] == by_folds[12] and len(states) == 1
        assert (by_folds[:12] >= scores[:12] - 1e-6).all() and (k == 1 or (by_folds[:12] > scores[:12]).any())


def test_left_out_clips_of_each_domain_are_scored_by_the_detector_of_their_domain():
    some = clips(["train"] * 5 + ["test"], ["source"] * 3 + ["target"] * 2 + ["source"])
    e = {"embedding": np.array([0.0, 1.0, 3.0, 0.5, 3.5, 9.0])[:, None, None]}
    detector = detectors.knn(metric="euclidean")
    pairs = evaluate.fit_and_score_rows(some, np.ones(6, bool), "by_test_domain")
    scores, states = evaluate.scores_of_section(detector, e, pairs, some.is_train, some.domain == "target")
    np.testing.assert_allclose(scores, [1, 1, 2, 0.5, 0.5, 6], rtol=1e-6)  # sources do not see targets
    assert len(states) == 1  # no target clip is tested


@pytest.mark.parametrize("n", [1, 2, 4, 5, 7, 11, 100])
def test_folds_cover_all_clips_in_equal_sizes(n):
    folds = evaluate.folds(n)
    assert sorted(set(np.concatenate(folds))) == list(range(n))
    assert len({len(f) for f in folds}) == 1 and all(len(set(f)) == len(f) for f in folds)
    assert len(folds) == min(n, evaluate.FOLDS)


def test_by_test_domain_fits_source_alone_and_both():
    """Morita 2021: source test clips against source training clips, target test clips against both."""
    some = clips(["train"] * 4 + ["test"] * 2, ["source"] * 3 + ["target", "source", "target"])
    e = {"x": np.array([0.0, 1.0, 3.0, 9.0, 9.0, 9.0])}
    pairs = evaluate.fit_and_score_rows(some, np.ones(6, bool), "by_test_domain")
    scores, states = evaluate.scores_of_section(NEAREST, e, pairs, some.is_train, some.domain == "target")
    np.testing.assert_array_equal(scores, [1, 1, 2, 6, 6, 0])
    assert [len(s["x"]) for s in states] == [3, 4] and [int(s["targets"]) for s in states] == [0, 1]


def test_too_few_training_clips(tmp_path):
    """One clip: nothing is left to score it by, and what needs two says whose clips are too few."""
    some = clips(["train", "test"], ["source"] * 2)
    e = {"embedding": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)[:, None]}
    specs = tuple({"name": n, "fit": "section", "detector": {"name": n}} for n in ("knn", "lof"))
    (_, scores), _ = evaluate.score_group(some, e, np.zeros(2), specs[:1], tmp_path)
    np.testing.assert_allclose(scores, [np.nan, 1.0], atol=1e-6)
    with pytest.raises(InputError, match=r"scorer 'lof', fan section 00: .*expected at least 2"):
        list(evaluate.score_group(some, e, np.zeros(2), specs[1:], tmp_path))


def test_a_score_that_is_not_a_number_is_told(tmp_path):
    some = clips(["train", "train", "test"], ["source"] * 3)
    e = {"embedding": np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0]], np.float32)[:, None]}
    spec = {"name": "near", "fit": "section", "detector": {"name": "knn"}}
    with pytest.raises(InputError, match=r"scorer 'near', fan section 00: the score of 2.wav is not a number"):
        list(evaluate.score_group(some, e, np.zeros(3), (spec,), tmp_path))


def test_by_test_domain_without_source_clips_fits_on_all():
    some = clips(["train", "train", "test"], ["target", "target", "source"])
    (train, rows), _ = evaluate.fit_and_score_rows(some, np.ones(3, bool), "by_test_domain")
    assert train.tolist() == [True, True, False] and rows.tolist() == [False, False, True]


def test_by_section_keeps_sections_and_machines_apart():
    some = clips(["train", "test", "train", "test"], ["source"] * 4, ["00", "00", "01", "00"], ["a", "a", "a", "b"])
    got = [(m, s, rows.tolist()) for m, s, rows in evaluate.by_section(some)]
    assert got == [("a", "00", [True, True, False, False]), ("b", "00", [False, False, False, True])]


def test_a_section_without_training_clips_uses_the_machine():
    some = clips(["train", "test", "train"], ["source"] * 3, ["00", "01", "00"], ["a", "a", "b"])
    ((train, rows),) = evaluate.fit_and_score_rows(some, some.section == "01", "section")
    assert train.tolist() == [True, False, False] and rows.tolist() == [False, True, False]


@pytest.mark.parametrize("resident", [True, False])
def test_padded_batches_change_nothing(resident):
    """Seven clips in batches of two: each clip's own numbers, in order, U units each, from each member's state."""
    store, mesh = tiny.tones(n=9), parallel.data_mesh()

    def embed(state, wave):
        return {"embedding": jnp.stack([wave.mean(1), wave[:, 0] * state], 1)[:, None]}

    rows = np.array([3, 1, 4, 0, 5, 8, 2])
    held = feed.resident(store, mesh) if resident else store
    done, states = [], [np.float32(2.0), np.float32(3.0)]
    made = evaluate.embed_clips(
        System(None, None, embed), states, held, rows, units=2, mesh=mesh, progress=lambda *now: done.append(now)
    )
    wave = store.wave[rows] / np.float32(32768)
    for e, state in zip(made, states, strict=True):
        expected = np.stack([wave.mean(1), wave[:, 0] * state], 1)[:, None]
        np.testing.assert_allclose(e["embedding"], expected, atol=1e-6)
    assert done == sorted(done) and done[-1] == (14, 14)


def test_rms_only_is_the_distance_from_the_mean_training_level(tmp_path):
    some = clips(["train", "train", "test"], ["source"] * 3)
    ((name, scores),) = evaluate.score_group(some, {}, np.array([-20.0, -24.0, -30.0]), (), tmp_path)
    assert name == "rms-only"
    np.testing.assert_allclose(scores, [2, 2, 8])


def test_detectors_are_fitted_per_section_and_kept(tmp_path):
    some = clips(["train", "train", "test"] * 2, ["source"] * 6, ["00"] * 3 + ["01"] * 3)
    e = {"embedding": np.array([[1.0, 0], [1, 0.1], [1, 0], [0, 1], [0.1, 1], [1, 0]], np.float32)[:, None]}
    spec = {"name": "near", "fit": "section", "detector": {"name": "knn", "k": 1, "metric": "cosine"}}
    (_, scores), _ = evaluate.score_group(some, e, np.zeros(6), (spec,), tmp_path)
    assert scores[2] == pytest.approx(0, abs=1e-6)  # section 00 knows [1, 0]
    assert scores[5] == pytest.approx(1 - 0.1 / np.hypot(0.1, 1), abs=1e-5)  # section 01 does not
    assert sorted(p.name for p in (tmp_path / "detectors" / "near").iterdir()) == ["fan_00.npz", "fan_01.npz"]


@needs_recordings
def test_loudness_gives_real_recordings_away_unless_they_are_levelled(tmp_path):
    """The AUC of the level alone that the recordings' own description states: 1.00, 0.97, 0.796; then chance."""
    clips = dcase.index(MINI_ASD, 2023)
    bank = audio.bank(clips, cache=tmp_path)

    def rms_only(level):
        ((_, scores),) = evaluate.score_group(clips, {}, audio.loudness(bank, level), (), tmp_path)
        test = clips.is_test
        columns = (clips.machine, clips.section, clips.domain, clips.is_anomaly, scores)
        rows, _ = metrics.official(2023, metrics.Table(*(c[test] for c in columns), None), n_bootstrap=0)
        return {row[:4]: row.value for row in rows}

    found = rms_only("as_recorded")
    assert found["slider", "00", "source", "AUC"] == pytest.approx(1.00, abs=5e-3)
    assert found["slider", "01", "source", "AUC"] == pytest.approx(0.97, abs=5e-3)
    assert found["valve", "00", "target", "AUC"] == pytest.approx(0.796, abs=1e-3)
    assert found["valve", "00", "target", "AUC same-domain"] == pytest.approx(1.00, abs=5e-3)
    levelled = rms_only("rms")
    assert all(value == 0.5 for (_, _, _, metric), value in levelled.items() if metric in ("AUC", "pAUC"))


def test_one_of_many_voices_may_be_missing_in_a_section(tmp_path, caplog):
    """LOF needs two training clips, section 01 has one: told where LOF is one voice of a fusion, else refused."""
    some = clips(["train"] * 3 + ["test", "train", "test"], ["source"] * 6, section=["00"] * 4 + ["01"] * 2)
    e = {"embedding": np.arange(1.0, 7.0)[:, None, None] ** 2, "score": np.ones((6, 1, 1))}
    specs = tuple({"name": n, "fit": "section", "detector": {"name": n}} for n in ("lof", "passthrough"))
    with pytest.raises(InputError, match="scorer 'lof', fan section 01: "):
        list(evaluate.score_group(some, e, np.zeros(6), specs, tmp_path))
    found = dict(evaluate.score_group(some, e, np.zeros(6), specs, tmp_path, fused=("lof", "passthrough")))
    assert np.isfinite(found["lof"][:4]).all() and np.isnan(found["lof"][4:]).all() and found["passthrough"][5] == 1
    said = "fan section 01 (1 training clips): 1 of 2 scorers are left out of the fusion; lof: detector: 1 training"
    assert said in caplog.text
    with pytest.raises(InputError, match="no scorer can be fitted; lof: detector: 1 training"):
        list(evaluate.score_group(some, e, np.zeros(6), specs[:1], tmp_path, fused=("lof",)))
