"""Waveforms and tags made when they are asked for: their rows, and the feed, training and embedding as from memory."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import tiny

from asdjax import evaluate, parallel, train
from asdjax.core import InputError
from asdjax.data import feed, ondemand, sampling

RATE = 16000


def noise(n, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, n)


def waves(*files, samples=100, rate=RATE, workers=2):
    return ondemand.Waves(np.array([str(f) for f in files], object), samples, rate, workers)


def wav(path: Path, samples, rate=RATE, subtype="PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.fixture
def decodings(monkeypatch):
    """Names of the files decoded, in no order."""
    names, decoded = [], ondemand.decoded
    monkeypatch.setattr(ondemand, "decoded", lambda path, **k: names.append(Path(path).name) or decoded(path, **k))
    return names


def test_rows_are_the_files_cut_or_padded_in_the_order_asked_for(tmp_path, decodings):
    files = [
        wav(tmp_path / f"{i}.{e}", noise(n, i)) for i, (n, e) in enumerate(((100, "wav"), (130, "flac"), (7, "wav")))
    ]
    some = waves(*files)
    assert some.shape == (3, 100) and len(some) == 3 and some.dtype == np.int16 and some.nbytes == 600
    expected = np.zeros((3, 100), np.int16)
    for row, path in zip(expected, files, strict=True):
        x = soundfile.read(path, dtype="int16")[0][:100]
        row[: len(x)] = x
    got = some[np.array([2, 0, 2, 1, 0])]
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, expected[[2, 0, 2, 1, 0]])
    assert sorted(decodings) == ["0.wav", "1.flac", "2.wav"]  # each once
    np.testing.assert_array_equal(some[1:], expected[1:])
    decodings.clear()
    empty = some[np.array([], int)]
    assert empty.shape == (0, 100) and empty.dtype == np.int16 and decodings == []


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "FLOAT"])
def test_channels_are_averaged_and_fine_samples_rounded(tmp_path, subtype):
    path = wav(tmp_path / "a.wav", np.stack([noise(90, 1), noise(90, 2)], 1), subtype=subtype)
    expected = soundfile.read(path, dtype="float64")[0].mean(1)
    got = waves(path)[np.array([0])][0] / 32768
    np.testing.assert_allclose(got[:90], expected, rtol=0, atol=1.6 / 32768)  # half a step, and 32767 for 32768
    assert not got[90:].any()


def test_float_files_beyond_full_scale_are_clipped(tmp_path):
    path = wav(tmp_path / "a.wav", [4.0, -2.0, 1.0, 0.5, 0.0], subtype="FLOAT")
    assert waves(path, samples=5)[np.array([0])].tolist() == [[32767, -32767, 32767, 16384, 0]]


@pytest.mark.parametrize(("rate", "seconds"), [(44100, 0.2), (8000, 0.2), (22050, 3.0)])
def test_other_sample_rates_are_converted_as_by_librosa(tmp_path, rate, seconds):
    import librosa

    path = wav(tmp_path / "a.wav", noise(int(rate * seconds)), rate)
    whole = librosa.resample(soundfile.read(path, dtype="float32")[0], orig_sr=rate, target_sr=RATE)
    got = waves(path, samples=8000)[np.array([0])][0]
    whole = np.pad(whole, (0, max(0, 8000 - len(whole))))[:8000]  # 3 s: the file is read as far as it is needed
    np.testing.assert_allclose(got, np.clip(whole, -1, 1) * 32767, atol=0.6)


def test_a_file_that_cannot_be_decoded_is_silence_and_named(tmp_path, caplog):
    good = wav(tmp_path / "good.wav", noise(100))
    files = [tmp_path / f"bad{i}.wav" for i in range(14)]
    for path in files:
        path.write_bytes(b"RIFFnothing")
    wav(files[1], np.full(100, np.nan), subtype="FLOAT")
    wav(files[2], [])
    some = waves(*files, good)
    with caplog.at_level(logging.WARNING):
        got = some[np.array([14, 0])]
        again = some[np.array([0, 14])]
    assert got[0].any() and not got[1].any() and not again[0].any()
    assert len(caplog.records) == 1 and f"{files[0]}: cannot be decoded (" in caplog.text
    with caplog.at_level(logging.WARNING):
        some[np.arange(15)]
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 11 and sum("silence" in t for t in told) == 10 and "no more are named" in told[-1]
    assert f"{files[1]}: cannot be decoded (NaN" in caplog.text and f"{files[2]}: cannot be decoded (no" in caplog.text
    good.unlink()
    with pytest.raises(InputError, match=r"bad0\.wav: cannot be decoded .* nor can any other of the 15 files"):
        some[np.arange(15)]


def test_tags_equal_a_sparse_matrix():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    own = [tuple(sorted(rng.choice(7, rng.integers(0, 4), replace=False).tolist())) for _ in range(40)]
    tags = ondemand.multi_hot(own, 7)
    dense = csr_matrix((np.ones(len(tags.column), np.float32), tags.column, tags.start), (40, 7)).toarray()
    assert [tuple(np.flatnonzero(row)) for row in dense] == own
    assert tags.shape == (40, 7) and len(tags) == 40 and tags.dtype == np.float32
    for index in (rng.integers(40, size=64), np.array([], int), slice(3, 9), slice(None), rng.random(40) < 0.5):
        got = tags[index]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, dense[index])
    for got, expected in zip(tags.pairs(), np.nonzero(dense), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("index", [np.array([0, 3]), np.array([-1]), np.array([[0]]), np.array(1)])
def test_rows_that_are_not_there_are_refused(index):
    tags = ondemand.multi_hot([(0,), (), (1,)], 2)
    with pytest.raises(IndexError, match="of 3"):
        tags[index]


def test_they_are_leaves():
    tags, some = ondemand.multi_hot([(0,)], 2), waves("a.wav")
    assert jax.tree.leaves({"a": tags, "b": some}) == [tags, some]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same clips and labels twice: in memory, and made when they are asked for."""
    folder, store = tmp_path_factory.mktemp("tones"), tiny.tones()
    files = [wav(folder / f"{i}.wav", wave, tiny.SR) for i, wave in enumerate(store.wave)]
    label = ondemand.multi_hot([(int(c),) for c in store.label["class"].argmax(1)], 4)
    lazy = feed.Store(waves(*files, samples=tiny.SR, rate=tiny.SR), store.gain, {"class": label})
    return store, lazy


def test_a_request_decodes_its_clips_and_no_other(stores, decodings):
    store, lazy = stores
    rows = np.array([[[5, 3], [3, 9]]])
    ((there, (clips, labels)),) = feed.feed(lazy, [(rows, rows)], parallel.data_mesh(), axis=2)
    assert sorted(decodings) == ["3.wav", "5.wav", "9.wav"]
    batch = there.batch(clips[0, 1], labels[0, 1])
    np.testing.assert_array_equal(batch["wave"], store.wave[[3, 9]] / np.float32(32768))
    np.testing.assert_array_equal(batch["label"]["class"], store.label["class"][[3, 9]])


def train_on(store, folder, steps):
    """The states and losses of the network of train_worker, the clips on the host."""
    config = tiny.config()
    rows = np.arange(len(store.wave)) >= 0
    sampler = sampling.uniform(None, rows, batch_size=config["train"]["batch_size"]).draw
    network = train.Network(folder, train.make(config, 4), store.label, rows, sampler, 3)
    (state,) = train.train([network], store, steps=steps, chunk=2, checkpoint_every=4, mesh=parallel.data_mesh())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return network.system, state, [json.loads(line)["loss"] for line in lines]


def test_training_resuming_and_embedding_are_as_from_memory(stores, tmp_path):
    store, lazy = stores
    system, expected, losses = train_on(store, tmp_path / "memory", 8)
    assert losses[-1] < losses[0]
    train_on(lazy, tmp_path / "files", 4)
    _, state, found = train_on(lazy, tmp_path / "files", 8)
    assert found == losses
    jax.tree.map(np.testing.assert_array_equal, state, expected)

    rows = np.array([7, 1, 30, 2, 11])
    settings = dict(rows=rows, units=32, mesh=parallel.data_mesh())
    made = [next(iter(evaluate.embed_clips(system, [state], s, **settings))) for s in stores]
    assert len(made[0]["embedding"]) == len(rows)
    jax.tree.map(np.testing.assert_array_equal, *made)
