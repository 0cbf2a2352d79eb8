"""Waves as sound events: a window of each, and several of them at once."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from asdjax.augment.op import Op, check_waves
from asdjax.core import UsageError


def crop(samples: int) -> Op:
    """A random window of each wave; before other wave ops, so that they see what the network will hear.

    Args:
        samples: length of the window. Its start is uniform over all there are.

    Returns:
        Op on waves, (B, T) -> (B, samples); the label stays.

    Raises:
        UsageError: samples is no positive whole number; the op: shorter waves, or no waves.
    """
    if not isinstance(samples, int) or samples < 1:
        raise UsageError(f"crop: samples={samples!r}; expected a whole number, at least 1")

    def op(key, x, label):
        check_waves("crop", x)
        if x.shape[1] < samples:
            raise UsageError(f"crop: waves have {x.shape[1]} samples; expected at least samples={samples}")
        start = jax.random.randint(key, x.shape[:1], 0, x.shape[1] - samples + 1)
        return jax.vmap(lambda wave, first: lax.dynamic_slice_in_dim(wave, first, samples))(x, start), label

    return op


def event_mix(
    *, p: float = 0.5, max_events: int = 3, snr_db: tuple[float, float] = (-5.0, 5.0), unity_gain: bool = False
) -> Op:
    """Adds clips of other classes to some, so that several events sound at once (Zeng 2023, section 2.1.2).

    An example is one of K events with probability p, K uniform from 2 to max_events: K - 1 clips of the batch are added
    to it, none twice, of which none shares a class with it; they may share one with each other. Where the batch has
    fewer of them, it gets those. Its label['class'] becomes the maximum over all that is in it; its other labels stay.
    Clips that are silent or have no class stay as they are, and are added to no other.
    The report states neither the probability, nor the number, nor the levels: all of these are our choice.

    Args:
        p: probability that an example gets others.
        max_events: largest K.
        snr_db: the example's level over that of each clip that is added, in dB, uniform from the first to the second.
        unity_gain: add the clips as they are instead.

    Returns:
        Op on waves (B, T).

    Raises:
        UsageError: an argument is out of its range; the op: no waves, or no classes.
    """
    if not 0 <= p <= 1:
        raise UsageError(f"event_mix: p={p}; expected 0 to 1")
    if not isinstance(max_events, int) or max_events < 2:
        raise UsageError(f"event_mix: max_events={max_events!r}; expected a whole number, at least 2")
    if len(snr_db) != 2 or not -math.inf < snr_db[0] <= snr_db[1] < math.inf:
        raise UsageError(f"event_mix: snr_db={snr_db}; expected the least and the greatest level in dB")

    def op(key, x, label):
        check_waves("event_mix", x)
        if "class" not in label:
            raise UsageError("event_mix: goes by the clips' classes, which are not known here (config.data.label)")
        k_apply, k_events, k_order, k_snr = jax.random.split(key, 4)
        n = x.shape[0]
        power = jnp.mean(jnp.square(x), axis=1)
        partner, there = partners(k_order, others(label["class"], power > 0), max_events - 1)
        events = jax.random.randint(k_events, (n, 1), 2, max_events + 1)
        mixed = jax.random.bernoulli(k_apply, p, (n, 1)) & there & (jnp.arange(partner.shape[1]) < events - 1)
        snr = jax.random.uniform(k_snr, partner.shape, x.dtype, *snr_db)
        gain = jnp.ones_like(snr) if unity_gain else gains(power, partner, snr)
        x, classes = add_events(x, label["class"], partner, jnp.where(mixed, gain, 0))
        return x, {**label, "class": classes}

    return op


def others(label: jax.Array, audible: jax.Array) -> jax.Array:
    """Which examples may be added to which: both are heard, have a class, and share none.

    Args:
        label: (B, C), non-negative.
        audible: (B,) bool.

    Returns:
        (B, B) bool, symmetric.
    """
    has = (label > 0).astype(jnp.float32)  # ones and zeros: exact in whatever precision products are taken
    fit = audible & has.any(1)
    return (has @ has.T == 0) & fit[:, None] & fit


def partners(key: jax.Array, allowed: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Up to `count` different partners for each example, every choice of them equally likely.

    Args:
        key: JAX key.
        allowed: (B, B) bool, by row.
        count: at most so many.

    Returns:
        (B, K) int32 with K = min(count, B), and (B, K) bool, False where no more are allowed.
    """
    order = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0)
    rank, partner = lax.top_k(order, min(count, len(allowed)))
    return partner, rank >= 0


def gains(power: jax.Array, partner: jax.Array, snr_db: jax.Array) -> jax.Array:
    """What a partner is multiplied by to lie so much below an example: sqrt(P / (P_partner 10^(snr / 10))).

    Args:
        power: (B,) mean squares.
        partner: (B, K) int.
        snr_db: (B, K) in dB.

    Returns:
        (B, K). Those of silent examples or partners are of no use.
    """
    level = jnp.sqrt(power)  # the quotient of powers would leave float32 where that of levels does not
    return level[:, None] / level[partner] * 10 ** (-snr_db / 20)


def add_events(x: jax.Array, label: jax.Array, partner: jax.Array, gain: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x_i + sum_k gain_ik x_partner(i, k) and the largest label of all of these; a gain of 0 adds nothing to either.

    Args:
        x: (B, T).
        label: (B, C).
        partner: (B, K) int.
        gain: (B, K), at least 0.

    Returns:
        (B, T), (B, C).
    """
    wave, classes = x, label
    for j, c in zip(partner.T, gain.T[..., None], strict=True):
        wave = wave + c * x[j]
        classes = jnp.maximum(classes, jnp.where(c > 0, label[j], 0))
    return wave, classes
