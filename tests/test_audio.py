from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdjax.core import Clips, InputError, UsageError
from asdjax.data import audio

RATE = 16000


def index(*paths) -> Clips:
    path = np.array([str(p) for p in paths])
    blank = np.full(len(path), "")
    return Clips(path, blank, blank, blank, blank, np.zeros(len(path), np.int8), blank)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n)


def wav(path: Path, samples, subtype: str = "PCM_16", rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ASDJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "banks"


@pytest.fixture
def decodings(monkeypatch) -> list:
    """The paths decoded, in the order in which it was begun."""
    paths, row = [], audio.row
    monkeypatch.setattr(audio, "row", lambda path, *args, **kwargs: paths.append(path) or row(path, *args, **kwargs))
    return paths


@pytest.fixture
def three(tmp_path) -> Clips:
    return index(*(wav(tmp_path / f"{i}.wav", noise(8, i)) for i in (2, 0, 1)))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8"])
def test_samples_of_16_bits_or_fewer_are_kept_as_they_are(tmp_path, subtype):
    path = wav(tmp_path / "a.wav", [0.5, -1.0, 32767 / 32768, 0.0, -3 / 32768], subtype)
    bank = audio.bank(index(path))
    assert bank.wave.dtype == np.int16 and bank.scale.dtype == np.float32 and bank.scale[0] == 1 / 32768
    np.testing.assert_array_equal(bank.wave[0] * bank.scale[0], soundfile.read(path, dtype="float32")[0])
    if subtype == "PCM_16":
        assert bank.wave[0].tolist() == [16384, -32768, 32767, 0, -3]


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_finer_samples_keep_the_resolution_of_quiet_recordings(tmp_path, subtype):
    x = 1e-4 * noise(500)  # of the 16 bits a plain conversion would leave 1.6
    path = wav(tmp_path / "a.wav", x, subtype)
    bank = audio.bank(index(path))
    expected = soundfile.read(path, dtype="float64")[0]
    peak = np.abs(expected).max()
    np.testing.assert_allclose(bank.wave[0] * np.float64(bank.scale[0]), expected, rtol=0, atol=0.502 * peak / 32767)
    assert np.abs(bank.wave[0]).max() == 32767
    np.testing.assert_allclose(bank.rms[0], np.sqrt(np.mean(expected**2)), rtol=1e-7)


def test_float_files_may_pass_full_scale(tmp_path):
    bank = audio.bank(index(wav(tmp_path / "a.wav", [4.0, -2.0, 1.0, 0.0], "FLOAT")))
    np.testing.assert_allclose(bank.wave[0] * bank.scale[0], [4, -2, 1, 0], atol=4 / 32767)


def test_channel(tmp_path):
    path = wav(tmp_path / "a.wav", np.stack([noise(50, 1), noise(50, 2)], axis=1))
    expected = soundfile.read(path, dtype="int16")[0]
    for channel in (0, 1):
        np.testing.assert_array_equal(audio.bank(index(path), channel=channel).wave[0], expected[:, channel])
    with pytest.raises(InputError, match=r"a\.wav: 2 channel\(s\), expected one numbered 2"):
        audio.bank(index(path), channel=2)


@pytest.mark.parametrize(
    ("length", "samples", "rows"),
    [
        ("tile", None, [[1, 2, 3, 4, 5], [7, 8, 7, 8, 7]]),
        ("pad", None, [[1, 2, 3, 4, 5], [7, 8, 0, 0, 0]]),
        ("crop", None, [[1, 2], [7, 8]]),
        ("tile", 3, [[1, 2, 3], [7, 8, 7]]),
        ("pad", 3, [[1, 2, 3], [7, 8, 0]]),
        ("pad", 7, [[1, 2, 3, 4, 5, 0, 0], [7, 8, 0, 0, 0, 0, 0]]),
        ("crop", 1, [[1], [7]]),
    ],
)
def test_length(tmp_path, length, samples, rows):
    clips = index(
        wav(tmp_path / "a.wav", np.array([1, 2, 3, 4, 5], np.int16)),
        wav(tmp_path / "b.wav", np.array([7, 8], np.int16)),
    )
    bank = audio.bank(clips, length=length, seconds=samples and samples / RATE)
    assert bank.wave.tolist() == rows
    assert bank.seconds.tolist() == [5 / RATE, 2 / RATE]
    kept = [[1, 2, 3, 4, 5][: len(rows[0])], [7, 8][: len(rows[1])]]
    np.testing.assert_allclose(bank.rms, [math.sqrt(sum(v * v for v in k) / len(k)) / 32768 for k in kept], rtol=1e-15)


def test_crop_refuses_a_clip_that_is_too_short(tmp_path):
    clips = index(wav(tmp_path / "a.wav", noise(9)), wav(tmp_path / "b.wav", noise(5)))
    with pytest.raises(InputError, match=r"b\.wav: 5 samples, expected at least 8 to crop"):
        audio.bank(clips, length="crop", seconds=8 / RATE)


@pytest.mark.parametrize(("rate", "subtype"), [(44100, "PCM_16"), (8000, "FLOAT")])
def test_resample_equals_librosa(tmp_path, rate, subtype):
    import librosa

    path = wav(tmp_path / "a.wav", np.sin(0.05 * np.arange(1001)), subtype, rate)
    bank = audio.bank(index(path), resample=True)
    expected = librosa.resample(soundfile.read(path, dtype="float32")[0], orig_sr=rate, target_sr=RATE)
    assert bank.wave.shape == (1, len(expected))
    step = np.abs(expected).max() / 32767
    np.testing.assert_allclose(bank.wave[0] * bank.scale[0], expected, rtol=0, atol=0.502 * step)
    np.testing.assert_allclose(bank.rms[0], np.sqrt(np.mean(expected.astype(float) ** 2)), rtol=1e-6)
    assert bank.seconds[0] == 1001 / rate and bank.sample_rate == RATE


def test_rows_follow_the_clips(three, monkeypatch):
    monkeypatch.setattr(audio, "BLOCK", 2)  # three clips are then more than one block
    bank = audio.bank(three)
    np.testing.assert_array_equal(bank.wave, [soundfile.read(p, dtype="int16")[0] for p in three.path])
    other = audio.bank(three[np.array([1, 0, 2])])
    np.testing.assert_array_equal(other.wave, bank.wave[[1, 0, 2]])
    np.testing.assert_array_equal(other.rms, bank.rms[[1, 0, 2]])


def test_reuse_decodes_nothing(three, decodings, cache):
    first = audio.bank(three)
    assert sorted(decodings) == sorted(three.path)
    decodings.clear()
    again = audio.bank(three)
    assert decodings == [] and len(list(cache.glob("*"))) == 2
    assert isinstance(again.wave, np.memmap) and not again.wave.flags.writeable
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


def test_every_parameter_has_its_own_bank(three, decodings, cache):
    audio.bank(three)
    for other in ({"seconds": 4 / RATE}, {"length": "pad"}, {"length": "crop"}, {"resample": True}):
        decodings.clear()
        audio.bank(three, **other)
        assert len(decodings) == 3, other
    assert len(list(cache.glob("*.npy"))) == 5


def test_where_the_cache_is(three, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    audio.bank(three, cache=tmp_path / "given")
    audio.bank(three)
    monkeypatch.delenv("ASDJAX_CACHE")
    audio.bank(three)
    monkeypatch.delenv("XDG_CACHE_HOME")
    audio.bank(three)
    for folder in ("given/banks", "cache/banks", "xdg/asdjax/banks", "home/.cache/asdjax/banks"):
        assert len(list((tmp_path / folder).glob("*.npy"))) == 1, folder


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def damage(name: str, bank: Path, sidecar: Path, foreign: Path) -> None:
    if name == "truncated":
        os.truncate(bank, bank.stat().st_size - 2)
    elif name == "longer":
        bank.write_bytes(bank.read_bytes() + b"\0\0")
    elif name == "flipped":
        flip(bank, -5)
    elif name == "first row":
        flip(bank, 128)
    elif name == "empty":
        bank.write_bytes(b"")
    elif name == "foreign":  # as large as this one, and whole
        shutil.copy(foreign, bank)
        shutil.copy(foreign.with_suffix(".json"), sidecar)
    elif name == "foreign content":
        shutil.copy(foreign, bank)
    elif name == "torn json":
        sidecar.write_text(sidecar.read_text()[:-20])
    elif name == "edited json":
        about, check = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps([about | {"rms": [0.1, 0.1, 0.1]}, check]))
    elif name == "another json":
        sidecar.write_text('{"a": 1}')
    elif name == "no json":
        sidecar.unlink()


@pytest.mark.parametrize(
    "name",
    "truncated,longer,flipped,first row,empty,foreign,foreign content,torn json,edited json,another json,no json".split(
        ","
    ),
)
def test_a_damaged_bank_is_decoded_again(three, tmp_path, decodings, cache, caplog, name):
    other = index(*(wav(tmp_path / f"other{i}.wav", noise(8, 10 + i)) for i in range(3)))
    audio.bank(other)
    foreign = next(cache.glob("*.npy"))
    first = audio.bank(three)
    expected, rms = np.array(first.wave), first.rms
    bank = next(p for p in cache.glob("*.npy") if p != foreign)
    damage(name, bank, bank.with_suffix(".json"), foreign)
    decodings.clear()
    with caplog.at_level(logging.WARNING):
        again = audio.bank(three)
    assert sorted(decodings) == sorted(three.path)
    assert f"{bank} is not trusted" in caplog.text
    np.testing.assert_array_equal(again.wave, expected)
    np.testing.assert_array_equal(again.rms, rms)
    decodings.clear()
    audio.bank(three)
    assert decodings == []


def test_no_byte_of_a_bank_can_be_wrong(tmp_path, cache):
    audio.bank(index(wav(tmp_path / "a.wav", noise(8))))
    bank = next(cache.glob("*.npy"))
    for path in (bank, bank.with_suffix(".json")):
        for position in range(path.stat().st_size):
            flip(path, position)
            with pytest.raises(Exception):  # noqa: B017 whatever numpy or json make of it
                audio.load(bank)
            flip(path, position)
    audio.load(bank)


def test_a_changed_wav_is_decoded_again(three, decodings):
    audio.bank(three)
    stat = os.stat(three.path[1])
    wav(three.path[1], noise(8, 99))
    os.utime(three.path[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    decodings.clear()
    bank = audio.bank(three)
    assert len(decodings) == 3
    np.testing.assert_array_equal(bank.wave[1], soundfile.read(three.path[1], dtype="int16")[0])


def test_a_wav_that_changes_during_decoding_is_an_error(three, monkeypatch):
    row = audio.row

    def change(path, *args, **kwargs):
        os.utime(path, ns=(0, 0))
        return row(path, *args, **kwargs)

    monkeypatch.setattr(audio, "row", change)
    with pytest.raises(InputError, match="changed while they were read"):
        audio.bank(three)


def test_a_killed_writer_leaves_nothing_that_is_trusted(tmp_path, cache):
    paths = [wav(tmp_path / f"{i}.wav", noise(8, i)) for i in range(4)]
    script = f"""
import os, signal
from asdjax.data import audio
import test_audio
row = audio.row
audio.BLOCK = 1
def kill(path, *args, **kwargs):
    if path.endswith("3.wav"):
        os.kill(os.getpid(), signal.SIGKILL)
    return row(path, *args, **kwargs)
audio.row = kill
audio.bank(test_audio.index(*{[str(p) for p in paths]}))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -9
    left = list(cache.iterdir())
    assert [p.suffix for p in left] == [".tmp"]
    bank = audio.bank(index(*paths))
    np.testing.assert_array_equal(bank.wave, [soundfile.read(p, dtype="int16")[0] for p in paths])
    assert left[0].exists()  # it could be of a writer at work
    os.utime(left[0], (0, time.time() - 2 * 86400))
    audio.bank(index(*paths), length="pad")
    assert not left[0].exists()


def test_an_error_leaves_no_file(three, cache, monkeypatch):
    wav(three.path[2], [np.nan] * 8, "FLOAT")
    with pytest.raises(InputError, match="NaN"):
        audio.bank(three)
    assert list(cache.iterdir()) == []


def test_writers_at_once(tmp_path, monkeypatch, cache, caplog):
    paths = [wav(tmp_path / f"{i}.wav", noise(300, i)) for i in range(20)]
    expected = [soundfile.read(p, dtype="int16")[0] for p in paths]
    monkeypatch.setattr(audio, "BLOCK", 4)
    with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.WARNING):
        banks = list(pool.map(lambda _: audio.bank(index(*paths)), range(8)))
    for bank in banks:
        np.testing.assert_array_equal(bank.wave, expected)
    assert sorted(p.suffix for p in cache.iterdir()) == [".json", ".npy"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "No such file or directory, expected an audio file"),
        (lambda p: p.write_bytes(b""), "cannot be read as audio"),
        (lambda p: p.write_bytes(b"hello" * 100), "cannot be read as audio"),
        (lambda p: p.mkdir(), "cannot be read as audio"),
        (lambda p: wav(p, []), "no samples, expected a recording"),
        (lambda p: wav(p, [0.0, np.nan], "FLOAT"), "NaN or infinite samples"),
        (lambda p: wav(p, [0.0, np.inf], "DOUBLE"), "NaN or infinite samples"),
        (lambda p: wav(p, [0.1], rate=8000), "sample rate 8000 Hz, expected 16000 Hz; data.resample=True converts"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, make, message):
    good, bad = wav(tmp_path / "good.wav", noise(4)), tmp_path / "bad.wav"
    make(bad)
    with pytest.raises(InputError) as error:
        audio.bank(index(good, bad))
    assert str(error.value).startswith(f"{bad}: ") and message in str(error.value)


def test_a_flac_that_breaks_off(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(20000), RATE)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"a\.flac: "):
        audio.bank(index(path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": "loop"}, "length: 'loop', expected 'tile', 'pad' or 'crop'"),
        ({"seconds": 0}, "seconds 0"),
        ({"seconds": -1.0}, "seconds -1.0"),
        ({"channel": -1}, "channel -1"),
        ({"sample_rate": 0}, "sample_rate 0"),
    ],
)
def test_wrong_arguments(three, wrong, message):
    with pytest.raises(UsageError, match=message):
        audio.bank(three, **wrong)


def test_no_clips():
    with pytest.raises(InputError, match="no clips"):
        audio.bank(index())


def test_a_full_disk_is_said_before_decoding(three, monkeypatch, decodings, cache):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 53, 47))  # 3 x 8 x 2 bytes - 1
    with pytest.raises(InputError, match=r"0\.0 GB free, expected 0\.0 GB .* \$ASDJAX_CACHE"):
        audio.bank(three)
    assert decodings == [] and list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(three, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.* cannot be written to .*\$ASDJAX_CACHE"):
        audio.bank(three, cache=tmp_path / "file")


def test_progress(three, monkeypatch, capsys, caplog):
    with caplog.at_level(logging.INFO):
        audio.bank(three)
    assert [r.getMessage()[:16] for r in caplog.records] == ["decoding 3 clips", "decoded 3 clips "]
    assert capsys.readouterr().err == ""
    caplog.clear()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO):
        audio.bank(three, length="pad")
    assert "100%" in capsys.readouterr().err and caplog.records == []


def levelled() -> audio.Bank:
    wave = np.array([[3277, -3277], [100, -100], [0, 0]], np.int16)
    scale = np.array([1 / 32768, 0.001, 1 / 32768], np.float32)
    return audio.Bank(wave, scale, np.array([3277 / 32768, 0.1 * 2**-3, 0.0]), np.full(3, 2 / RATE), RATE)


def test_gain():
    bank = levelled()
    np.testing.assert_array_equal(audio.gain(bank, "as_recorded"), bank.scale)
    gain = audio.gain(bank, "rms", rms=0.05)
    assert gain.dtype == np.float32
    np.testing.assert_allclose(gain, [0.05 / 3277, 0.001 * 4, 1 / 32768], rtol=1e-6)
    with pytest.raises(UsageError, match="level: 'loud', expected 'as_recorded' or 'rms'"):
        audio.gain(bank, "loud")


def test_rms_level_makes_every_row_as_loud(tmp_path):
    subtypes = ("PCM_16", "PCM_24", "FLOAT")
    paths = [wav(tmp_path / f"{i}.wav", 10.0**-i * noise(400, i), s) for i, s in enumerate(subtypes)]
    bank = audio.bank(index(*paths))
    heard = bank.wave * audio.gain(bank, "rms")[:, None].astype(float)
    np.testing.assert_allclose(np.sqrt((heard**2).mean(1)), 0.1, rtol=1e-5)
    assert np.unique(audio.loudness(bank, "rms")).tolist() == [-20.0]


def test_loudness():
    bank = levelled()
    # 20 log10(3277/32768) = -19.99947..., 20 log10(0.0125) = -38.06179...
    assert audio.loudness(bank, "as_recorded").tolist() == [-19.9995, -38.0618, -120.0]
    assert audio.loudness(bank, "rms").tolist() == [-20.0, -20.0, -120.0]
    with pytest.raises(UsageError, match="level"):
        audio.loudness(bank, "x")


@pytest.mark.parametrize("tiny", [0.0, 1e-40])
def test_silence_stays_finite(tmp_path, tiny):
    bank = audio.bank(index(wav(tmp_path / "a.wav", [0.0, tiny, -tiny], "DOUBLE")))
    assert bank.wave.tolist() == [[0, 0, 0]] and bank.rms[0] == 0
    assert audio.gain(bank, "rms").tolist() == [1 / 32768] and audio.loudness(bank, "rms").tolist() == [-120]
