"""Augmentations: factories of (key, x, label) -> (x, label), pure and fixed in shape, run inside the jitted step.

The label is a dict of float leaves (B, ...), all of which are mixed as the examples are. Training gives 'class' (B, C),
'target' (B,), 1 for clips of the target domain, and 'step' (B,), the number of the update.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdjax.core import UsageError

__all__ = ["alternate", "choose", "fmix", "mixup"]  # what configs name

Op = Callable[[jax.Array, jax.Array, dict], tuple[jax.Array, dict]]


def blend(x: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    """share * x + (1 - share) * x[partner]: x (B, ...), partner (B,) int, share (B,), or (1,) for all examples."""
    share = share.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    return share * x + (1 - share) * x[partner]


def mixup(*, p: float = 0.5, alpha: float = 1.0, lam: str = "example", pairing: str = "random") -> Op:
    """Blends each example and its label with another of the batch (Zhang et al., mixup, 2018).

    An example keeps the share lam ~ Beta(alpha, alpha), and is left alone with probability 1 - p.

    Args:
        p: probability.
        alpha: 1 draws lam uniformly, less than 1 mostly near 0 or 1.
        lam: what has a lam and a decision of its own: 'example', or 'batch', as in the code of the paper.
        pairing: 'random', a permutation of the batch; 'cross_domain', see `cross_domain`.

    Raises:
        UsageError: p, alpha, lam or pairing is none of these.
    """
    _check_numbers("mixup", p, alpha)
    _check("mixup", "lam", lam, ("example", "batch"))
    partners = _partners("mixup", pairing)

    def op(key, x, label):
        k_order, k_lam, k_apply = jax.random.split(key, 3)
        partner = partners(k_order, x, label)
        share = jax.random.beta(k_lam, alpha, alpha, x.shape[:1] if lam == "example" else (1,))
        share = jnp.where(jax.random.bernoulli(k_apply, p, share.shape), share, 1.0)
        return blend(x, partner, share), {k: blend(v, partner, share) for k, v in label.items()}

    return op


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
    _check_numbers("fmix", p, alpha)
    _check("fmix", "variant", variant, ("paper", "official"))
    _check("fmix", "layout", layout, ("freq_time", "time_freq"))
    _check("fmix", "freq_units", freq_units, ("per_sample", "per_image"))
    partners = _partners("fmix", pairing)

    def op(key, x, label):
        if x.ndim != 3:
            raise UsageError(f"fmix: found an input of shape {x.shape}, expected features (B, L, F): use feature_ops")
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


def alternate(*, ops: tuple[Op, ...]) -> Op:
    """One of several ops for each batch, in turn by the number of the update (alt_mixup_fmix in the code of FMix)."""
    _check_ops("alternate", ops)

    def op(key, x, label):
        if "step" not in label:
            raise UsageError("alternate: goes by the number of the update, which is not known here")
        turn = jnp.round(label["step"][0]).astype(jnp.int32) % len(ops)
        return lax.switch(turn, ops, key, x, label)

    return op


def choose(*, ops: tuple[Op, ...]) -> Op:
    """One of several ops for each batch, at random."""
    _check_ops("choose", ops)

    def op(key, x, label):
        k_which, key = jax.random.split(key)
        return lax.switch(jax.random.randint(k_which, (), 0, len(ops)), ops, key, x, label)

    return op


def cross_domain(key: jax.Array, target: jax.Array) -> jax.Array:
    """A partner for each example, uniform over those of the other domain, or over all where there are none.

    Args:
        key: JAX key.
        target: (B,), at least 0.5 for the target domain.

    Returns:
        (B,) int32.
    """
    is_target = target >= 0.5
    other = is_target[:, None] != is_target
    allowed = other | ~other.any(1, keepdims=True)
    return jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf)).astype(jnp.int32)


def _partners(op: str, pairing: str) -> Callable[[jax.Array, jax.Array, dict], jax.Array]:
    """(key, x (B, ...), label) -> (B,) int, the example that each is mixed with."""
    _check(op, "pairing", pairing, ("random", "cross_domain"))
    if pairing == "random":
        return lambda key, x, label: jax.random.permutation(key, x.shape[0])

    def across(key, x, label):
        if "target" not in label:
            raise UsageError(f"{op}: pairing='cross_domain' needs each clip's domain, which is not known here")
        return cross_domain(key, label["target"])

    return across


def _check(op: str, field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{op}: {field}={value!r}; expected one of {', '.join(known)}")


def _check_numbers(op: str, p: float, alpha: float) -> None:
    if not 0 <= p <= 1 or alpha <= 0:
        raise UsageError(f"{op}: p must lie in [0, 1] and alpha be positive; found p={p}, alpha={alpha}")


def _check_ops(op: str, ops: tuple) -> None:
    if not ops or not all(map(callable, ops)):
        raise UsageError(f"{op}: ops={ops!r}; expected dicts with the name of an augmentation, one at least")
