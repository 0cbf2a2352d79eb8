"""FMix: parts of another example, where a low-frequency image is small."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdjax.augment.mixing import blend, check_numbers, partners_of
from asdjax.augment.op import Op, check, check_features


def fmix(
    *,
    p: float = 1.0,
    alpha: float = 1.0,
    decay: float = 3.0,
    variant: str = "paper",
    layout: str = "freq_time",
    freq_units: str = "per_sample",
    pairing: str = "random",
) -> Op:
    """Pastes parts of another example into each, where a low-frequency image is small (Harris et al., FMix, 2020).

    A batch has one mask, one lam ~ Beta(alpha, alpha) and one permutation. The mask keeps the share lam of the pixels,
    up to one of them; the label is blended by lam itself, as in the paper's code.

    Args:
        p: probability that a batch is mixed.
        alpha: as of `mixup`.
        decay: power of the image's decay with frequency.
        variant, freq_units: see `low_frequency_image`.
        layout: which axis the image has as its first: 'freq_time' or 'time_freq'. 'paper' parts tend to be intervals of
            the longer axis in both. 'official' ones are intervals of the second axis where the first is the longer (of
            time, on 128 bins x 64 frames of freq_time), and have the proportions of the map where it is the shorter.
        pairing: as of `mixup`.

    Returns:
        Op on features (B, L, F).

    Raises:
        UsageError: an argument is none of these.
    """
    check_numbers("fmix", p, alpha)
    check("fmix", "variant", variant, ("paper", "official"))
    check("fmix", "layout", layout, ("freq_time", "time_freq"))
    check("fmix", "freq_units", freq_units, ("per_sample", "per_image"))
    partners = partners_of("fmix", pairing)

    def op(key, x, label):
        check_features("fmix", x)
        k_order, k_lam, k_apply, k_image, k_round = jax.random.split(key, 5)
        partner = partners(k_order, x, label)
        lam = jax.random.beta(k_lam, alpha, alpha)
        lam = jnp.where(jax.random.bernoulli(k_apply, p), lam, 1.0)
        shape = x.shape[:0:-1] if layout == "freq_time" else x.shape[1:]
        normals = jax.random.normal(k_image, (*amplitudes(shape, decay, freq_units).shape, 2))
        image = low_frequency_image(normals, shape, decay=decay, variant=variant, freq_units=freq_units)
        size = lam * image.size
        size = jnp.where(jax.random.bernoulli(k_round), jnp.ceil(size), jnp.floor(size))
        mask = largest(image, size.astype(jnp.int32))
        mask = mask.T if layout == "freq_time" else mask
        return jnp.where(mask, x, x[partner]), {k: blend(v, partner, lam[None]) for k, v in label.items()}

    return op


def amplitudes(shape: tuple[int, int], decay: float, freq_units: str = "per_sample") -> np.ndarray:
    """1 / f^decay over the half grid of a real image's spectrum; frequency 0 counts as the lowest other one.

    Args:
        shape: (H, W) of the image.
        decay: the power.
        freq_units: see `low_frequency_image`.

    Returns:
        (H, W // 2 + 1), one column more for odd W, as in the code of the paper.
    """
    rows, columns = (np.fft.fftfreq(n) * (n if freq_units == "per_image" else 1) for n in shape)
    f = np.hypot(rows[:, None], columns[: shape[1] // 2 + 1 + shape[1] % 2])
    return np.maximum(f, f[f > 0].min()) ** -decay


def low_frequency_image(
    normals: jax.Array,
    shape: tuple[int, int],
    *,
    decay: float = 3.0,
    variant: str = "paper",
    freq_units: str = "per_sample",
) -> jax.Array:
    """A random image whose amplitudes fall as 1 / f^decay (Harris et al., FMix, 2020, section 4).

    Args:
        normals: (H, W // 2 + 1, 2) standard normal numbers, see `amplitudes`.
        shape: (H, W).
        decay: the power.
        variant: 'paper', the last axis of `normals` as real and imaginary parts; 'official', as the paper's code has
            it: the first two rows are taken for these parts, and what that gives, (W // 2 + 1, 2), for the spectrum.
        freq_units: of f, 'per_sample', cycles per pixel: parts are as long in pixels along both axes, so that on long
            narrow maps they span the shorter one; 'per_image', cycles per map: parts have the proportions of the map.

    Returns:
        (H, W) from 0 to 1.
    """
    height, width = shape
    spectrum = normals * amplitudes(shape, decay, freq_units)[..., None].astype(normals.dtype)
    parts = (spectrum[0], spectrum[1]) if variant == "official" else (spectrum[..., 0], spectrum[..., 1])
    # one axis at a time: libraries differ on multi-dimensional inverses of what is no real image's spectrum
    columns = jnp.fft.ifft(lax.complex(*parts), n=height, axis=0)
    real = np.arange(columns.shape[1]) * 2 % width == 0  # frequency 0 and the highest: what numpy takes for real
    image = jnp.fft.irfft(jnp.where(real, columns.real, columns), n=width, axis=1)
    image = image - image.min()
    return image / image.max()


def largest(image: jax.Array, size: jax.Array) -> jax.Array:
    """Which pixels of an image (H, W) are its `size` largest: (H, W) bool, so many even among equal ones."""
    flat = image.ravel()
    threshold = jnp.sort(flat)[jnp.clip(flat.size - size, 0, flat.size - 1)]
    above, equal = flat > threshold, flat == threshold
    return (above | (equal & (jnp.cumsum(equal) <= size - above.sum()))).reshape(image.shape)
