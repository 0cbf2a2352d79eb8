"""What all augmentations share: their type, and the refusal of what they cannot work with."""

from __future__ import annotations

from collections.abc import Callable

import jax

from asdjax.core import UsageError

Op = Callable[[jax.Array, jax.Array, dict], tuple[jax.Array, dict]]


def check(op: str, field: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UsageError for an option that there is not."""
    if value not in known:
        raise UsageError(f"{op}: {field}={value!r}; expected one of {', '.join(known)}")


def check_waves(op: str, x: jax.Array) -> None:
    """Raises UsageError for anything but waves (B, T)."""
    if x.ndim != 2:
        raise UsageError(f"{op}: found an input of shape {x.shape}, expected waves (B, T): use wave_ops")


def check_features(op: str, x: jax.Array) -> None:
    """Raises UsageError for anything but features (B, L, F)."""
    if x.ndim != 3:
        raise UsageError(f"{op}: found an input of shape {x.shape}, expected features (B, L, F): use feature_ops")
