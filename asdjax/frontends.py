"""Frontends: waveform (B, T) -> features (B, L, F), without parameters; and the cut of a clip into units.

Every frontend obeys one contract, so that they are interchangeable: float wave (B, T) in, features (B, L, F) out, in
the wave's own float type (float32 at least). With `center`, L = 1 + T // hop, else 1 + (T - win) // hop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdjax.core import UsageError, by_device

Frontend = Callable[[jax.Array], jax.Array]
GROUP = 5 << 18  # samples in the frames of a group of clips: the fastest of 1 to 16 clips at each report's setting
MEL_BLOCK = 32  # filters
EPS = 2.220446049250313e-16  # the floor of the official DCASE baselines: the spacing of float64 at 1


def _check(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"frontends: {field}={value!r}; expected one of {', '.join(known)}")


# --- short-time Fourier transform: three formulations of one transform ---------------------------------------------
# Each maps padded waves (B, T) to (B, L, F'), where `features` maps the real and imaginary parts (n, F) of n frames to
# (n, F'). It is inside, and sees 2-D arrays, because XLA:CPU is 3x slower on batched 3-D products.


def _frames(wave: jax.Array, win: int, hop: int) -> jax.Array:
    """(B, T) -> (B, L, win), gathered in slices: an index for every sample would be as much to read as the samples."""
    starts = np.arange(0, wave.shape[1] - win + 1, hop)
    return jax.vmap(lambda first: lax.dynamic_slice_in_dim(wave, first, win, axis=1), out_axes=1)(starts)


def _rfft_batched(wave: jax.Array, window: np.ndarray, hop: int, features: Callable) -> jax.Array:
    frames = _frames(wave, len(window), hop)
    spectrum = jnp.fft.rfft((frames * window).reshape(-1, len(window)))
    return features(spectrum.real, spectrum.imag).reshape(*frames.shape[:2], -1)


def _rfft_by_group(wave: jax.Array, window: np.ndarray, hop: int, features: Callable) -> jax.Array:
    """A loop over groups of clips, for CPU: few enough that their frames stay in cache, enough to occupy the cores."""
    n_clips, samples = wave.shape
    n_frames = 1 + (samples - len(window)) // hop
    n_groups = n_clips
    if isinstance(n_clips, int):  # else an exported program's unknown number of clips: one by one
        n_groups = min(n_clips, max(1, -(-n_clips * n_frames * len(window) // GROUP)))  # a long clip is a group
        while n_clips % n_groups:
            n_groups += 1
    groups = wave.reshape(n_groups, n_clips // n_groups, samples)
    x = lax.map(lambda group: _rfft_batched(group, window, hop, features), groups)
    return x.reshape(n_clips, n_frames, x.shape[-1])


def _dft_product(wave: jax.Array, window: np.ndarray, hop: int, features: Callable) -> jax.Array:
    """A matrix product, for TPU, whose FFT is slow and imprecise (jax#9881).

    Cosines are even and sines odd in n about win / 2: folding the frame first halves the products. Frames are made of
    shifted blocks of `hop` samples, since a TPU gathers slowly. At less than 'highest' the error reaches 7 dB.
    """
    win, samples = len(window), wave.shape[1]
    n_frames, per_frame = 1 + (samples - win) // hop, -(-win // hop)
    blocks = n_frames + per_frame - 1
    wave = jnp.pad(wave, ((0, 0), (0, max(0, blocks * hop - samples))))[:, : blocks * hop].reshape(-1, blocks, hop)
    frames = jnp.concatenate([wave[:, i : i + n_frames] for i in range(per_frame)], axis=-1)[..., :win]
    frames = (frames * window).reshape(-1, win)

    half = (win - 1) // 2
    left, right = frames[:, 1 : half + 1], frames[:, win - half :][:, ::-1]
    even = jnp.concatenate([frames[:, :1], left + right, frames[:, half + 1 : win - half]], axis=1)
    n, k = np.arange(win // 2 + 1)[:, None], np.arange(win // 2 + 1)
    angle = 2 * np.pi * (n * k % win) / win  # whole-number phase, so that float64 rounds once
    real = jnp.dot(even, np.cos(angle).astype(wave.dtype), precision="highest")
    imag = jnp.dot(left - right, -np.sin(angle[1 : half + 1]).astype(wave.dtype), precision="highest")
    return features(real, imag).reshape(-1, n_frames, jax.eval_shape(features, real, imag).shape[-1])


_FORMS = dict(cpu=_rfft_by_group, tpu=_dft_product, default=_rfft_batched)


def _stft(*, win: int, hop: int, window: str, center: bool, pad: str) -> Callable[[jax.Array, Callable], jax.Array]:
    """The transform as librosa defines it; returns apply(wave (B, T), features) -> (B, L, F')."""
    from scipy.signal import get_window

    _check("pad", pad, ("constant", "reflect"))
    if win < 2 or hop < 1:
        raise UsageError(f"frontends: win={win}, hop={hop}; expected at least 2 and 1 samples")
    taper = get_window(window, win, fftbins=True)
    shortest = win // 2 + 1 if center and pad == "reflect" else 1 if center else win

    def apply(wave, features):
        if not jnp.issubdtype(wave.dtype, jnp.floating):
            raise UsageError(f"frontends: the wave is {wave.dtype}; expected floats in [-1, 1]")
        if wave.shape[1] < shortest:
            raise UsageError(f"frontends: a clip has {wave.shape[1]} samples; win={win} needs at least {shortest}")
        dtype = jnp.promote_types(wave.dtype, jnp.float32)  # never in bfloat16
        wave = wave.astype(dtype)
        if center:
            wave = jnp.pad(wave, ((0, 0), (win // 2, win // 2)), mode=pad)
        args = (taper.astype(dtype), hop, features)
        forms = {k: lambda w, form=form: form(w, *args) for k, form in _FORMS.items()}
        return by_device(lambda wave: lax.platform_dependent(wave, **forms))(wave)

    return apply


# --- the frontends -------------------------------------------------------------------------------------------------


def log_mel(
    *,
    sample_rate: int = 16000,
    win: int = 1024,
    hop: int = 512,
    n_mels: int = 128,
    f_min: float = 0.0,
    f_max: float | None = None,
    mel: str = "slaney",
    window: str = "hann",
    center: bool = True,
    pad: str = "constant",
    power: float = 2.0,
    floor: float = EPS,
) -> Frontend:
    """Log-mel spectrogram in dB: 20 / power * log10(max(mel @ |STFT|^power, floor)), as the official baselines.

    Args:
        sample_rate: Hz.
        win, hop: frame length and shift in samples.
        n_mels: F.
        f_min, f_max: edges of the filterbank in Hz; None is half the sample rate.
        mel: 'slaney' (librosa's default: area-normalised filters) or 'htk' (torchaudio's default: unit peaks).
        window: name of a scipy window, periodic.
        center, pad: centred frames, and how the clip is continued for them: 'constant' (zeros; librosa since 0.9) or
            'reflect' (librosa before, PyTorch).
        power: exponent of the magnitude before the filterbank, 1 or 2.
        floor: smallest mel value.

    Returns:
        wave (B, T) -> (B, L, n_mels).
    """
    from librosa import filters

    _check("mel", mel, ("slaney", "htk"))
    stft = _stft(win=win, hop=hop, window=window, center=center, pad=pad)
    kind = dict(htk=mel == "htk", norm=None if mel == "htk" else "slaney")
    bank = filters.mel(sr=sample_rate, n_fft=win, n_mels=n_mels, fmin=f_min, fmax=f_max, dtype=np.float64, **kind).T
    # Neighbouring filters see few bins: products of blocks of the bank are a quarter of the work of the whole.
    blocks = []
    for first in range(0, n_mels, MEL_BLOCK):
        block = bank[:, first : first + MEL_BLOCK]
        bins = np.flatnonzero(block.any(axis=1))
        seen = slice(bins[0], bins[-1] + 1) if len(bins) else slice(0)  # narrow filters may fall between bins
        blocks.append((seen, block[seen]))

    def features(real, imag):
        x = real**2 + imag**2
        x = x if power == 2 else x ** (power / 2)
        parts = [jnp.dot(x[:, seen], block.astype(x.dtype), precision="highest") for seen, block in blocks]
        energy = jnp.concatenate(parts, axis=1)
        return 20 / power * jnp.log10(jnp.maximum(energy, floor))

    return lambda wave: stft(wave, features)


def _power_to_db_refmin(power: jax.Array) -> jax.Array:
    """librosa.power_to_db(ref=np.min, amin=1e-10, top_db=80) of each clip: dB above the clip's own minimum."""
    db = 10 * jnp.log10(jnp.maximum(power, 1e-10))
    db = db - db.min((1, 2), keepdims=True)
    return jnp.maximum(db, db.max((1, 2), keepdims=True) - 80)


def spectrogram(
    *,
    win: int,
    hop: int,
    scale: str = "log_power",
    drop_bin: str = "last",
    window: str = "hann",
    center: bool = True,
    pad: str = "constant",
) -> Frontend:
    """Linear-frequency spectrogram.

    Args:
        win, hop: frame length and shift in samples.
        scale: 'log_power' (dB), 'power', 'magnitude', or 'power_to_db_refmin': dB above the clip's own minimum, at most
            80 dB below its maximum, both taken over all bins (J. Bai's SSDPT code, the commented STFT branch).
        drop_bin: 'last' (half the sample rate), 'first' (0 Hz) or 'none'; one less gives a power of two.
        window, center, pad: as in log_mel.

    Returns:
        wave (B, T) -> (B, L, win // 2), or win // 2 + 1 bins with drop_bin='none'.
    """
    _check("scale", scale, ("log_power", "power_to_db_refmin", "power", "magnitude"))
    _check("drop_bin", drop_bin, ("last", "first", "none"))
    stft = _stft(win=win, hop=hop, window=window, center=center, pad=pad)
    kept = dict(last=slice(None, -1), first=slice(1, None), none=slice(None))[drop_bin]

    def features(real, imag):
        power = real**2 + imag**2
        if scale == "log_power":
            return 10 * jnp.log10(jnp.maximum(power, EPS))
        return jnp.sqrt(power) if scale == "magnitude" else power

    def frontend(wave):
        x = stft(wave, features)
        return (_power_to_db_refmin(x) if scale == "power_to_db_refmin" else x)[..., kept]

    return frontend


def phase(*, win: int, hop: int, window: str = "hann", center: bool = True, pad: str = "constant") -> Frontend:
    """Angle of the STFT in radians, in [-pi, pi]; arguments as in spectrogram. (B, T) -> (B, L, win // 2 + 1)."""
    stft = _stft(win=win, hop=hop, window=window, center=center, pad=pad)
    return lambda wave: stft(wave, lambda real, imag: jnp.arctan2(imag, real))


def spectrum() -> Frontend:
    """Magnitude spectrum of the whole clip as one frame, (B, T) -> (B, 1, T // 2 + 1).

    By FFT on every platform: a matrix product of this length is out of the question.
    """

    def frontend(wave):
        return jnp.abs(jnp.fft.rfft(wave.astype(jnp.promote_types(wave.dtype, jnp.float32))))[:, None]

    return frontend


def branches(**named: Frontend) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Several views of one wave, by name: wave (B, T) -> dict of (B, L, F)."""
    return lambda wave: {name: frontend(wave) for name, frontend in named.items()}


# --- units ---------------------------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """How a clip becomes units of one length w; x is (B, T) at='wave', (B, L, F) at='frames'.

    Attributes:
        at: 'wave' or 'frames': what is cut.
        width, hop: unit length and shift, in samples or frames.
        draw: (key, x) -> one random training unit of every clip, (B, w) or (B, w, F).
        units: x -> all units, (B, U, w) or (B, U, w, F).
        training_starts: length of x -> (U',) int32, where its training units begin.
    """

    at: str
    width: int
    hop: int
    draw: Callable[[jax.Array, jax.Array], jax.Array]
    units: Callable[[jax.Array], jax.Array]
    training_starts: Callable[[int], np.ndarray]


def _starts(length: int, width: int, hop: int, tail: str) -> np.ndarray:
    if length < width:
        raise UsageError(
            f"cut: a clip has {length} samples or frames, fewer than one unit of width={width}; lower config.cut.width "
            "and hop, or set config.data.seconds to a longer time, to which short clips are repeated"
        )
    starts = np.arange(0, length - width + 1, hop, dtype=np.int32)
    rest = tail == "align" and starts[-1] + width < length
    return np.append(starts, np.int32(length - width)) if rest else starts


def n_units(length: int, *, width: int, hop: int, tail: str = "drop") -> int:
    """Number of units U of a clip of `length` samples or frames: (length - width) // hop + 1, one more if aligned."""
    return len(_starts(length, width, hop, tail))


def cut(*, width: int, hop: int, at: str = "frames", tail: str = "drop", train_hop: int = 0) -> Cut:
    """Cuts clips into units of `width`, every `hop`.

    Args:
        width, hop: samples at='wave', frames at='frames'.
        at: 'wave' (the frontend sees units) or 'frames' (the frontend runs once per clip).
        tail: what is left after the last whole unit: 'drop', or 'align' one more unit with the end of the clip.
        train_hop: shift of the units that training draws from; 1: they begin anywhere, 0: as `hop`.

    Raises:
        UsageError: unknown option, or (when called) a clip shorter than one unit.
    """
    _check("at", at, ("wave", "frames"))
    _check("tail", tail, ("drop", "align"))
    if width < 1 or hop < 1 or train_hop < 0:
        raise UsageError(
            f"cut: width={width}, hop={hop}, train_hop={train_hop}; expected at least 1, and 0 for the last"
        )

    def training_starts(length):
        return _starts(length, width, train_hop or hop, tail)

    def draw(key, x):
        starts = training_starts(x.shape[1])

        def one(key, clip):
            first = jax.random.randint(key, (), 0, len(starts))
            # the starts are evenly spaced but for an aligned last one: no table as long as a wave
            first = jnp.minimum(first * (train_hop or hop), len(clip) - width)
            return lax.dynamic_slice_in_dim(clip, first, width)

        return jax.vmap(one)(jax.random.split(key, x.shape[0]), x)

    def units(x):
        starts = jnp.asarray(_starts(x.shape[1], width, hop, tail))
        return jax.vmap(lambda first: lax.dynamic_slice_in_dim(x, first, width, axis=1), out_axes=1)(starts)

    return Cut(at, width, hop, draw, units, training_starts)
