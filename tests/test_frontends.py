from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import core, frontends

GOLDEN = json.loads((Path(__file__).parent / "golden" / "frontend.json").read_text())
BANKS = json.loads((Path(__file__).parent / "golden" / "mel_filterbanks.json").read_text())["outputs"]
FRONTENDS = dict(  # each in the contract's test below; n_bins for win = 256
    log_mel=(functools.partial(frontends.log_mel, n_mels=20), 20),
    spectrogram=(frontends.spectrogram, 128),
    spectrogram_all_bins=(functools.partial(frontends.spectrogram, drop_bin="none", scale="magnitude"), 129),
    spectrogram_refmin=(functools.partial(frontends.spectrogram, scale="power_to_db_refmin"), 128),
    phase=(frontends.phase, 129),
)


@functools.cache
def golden_wave() -> np.ndarray:
    """The golden file's 10 s: two tones and the noise of a linear congruential generator, (1, 160000) float64."""
    n = np.arange(160000)
    noise, state = np.empty(160000), 1
    for i in n:
        state = (1664525 * state + 1013904223) % 2**32
        noise[i] = state / 2**31 - 1
    wave = 0.5 * np.sin(2 * np.pi * 440 * n / 16000) + 0.25 * np.sin(2 * np.pi * 3000 * n / 16000 + 1) + 0.1 * noise
    np.testing.assert_allclose(wave[:5], GOLDEN["x_first"], atol=1e-12)
    np.testing.assert_allclose([wave.sum(), (wave**2).sum()], [GOLDEN["x_sum"], GOLDEN["x_energy"]], rtol=1e-9)
    return wave[None]


def signal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=shape)


def run(frontend, wave, dtype=jnp.float64) -> np.ndarray:
    with jax.enable_x64(dtype == jnp.float64):
        x = jax.jit(frontend)(jnp.asarray(wave, dtype))
        assert x.dtype == dtype
        return np.asarray(x, np.float64)


@pytest.mark.parametrize(
    "pad, dtype", [(p, jnp.float64) for p in ("reflect", "constant", "none")] + [("reflect", jnp.float32)]
)
@pytest.mark.parametrize("report", ["morita", "jless"])
def test_log_power_matches_the_golden(report, pad, dtype):
    fixed, golden = GOLDEN[report], GOLDEN[report]["stft"][pad]
    centering = dict(center=False) if pad == "none" else dict(pad=pad)
    frontend = frontends.spectrogram(win=fixed["n_fft"], hop=fixed["hop"], drop_bin="none", **centering)
    x = run(frontend, golden_wave(), dtype)[0]
    assert x.shape == tuple(golden["shape"][::-1])
    at = [(p["frame"], p["bin"]) for p in golden["points"]]
    # The golden stores dB with 9 digits, power with 12.
    atol = 1e-7 if dtype == jnp.float64 else 1e-3
    np.testing.assert_allclose([x[i] for i in at], [p["db_eps"] for p in golden["points"]], rtol=0, atol=atol)
    np.testing.assert_allclose(x.mean(), golden["mean_db"], rtol=0, atol=atol)
    np.testing.assert_allclose(x[:, :-1].mean(), golden["mean_db_without_nyquist"], rtol=0, atol=atol)
    if dtype == jnp.float64:
        power = [10 ** (x[i] / 10) for i in at]
        np.testing.assert_allclose(power, [p["power"] for p in golden["points"]], rtol=1e-7)


@pytest.mark.parametrize("dtype, atol", [(jnp.float64, 1e-6), (jnp.float32, 0.1)])  # the clip's minimum is a rounding
@pytest.mark.parametrize("report", ["morita", "jless"])
def test_db_above_the_minimum_matches_the_golden(report, dtype, atol):
    fixed, golden = GOLDEN[report], GOLDEN[report]["stft"]["power_to_db_refmin_constant"]
    kwargs = dict(win=fixed["n_fft"], hop=fixed["hop"], scale="power_to_db_refmin")
    x = run(frontends.spectrogram(**kwargs), golden_wave(), dtype)[0]
    at = [(p["frame"], p["bin"]) for p in golden["points"]]
    np.testing.assert_allclose([x[i] for i in at], [p["db"] for p in golden["points"]], rtol=0, atol=atol)
    found, expected = [x.mean(), x.min(), x.max()], [golden["mean"], golden["min"], golden["max"]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype, atol", [(jnp.float64, 1e-7), (jnp.float32, 1e-3)])
def test_log_mel_matches_the_golden(dtype, atol):
    golden = GOLDEN["logmel"]
    x = run(frontends.log_mel(), golden_wave(), dtype)[0]
    assert x.shape == tuple(golden["shape"][::-1])
    found = [x[p["frame"], p["mel"]] for p in golden["points"]]
    np.testing.assert_allclose(found, [p["value"] for p in golden["points"]], rtol=0, atol=atol)
    np.testing.assert_allclose(x.mean(), golden["mean"], rtol=0, atol=atol)


@pytest.mark.parametrize("name", BANKS)
def test_mel_filterbanks_match_the_golden(name):
    golden, config = BANKS[name], BANKS[name]["config"]
    kwargs = dict(win=config["n_fft"], hop=config["n_fft"], n_mels=config["n_mels"], center=False, window="boxcar")
    kwargs |= dict(f_min=config["fmin"], f_max=config["fmax"], mel="htk" if config["htk"] else "slaney")
    n, row = np.arange(config["n_fft"]), golden["mid_row_index"]
    bins = [golden["mid_row_nonzero_bins"][0] - 1, *golden["mid_row_nonzero_bins"]]
    # A click shows each filter's sum; a cosine of amplitude 2 / win at bin b has power 1 there: the weight of b.
    waves = np.concatenate(
        [(n == 0)[None], 2 / config["n_fft"] * np.cos(2 * np.pi * np.outer(bins, n) / config["n_fft"])]
    )
    with jax.enable_x64(True):
        energy = 10 ** (np.asarray(jax.jit(frontends.log_mel(**kwargs, floor=1e-30))(waves)) / 10)
    assert energy.shape[-1] == golden["shape"][0]
    assert np.count_nonzero(energy[0, 0] < 1e-12) == golden["n_zero_rows"]
    np.testing.assert_allclose(energy[0].sum(), golden["total"], rtol=1e-9)
    np.testing.assert_allclose(energy[1:, 0, row], [0, *golden["mid_row_values"]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("win, hop, pad", [(400, 160, "constant"), (255, 100, "reflect")])
def test_stft_matches_librosa(win, hop, pad):
    import librosa

    wave = signal((2, 2000))
    expected = librosa.stft(wave, n_fft=win, hop_length=hop, pad_mode=pad, dtype=np.complex128).swapaxes(1, 2)
    kwargs = dict(win=win, hop=hop, pad=pad)
    magnitude = run(frontends.spectrogram(**kwargs, scale="magnitude", drop_bin="none"), wave)
    np.testing.assert_allclose(magnitude, np.abs(expected), rtol=0, atol=1e-12)
    angle = run(frontends.phase(**kwargs), wave)
    np.testing.assert_allclose(np.exp(1j * angle), expected / np.abs(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("power, mel, pad", [(2.0, "slaney", "constant"), (1.0, "htk", "reflect")])
def test_log_mel_matches_librosa(power, mel, pad):
    import librosa

    wave = signal((2, 3000))
    kind = dict(htk=True, norm=None) if mel == "htk" else dict(htk=False, norm="slaney")
    energy = librosa.feature.melspectrogram(
        y=wave, sr=8000, n_fft=512, hop_length=200, n_mels=24, fmin=50, fmax=3500, power=power, pad_mode=pad, **kind
    )
    expected = 20 / power * np.log10(np.maximum(energy, 1e-10)).swapaxes(1, 2)
    kwargs = dict(sample_rate=8000, win=512, hop=200, n_mels=24, f_min=50, f_max=3500, mel=mel, power=power, pad=pad)
    frontend = frontends.log_mel(**kwargs, floor=1e-10)
    np.testing.assert_allclose(run(frontend, wave), expected, rtol=0, atol=1e-5)  # librosa's filters are float32
    np.testing.assert_allclose(run(frontend, wave, jnp.float32), expected, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("win, n_mels", [(512, 70), (8, 100)])  # a last block of 6; filters between the bins
def test_the_blocks_of_the_filterbank_are_the_whole(win, n_mels):
    import librosa

    wave, kind = signal((1, 5 * win)), dict(htk=True, norm=None)
    bank = librosa.filters.mel(sr=16000, n_fft=win, n_mels=n_mels, dtype=np.float64, **kind)
    assert n_mels % frontends.MEL_BLOCK
    if win == 8:
        assert not bank[: frontends.MEL_BLOCK].any()
    expected = np.abs(np.fft.rfft(wave.reshape(5, win))) ** 2 @ bank.T
    kwargs = dict(win=win, hop=win, n_mels=n_mels, mel="htk", center=False, window="boxcar", floor=1e-30)
    x = run(frontends.log_mel(**kwargs), wave)[0]
    np.testing.assert_allclose(x, 10 * np.log10(np.maximum(expected, 1e-30)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("win, hop", [(64, 24), (63, 20), (32, 50)])
@pytest.mark.parametrize("form", frontends._FORMS)
def test_every_platforms_formulation_gives_the_same_transform(form, win, hop, monkeypatch):
    monkeypatch.setattr(frontends, "GROUP", 2500)  # groups of 2, 1 and 6 clips
    wave, window = signal((6, 500)), np.hamming(win)
    frames = np.stack([wave[:, s : s + win] for s in range(0, 500 - win + 1, hop)], axis=1)
    expected = np.fft.rfft(frames * window)
    with jax.enable_x64(True):
        stacked = lambda real, imag: jnp.concatenate([real, imag], axis=1)  # noqa: E731
        x = np.asarray(jax.jit(lambda wave: frontends._FORMS[form](wave, window, hop, stacked))(wave))
    np.testing.assert_allclose(x, np.concatenate([expected.real, expected.imag], axis=2), rtol=0, atol=1e-12)


def test_a_clip_larger_than_a_group_is_one(monkeypatch):
    wave = signal((3, 500))
    expected = run(frontends.log_mel(win=64, hop=32, n_mels=8), wave)
    monkeypatch.setattr(frontends, "GROUP", 100)
    np.testing.assert_array_equal(run(frontends.log_mel(win=64, hop=32, n_mels=8), wave), expected)


@pytest.mark.parametrize("form", frontends._FORMS)
def test_every_platforms_formulation_keeps_float32_precision(form):
    wave, window = golden_wave()[:, :20480], np.hanning(1025)[:-1]
    expected = 20 * np.log10(np.abs(np.fft.rfft(wave.reshape(20, 1024) * window)))
    log_power = lambda real, imag: 10 * jnp.log10(real**2 + imag**2)  # noqa: E731
    transform = jax.jit(lambda wave: frontends._FORMS[form](wave, window.astype(np.float32), 1024, log_power))
    x = np.asarray(transform(wave.astype(np.float32)))[0]
    # Bins near 0 are rounding; those within 100 dB of the loudest must be right, at bfloat16 or TF32 they are not.
    heard = expected > expected.max() - 100
    assert heard.mean() > 0.9
    np.testing.assert_allclose(x[heard], expected[heard], rtol=0, atol=2e-2)
    np.testing.assert_allclose(x[heard].mean(), expected[heard].mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("platform, fft, loop", [("tpu", False, False), ("cuda", True, False), ("cpu", True, True)])
def test_each_platform_gets_its_formulation(platform, fft, loop):
    frontend = jax.jit(frontends.log_mel(win=64, hop=32, n_mels=8))
    lowered = jax.export.export(frontend, platforms=[platform])(jax.ShapeDtypeStruct((2, 640), jnp.float32))
    text = lowered.mlir_module()
    assert ("stablehlo.fft" in text, "stablehlo.while" in text) == (fft, loop)
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == (1 if fft else 3)
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert lowered.out_avals[0].shape == (2, 21, 8)


def test_a_program_can_be_exported_for_any_number_of_clips():
    frontend = jax.jit(frontends.log_mel(win=64, hop=32, n_mels=8))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("clips, 640"), jnp.float32)
    exported = jax.export.export(frontend, platforms=["cpu", "tpu", "cuda"])(shape)
    wave = signal((3, 640)).astype(np.float32)
    np.testing.assert_allclose(exported.call(wave), frontend(wave), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FRONTENDS)
@pytest.mark.parametrize("center", [True, False])
def test_every_frontend_obeys_the_shape_contract(name, center):
    factory, n_bins = FRONTENDS[name]
    for hop in (64, 100):
        x = jax.eval_shape(factory(win=256, hop=hop, center=center), jax.ShapeDtypeStruct((3, 2000), jnp.float32))
        assert x.shape == (3, 1 + 2000 // hop if center else 1 + (2000 - 256) // hop, n_bins)
        assert x.dtype == jnp.float32


def test_a_half_precision_wave_is_computed_in_float32():
    frontend = jax.jit(frontends.log_mel(win=64, hop=32, n_mels=8))
    wave = jnp.asarray(signal((1, 640)), jnp.bfloat16)
    x = frontend(wave)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, frontend(wave.astype(jnp.float32)))


def test_scales_and_dropped_bins():
    wave = signal((1, 640))
    expected = np.abs(np.fft.rfft(wave.reshape(10, 64)))[None]
    kwargs = dict(win=64, hop=64, center=False, window="boxcar")
    power = run(frontends.spectrogram(**kwargs, scale="power", drop_bin="first"), wave)
    np.testing.assert_allclose(power, expected[..., 1:] ** 2, rtol=1e-9)
    magnitude = run(frontends.spectrogram(**kwargs, scale="magnitude"), wave)
    np.testing.assert_allclose(magnitude, expected[..., :-1], rtol=1e-9)
    np.testing.assert_allclose(run(frontends.spectrogram(**kwargs), 0 * wave), 10 * np.log10(2.220446049250313e-16))


def test_spectrum_and_branches():
    wave = signal((2, 501))
    both = frontends.branches(spectrum=frontends.spectrum(), phase=frontends.phase(win=64, hop=32))
    with jax.enable_x64(True):
        x = jax.jit(both)(wave)
    np.testing.assert_allclose(x["spectrum"], np.abs(np.fft.rfft(wave))[:, None], rtol=1e-9)
    assert x["phase"].shape == (2, 16, 33)


@pytest.mark.parametrize(
    "spec, samples, message",
    [
        (dict(name="log_mel", mel="bark"), 4096, "mel='bark'; expected one of slaney, htk"),
        (dict(name="spectrogram", win=64, hop=32, scale="dB"), 4096, "scale='dB'; expected one of log_power"),
        (dict(name="spectrogram", win=64, hop=32, drop_bin="middle"), 4096, "drop_bin='middle'"),
        (dict(name="log_mel", pad="wrap"), 4096, "pad='wrap'; expected one of constant, reflect"),
        (dict(name="log_mel", hop=0), 4096, "hop=0"),
        (dict(name="log_mel", center=False), 1000, "a clip has 1000 samples; win=1024 needs at least 1024"),
        (dict(name="log_mel", pad="reflect"), 512, "a clip has 512 samples; win=1024 needs at least 513"),
        (dict(name="cut", width=0, hop=1), 4096, "width=0"),
        (dict(name="cut", width=8, hop=1, at="units"), 4096, "at='units'; expected one of wave, frames"),
        (dict(name="cut", width=8, hop=1, tail="pad"), 4096, "tail='pad'; expected one of drop, align"),
        (dict(name="cut", width=8, hop=1, train_hop=-1), 4096, "train_hop=-1"),
    ],
)
def test_wrong_options_and_short_clips_are_refused_by_name(spec, samples, message):
    with pytest.raises(core.UsageError, match=message):
        core.build(frontends, spec)(jnp.zeros((1, samples)))


def test_a_wave_of_integers_is_refused():
    with pytest.raises(core.UsageError, match="the wave is int16; expected floats"):
        frontends.log_mel()(jnp.zeros((1, 4096), jnp.int16))


@pytest.mark.parametrize("name", GOLDEN["units"])
def test_units_of_the_reports(name):
    golden = GOLDEN["units"][name]
    cut = frontends.cut(width=golden["unit"], hop=golden["shift"])
    frame = jnp.arange(golden["frames"], dtype=jnp.float32)[None, :, None]
    first = np.asarray(jax.jit(cut.units)(frame))[0, :, 0, 0]
    assert len(first) == golden["units"] == frontends.n_units(golden["frames"], width=cut.width, hop=cut.hop)
    assert first[-1] == golden["last_start"]
    assert golden["frames"] - golden["last_start"] - golden["unit"] == golden["frames_unused"]


@pytest.mark.parametrize("at, shape", [("frames", (2, 21, 3)), ("wave", (2, 21))])
@pytest.mark.parametrize("tail, starts", [("drop", [0, 4, 8, 12]), ("align", [0, 4, 8, 12, 14])])
def test_units_are_the_windows_of_the_clip(at, shape, tail, starts):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    cut = frontends.cut(width=7, hop=4, at=at, tail=tail)
    expected = np.stack([x[:, s : s + 7] for s in starts], axis=1)
    np.testing.assert_array_equal(jax.jit(cut.units)(x), expected)
    assert frontends.n_units(21, width=7, hop=4, tail=tail) == len(starts)
    assert (cut.at, cut.width, cut.hop) == (at, 7, 4)


def test_an_aligned_tail_adds_nothing_where_nothing_is_left():
    assert frontends.n_units(19, width=7, hop=4, tail="align") == frontends.n_units(19, width=7, hop=4) == 4
    assert frontends.n_units(7, width=7, hop=4, tail="align") == 1


@pytest.mark.parametrize(
    "at, shape, kwargs, starts",
    [
        ("frames", (300, 21, 2), dict(), [0, 4, 8, 12]),
        ("frames", (300, 21, 2), dict(train_hop=1), list(range(15))),
        ("wave", (300, 21), dict(tail="align"), [0, 4, 8, 12, 14]),
    ],
)
def test_a_drawn_unit_is_any_of_the_allowed_windows_of_its_own_clip(at, shape, kwargs, starts):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    cut = frontends.cut(width=7, hop=4, at=at, **kwargs)
    draw = jax.jit(cut.draw)
    unit = np.asarray(draw(jax.random.key(0), x))
    assert unit.shape == (300, 7, *shape[2:])
    first = (unit.reshape(300, -1)[:, 0] - x.reshape(300, -1)[:, 0]) / (shape[2] if at == "frames" else 1)
    window = first.astype(int)[:, None] + np.arange(7)
    np.testing.assert_array_equal(unit, x[np.arange(300)[:, None], window])
    counts = np.array([(first == s).sum() for s in starts])
    assert counts.sum() == 300
    assert abs(counts - 300 / len(starts)).max() < 5 * np.sqrt(300 / len(starts))  # uniform, to five deviations
    assert not np.array_equal(unit, draw(jax.random.key(1), x))


@pytest.mark.parametrize("train_hop", [0, 1])
def test_a_clip_shorter_than_one_unit_is_refused_with_both_lengths(train_hop):
    cut = frontends.cut(width=32, hop=16, train_hop=train_hop)
    for call in (cut.units, functools.partial(cut.draw, jax.random.key(0))):
        with pytest.raises(core.UsageError, match=r"a clip has 31 .* width=32"):
            call(jnp.zeros((1, 31, 2)))
