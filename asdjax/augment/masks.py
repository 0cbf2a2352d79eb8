"""Stripes of features masked out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asdjax.augment.op import Op, check, check_features
from asdjax.core import UsageError


def spec_mask(
    *,
    time_stripes: int = 2,
    time_width: int = 64,
    freq_stripes: int = 2,
    freq_width: int = 8,
    fill: str = "mean",
) -> Op:
    """Masks stripes of frames and of bins in each example (Park et al., SpecAugment, 2019), as PANNs do.

    Without the warping of time. A stripe's width is uniform over 0 .. W - 1, its start over 0 .. L - width - 1, as in
    torchlibrosa; the defaults are the numbers of PANNs (Kong et al. 2020).

    Args:
        time_stripes: how many, along time.
        time_width: W, in frames; where W exceeds the frames that there are, a width may be all of them.
        freq_stripes: how many, along frequency.
        freq_width: W, in bins, alike.
        fill: 'mean', of each bin over batch and frames; 'zero'. In decibels 0 is no silence. PANNs mask with 0 after
            the BatchNorm of their input, where 0 is the mean (but for the shift that it learns).

    Returns:
        Op on features (B, L, F); the label stays.

    Raises:
        UsageError: a number is negative, or an unknown fill; the op: no features.
    """
    numbers = dict(time_stripes=time_stripes, time_width=time_width, freq_stripes=freq_stripes, freq_width=freq_width)
    for field, value in numbers.items():
        if not isinstance(value, int) or value < 0:
            raise UsageError(f"spec_mask: {field}={value!r}; expected a whole number, at least 0")
    check("spec_mask", "fill", fill, ("mean", "zero"))

    def op(key, x, label):
        check_features("spec_mask", x)
        n, frames, bins = x.shape
        k_time, k_freq = jax.random.split(key)
        time = stripes(k_time, (n, time_stripes), time_width, frames)
        freq = stripes(k_freq, (n, freq_stripes), freq_width, bins)
        return masked(x, time, freq, x.mean((0, 1)) if fill == "mean" else jnp.zeros(bins, x.dtype)), label

    return op


def stripes(key: jax.Array, shape: tuple[int, int], width: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Random stripes of an axis.

    Args:
        key: JAX key.
        shape: (B, stripes).
        width: more than the widest stripe.
        length: of the axis.

    Returns:
        starts and widths, int32 of the shape.
    """
    k_width, k_start = jax.random.split(key)
    widths = jax.random.randint(k_width, shape, 0, max(1, min(width, length + 1)))
    return jax.random.randint(k_start, shape, 0, jnp.maximum(length - widths, 1)), widths


def masked(x: jax.Array, time: tuple, freq: tuple, value: jax.Array) -> jax.Array:
    """Features (B, L, F) with the value (F,) of each bin in stripes of time and of frequency, starts and widths."""
    return jnp.where(inside(*time, x.shape[1])[:, :, None] | inside(*freq, x.shape[2])[:, None], value, x)


def inside(start: jax.Array, width: jax.Array, length: int) -> jax.Array:
    """Which places of an axis lie in a stripe: starts and widths (B, stripes) -> (B, length) bool."""
    place = jnp.arange(length)
    start, end = start[..., None], (start + width)[..., None]
    return ((start <= place) & (place < end)).any(1)
