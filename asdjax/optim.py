"""Optimizers with a schedule, as optax transformations over a run of `steps` updates."""

from __future__ import annotations

import optax

from asdjax.core import UsageError

__all__ = ["adam", "adamw", "sgd"]  # what configs name


def learning_rate(steps: int, lr: float, schedule: str, end: float, warmup: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over `warmup` steps, then as `schedule` says.

    Args:
        steps: of the run, the first of which is step 0.
        lr: the rate after the warm-up.
        schedule: 'constant', 'cosine' down to `end`, or 'exponential': times the same number at each step, so that the
            last one has `end`.
        end: see above.
        warmup: steps.

    Raises:
        UsageError: unknown schedule, or numbers out of range.
    """
    if lr <= 0 or end < 0 or warmup < 0:
        raise UsageError(f"optim: lr={lr}, end={end}, warmup={warmup}; expected lr > 0, the others at least 0")
    if schedule == "cosine":
        rest = optax.cosine_decay_schedule(lr, max(steps - warmup, 1), alpha=end / lr)
    elif schedule == "exponential":
        if not 0 < end <= lr:
            raise UsageError(f"optim: lr={lr}, end={end} with schedule 'exponential'; expected end above 0, at most lr")
        rest = optax.exponential_decay(lr, max(steps - 1 - warmup, 1), end / lr, end_value=end)
    elif schedule == "constant":
        rest = optax.constant_schedule(lr)
    else:
        raise UsageError(f"optim.schedule is {schedule!r}; there is: constant, cosine, exponential")
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
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015); eps as in the paper and PyTorch, Keras has 1e-7.

    `clip` is the largest norm of the gradients, over all parameters, above which they are scaled down; 0: none.
    """
    return _clipped(clip, optax.adam(learning_rate(steps, lr, schedule, end, warmup), b1=b1, b2=b2, eps=eps))


def adamw(
    *,
    steps: int,
    lr: float = 1e-3,
    schedule: str = "cosine",
    end: float = 0.0,
    warmup: int = 0,
    weight_decay: float = 1e-2,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019); `clip` as for adam."""
    return _clipped(clip, optax.adamw(learning_rate(steps, lr, schedule, end, warmup), weight_decay=weight_decay))


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


def _clipped(clip: float, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` of gradients of norm `clip` at most (Pascanu et al. 2013); 0: `tx` itself."""
    if clip < 0:
        raise UsageError(f"optim: clip={clip}; expected a norm above 0, or 0 for none")
    # no chain where nothing is clipped: its state is another tree, and would not fit earlier checkpoints
    return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
