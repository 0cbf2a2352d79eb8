"""Optimizers with a schedule, as optax transformations over a run of `steps` updates."""

from __future__ import annotations

import optax

from asdjax.core import UsageError


def learning_rate(steps: int, lr: float, schedule: str, end: float, warmup: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over `warmup` steps, then 'constant', or 'cosine' down to `end`."""
    if lr <= 0 or end < 0 or warmup < 0:
        raise UsageError(f"optim: lr={lr}, end={end}, warmup={warmup}; expected lr > 0, the others at least 0")
    if schedule == "cosine":
        rest = optax.cosine_decay_schedule(lr, max(steps - warmup, 1), alpha=end / lr)
    elif schedule == "constant":
        rest = optax.constant_schedule(lr)
    else:
        raise UsageError(f"optim.schedule is {schedule!r}; there is: constant, cosine")
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), rest], [warmup])


def adam(
    *,
    steps: int,
    lr: float = 1e-3,
    schedule: str = "cosine",
    end: float = 0.0,
    warmup: int = 0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015); eps as in the paper and PyTorch, Keras has 1e-7."""
    return optax.adam(learning_rate(steps, lr, schedule, end, warmup), b1=b1, b2=b2, eps=eps)


def adamw(
    *,
    steps: int,
    lr: float = 1e-3,
    schedule: str = "cosine",
    end: float = 0.0,
    warmup: int = 0,
    weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return optax.adamw(learning_rate(steps, lr, schedule, end, warmup), weight_decay=weight_decay)


def sgd(
    *,
    steps: int,
    lr: float = 0.1,
    schedule: str = "cosine",
    end: float = 0.0,
    warmup: int = 0,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with Nesterov momentum."""
    return optax.sgd(learning_rate(steps, lr, schedule, end, warmup), momentum=momentum, nesterov=True)
