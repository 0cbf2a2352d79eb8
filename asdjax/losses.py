"""Losses and margins as pure functions, per example and linear in the label; the caller reduces.

They compute in float32 (float64 where x64 is on) whatever the network computes in. A label (B, C) may be soft, as
mixing makes it: the loss is sum_c y_c L_c. An all-zero label means that the example has none, and costs exactly 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from asdjax.core import UsageError


def full_precision(x: jax.Array) -> jax.Array:
    """x as float32, or float64 where it has that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def softmax(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy of the softmax, sum_c y_c * -log p_c.

    Args:
        logits: (B, C).
        label: (B, C), non-negative.

    Returns:
        (B,).
    """
    return -jnp.sum(full_precision(label) * jax.nn.log_softmax(full_precision(logits)), axis=-1)


def focal(logits: jax.Array, label: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy in which sure examples count less, sum_c y_c (1 - p_c)^gamma * -log p_c (Lin et al. 2017, eq. 4).

    Without their weight alpha of each class.

    Args:
        logits: (B, C), C >= 2.
        label: (B, C), non-negative.
        gamma: how much less; 0 is `softmax`.

    Returns:
        (B,).

    Raises:
        UsageError: gamma is negative or not finite.
    """
    if not 0 <= gamma < math.inf:
        raise UsageError(f"focal: gamma is {gamma}; expected a finite number, at least 0")
    logits = full_precision(logits)
    # From the log odds p and 1 - p both keep their digits, and no power of 0 spoils the gradient.
    ahead = logits - logsumexp_of_others(logits)
    each = jnp.exp(-gamma * jax.nn.softplus(ahead)) * jax.nn.softplus(-ahead)
    return jnp.sum(full_precision(label) * each, axis=-1)


def bce(logits: jax.Array, label: jax.Array, *, known: jax.Array | None = None) -> jax.Array:
    """Cross-entropy of a sigmoid for each class, mean_c of -y_c log p_c - (1 - y_c) log(1 - p_c) (Zeng 2023, eq. 1).

    The report prints a plus before its second term, which would reward being wrong: a slip. The mean over classes is
    that of PANNs (Kong et al. 2020). Affine in the label, so that mixed labels give mixed losses while both are labels.

    Args:
        logits: (B, C).
        label: (B, C), from 0 to 1, any number of them 1.
        known: (C,), 0 for classes that the mean is to leave out, else 1. None: all are known.

    Returns:
        (B,).
    """
    logits, y = full_precision(logits), full_precision(label)
    # both terms by themselves: softplus(x) - y x would lose the digits of large logits
    each = y * jax.nn.softplus(-logits) + (1 - y) * jax.nn.softplus(logits)
    known = jnp.ones(logits.shape[-1:], logits.dtype) if known is None else known.astype(logits.dtype)
    return jnp.where((y > 0).any(-1), jnp.sum(known * each, axis=-1) / known.sum(), 0)


def arcface(
    cosine: jax.Array,
    onehot: jax.Array,
    *,
    s: float = 30.0,
    margin: float = 0.5,
    mode: str = "th_mm",
    gradient: str = "analytic",
) -> jax.Array:
    """Logits with an additive angular margin on the target class (Deng et al. 2019, 'ArcFace', eq. 3).

    Args:
        cosine: (B, C) between embeddings and class weights; clipped to +-(1 - 1e-7), since in float32 aligned vectors
            often exceed 1 and the square root below has no gradient at 1.
        onehot: (B, C), 1 where a logit gets the margin.
        s: scale.
        margin: in radians.
        mode: what becomes of targets that the margin would turn past pi, where cos(theta + margin) rises again:
            'th_mm' subtracts margin * sin(margin) from the cosine instead, 'easy' adds the margin only below pi / 2,
            'plain' does nothing.
        gradient: 'analytic', or 'straight_through': the margin moves the value but not the gradient, as in insightface.

    Returns:
        (B, C) logits.

    Raises:
        UsageError: unknown mode or gradient.
    """
    cosine = jnp.clip(full_precision(cosine), -1 + 1e-7, 1 - 1e-7)
    turned = cosine * math.cos(margin) - jnp.sqrt(1 - jnp.square(cosine)) * math.sin(margin)
    if mode == "th_mm":
        turned = jnp.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))
    elif mode == "easy":
        turned = jnp.where(cosine > 0, turned, cosine)
    elif mode != "plain":
        raise UsageError(f"arcface mode is {mode!r}; there is: th_mm, easy, plain")
    shift = turned - cosine
    if gradient == "straight_through":
        shift = jax.lax.stop_gradient(shift)
    elif gradient != "analytic":
        raise UsageError(f"arcface gradient is {gradient!r}; there is: analytic, straight_through")
    return s * (cosine + full_precision(onehot) * shift)


def margin_softmax(logits: jax.Array, margin_logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy where a class has its margin only while it is the target: sum_c y_c L_c with soft labels.

    L_c is the cross-entropy for target c of the logits whose entry c is replaced by margin_logits[c]. For a mix of two
    labels this is lam L_a + (1 - lam) L_b with two sets of margin logits, at the cost of one.

    Args:
        logits: (B, C) without margin, C >= 2.
        margin_logits: (B, C), each with its margin.
        label: (B, C), non-negative.

    Returns:
        (B,).
    """
    others = logsumexp_of_others(full_precision(logits))
    return jnp.sum(full_precision(label) * jax.nn.softplus(others - full_precision(margin_logits)), axis=-1)


def logsumexp_of_others(x: jax.Array) -> jax.Array:
    """log sum_{j != c} exp(x_j) for every c at once: (B, C) -> (B, C), C >= 2."""
    largest = jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=bool)
    # Taking a class out of the total loses no digits while it is at most half of it; the largest is left out by hand.
    share = jnp.where(largest, 0, jax.nn.softmax(x))
    total = jax.nn.logsumexp(x, axis=-1, keepdims=True)
    without_largest = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, x), axis=-1, keepdims=True)
    return jnp.where(largest, without_largest, total + jnp.log1p(-share))
