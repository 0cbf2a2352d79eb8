"""Blends of two examples, ops in turn and at random."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from asdjax.augment.op import Op, check
from asdjax.core import UsageError


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
    check_numbers("mixup", p, alpha)
    check("mixup", "lam", lam, ("example", "batch"))
    partners = partners_of("mixup", pairing)

    def op(key, x, label):
        k_order, k_lam, k_apply = jax.random.split(key, 3)
        partner = partners(k_order, x, label)
        share = jax.random.beta(k_lam, alpha, alpha, x.shape[:1] if lam == "example" else (1,))
        share = jnp.where(jax.random.bernoulli(k_apply, p, share.shape), share, 1.0)
        return blend(x, partner, share), {k: blend(v, partner, share) for k, v in label.items()}

    return op


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


def partners_of(op: str, pairing: str) -> Callable[[jax.Array, jax.Array, dict], jax.Array]:
    """(key, x (B, ...), label) -> (B,) int, the example that each is mixed with."""
    check(op, "pairing", pairing, ("random", "cross_domain"))
    if pairing == "random":
        return lambda key, x, label: jax.random.permutation(key, x.shape[0])

    def across(key, x, label):
        if "target" not in label:
            raise UsageError(f"{op}: pairing='cross_domain' needs each clip's domain, which is not known here")
        return cross_domain(key, label["target"])

    return across


def check_numbers(op: str, p: float, alpha: float) -> None:
    """Raises UsageError for what is no probability, or no parameter of a beta distribution."""
    if not 0 <= p <= 1 or alpha <= 0:
        raise UsageError(f"{op}: p must lie in [0, 1] and alpha be positive; found p={p}, alpha={alpha}")


def _check_ops(op: str, ops: tuple) -> None:
    if not ops or not all(map(callable, ops)):
        raise UsageError(f"{op}: ops={ops!r}; expected dicts with the name of an augmentation, one at least")
