"""The miniature of AudioSet: format, determinism, sounds, and how hard it is without a network."""

import re
import shutil

import numpy as np
import pytest
import soundfile

from asdjax.core import InputError, UsageError
from asdjax.data import audioset, events

SMALL = dict(balanced=18, unbalanced=6, evaluation=4, seconds=1.0)
TRAIN = ("balanced_train_segments", "unbalanced_train_segments")


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return events.miniature(tmp_path_factory.mktemp("events") / "data", **SMALL)


def test_same_seed_same_bytes_with_any_number_of_workers(small, tmp_path):
    assert files(small) == files(events.miniature(tmp_path / "again", workers=1, **SMALL))
    other = files(events.miniature(tmp_path / "other", seed=1, **SMALL))
    assert not {k for k in other if k.endswith(".wav")} & set(files(small))


def test_it_reads_as_audioset(small):
    clips = audioset.index(small, train_on=TRAIN, test_on="eval_segments")
    assert clips.note == "1 of 18 segments of balanced_train_segments have no file, " + (
        "1 of 6 segments of unbalanced_train_segments have no file"
    )
    assert clips.classes == tuple(kind.name for kind in events.KINDS)
    assert any("," in name for name in clips.classes) and any('"' in name for name in clips.classes)
    plan = [e for e in events.plan(**SMALL) if e.has_file]
    assert len(plan) == len(clips.path) == 17 + 5 + 4
    for path, split, tags, excerpt in zip(clips.path, clips.split, clips.tags[:], plan, strict=True):
        assert path == f"{small}/audios/{excerpt.csv}/Y{excerpt.id}.wav"
        assert split == ("test" if excerpt.csv == "eval_segments" else "train")
        assert tuple(np.flatnonzero(tags)) == excerpt.classes and 1 <= len(excerpt.classes) <= 3
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 16000, 1)
        assert info.duration == pytest.approx(excerpt.end - excerpt.start)


def test_lines_are_as_in_the_real_csvs(small):
    text = (small / "balanced_train_segments.csv").read_text().splitlines()
    assert [line[0] for line in text[:3]] == ["#"] * 3 and len(text) == 3 + 18
    for line in text[3:]:
        assert re.fullmatch(r'[\w-]{11}, \d+\.000, \d+\.\d{3}, "/[mt]/\w+(,/[mt]/\w+)*"', line)
    head, *classes = (small / "class_labels_indices.csv").read_text().splitlines()
    assert head == "index,mid,display_name" and classes[4] == '4,/m/0asd5e,"Chirp, ""tweet"""'


def test_plan():
    plan = events.plan()
    ids = [e.id for e in plan]
    assert len(set(ids)) == len(ids) == 64 + 80 + 48
    assert any(i.startswith("-") for i in ids) and any(i.startswith("Y") for i in ids) and any("_" in i for i in ids)
    heard = {csv: [e.classes for e in plan if e.csv == csv] for csv in (*TRAIN, "eval_segments")}
    count = {csv: np.bincount(np.concatenate(own), minlength=8) for csv, own in heard.items()}
    assert count[TRAIN[0]].min() >= 8 and count["eval_segments"].min() >= 6  # the classes take turns
    assert count[TRAIN[1]][:3].sum() > 2 * count[TRAIN[1]][-3:].sum()  # from common to rare
    seconds = np.array([e.end - e.start for e in plan])
    assert (seconds < 9.1).sum() == 24 and (seconds[seconds > 9.1] == 10).all() and seconds.min() >= 4
    assert sum(32000 * s for s, e in zip(seconds, plan, strict=True) if e.has_file) < 60e6


@pytest.mark.parametrize("number", range(len(events.KINDS)))
def test_an_event_is_heard_where_it_is_tagged(number):
    with_it = events.Excerpt("", "", 0.0, 4.0, (number,), True, (5, number))
    wave = events.render(with_it) / 32768
    faint = events.render(with_it._replace(classes=())) / 32768  # the same noise
    assert len(wave) == 64000 and np.isfinite(wave).all()
    change = np.sqrt(np.mean((wave - faint) ** 2) / np.mean(faint**2))
    assert change > 2 and -51 < 20 * np.log10(np.sqrt(np.mean(faint**2))) < -39


def test_documented_difficulty_is_the_measured_one():
    """A nearest-mean classifier on librosa's log-mels, rated by scikit-learn."""
    import librosa
    from sklearn.metrics import average_precision_score

    excerpts = [e for e in events.plan() if e.has_file and e.csv != TRAIN[1]]
    test = np.array([e.csv == "eval_segments" for e in excerpts])
    tags = np.array([[c in e.classes for c in range(8)] for e in excerpts])
    x = []
    for excerpt in excerpts:
        wave = events.render(excerpt) / np.float32(32768)
        mels = librosa.feature.melspectrogram(y=wave, sr=16000, n_fft=512, hop_length=160, n_mels=64, fmin=50)
        x.append((10 * np.log10(mels + 1e-10)).mean(1))
    x = (x - np.mean(x, 0, where=~test[:, None])) / np.std(x, 0, where=~test[:, None])

    def distance(to):
        return np.linalg.norm(x[test] - x[to].mean(0), axis=1)

    score = [distance(~test & ~of) - distance(~test & of) for of in tags.T]
    precision = np.mean([average_precision_score(y, s) for y, s in zip(tags[test].T, score, strict=True)])
    said = re.search(r"mean average\s+precision of (0\.\d+)", events.__doc__)[1]
    chance = re.search(r"chance is (0\.\d+)", events.__doc__)[1]
    assert float(said) == pytest.approx(precision, abs=0.006) and 2 * tags[test].mean() < precision < 0.8
    assert float(chance) == pytest.approx(tags[test].mean(), abs=0.006)


def test_embedded_is_made_once_and_mended(tmp_path, monkeypatch):
    made, miniature = [], events.miniature
    small = dict(balanced=1, unbalanced=0, evaluation=0, seconds=1.0)
    monkeypatch.setattr(
        events, "miniature", lambda root, seed: made.append(seed) or miniature(root, seed=seed, **small)
    )
    monkeypatch.setenv("ASDJAX_CACHE", str(tmp_path))
    root = events.embedded()
    assert root == events.embedded() == tmp_path / "embedded-events-v1-seed0" and made == [0]
    assert events.embedded(tmp_path / "given", seed=7) == tmp_path / "given" / "embedded-events-v1-seed7"
    whole = files(root)
    next(root.rglob("*.wav")).unlink()
    assert files(events.embedded()) == whole and made == [0, 7, 0]
    shutil.rmtree(root)
    root.write_text("a file")
    with pytest.raises(InputError, match="cannot write the embedded miniature of AudioSet"):
        events.embedded(root)


def test_wrong_arguments_are_named(tmp_path):
    for wrong in (dict(seed=-1), dict(balanced=-1), dict(unbalanced=-1), dict(evaluation=-1), dict(seconds=0.5)):
        (name, value), *_ = wrong.items()
        with pytest.raises(UsageError, match=f"{name} {value}"):
            events.miniature(tmp_path / "new", **wrong)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="empty"):
        events.miniature(tmp_path)
    assert files(tmp_path) == {"mine.txt": b"keep"}
