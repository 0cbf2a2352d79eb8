"""Where a run's time goes: seconds by phase, and what of it was compiling."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import jax

import asdjax

# Seconds of lowering and compiling, and how many programs were compiled or read from the cache, process-wide. Tracing
# is left out: JAX reports that of a nested function twice.
compiling: Counter = Counter()


def _on_duration(event: str, seconds: float, **_) -> None:
    if event in ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"):
        compiling["seconds"] += seconds


def _on_event(event: str, **_) -> None:
    name = {"/jax/compilation_cache/cache_hits": "from cache", "/jax/compilation_cache/cache_misses": "compiled"}
    if event in name:
        compiling[name[event]] += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


class Watch:
    """Sums seconds by phase; `seconds` is a dict that can be written as json."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def summary(self) -> dict[str, dict[str, float]]:
        """Seconds by phase, and the process's counts of compiled programs."""
        return {"seconds": {**self.seconds, "total": time.perf_counter() - asdjax.BEGAN}, "compiling": dict(compiling)}

    def first_step(self) -> str:
        """Notes the first step of the process; a sentence on what came before it, '' from the second call on."""
        if "start-up" in self.seconds:
            return ""
        self.seconds["start-up"] = time.perf_counter() - asdjax.BEGAN
        return f"first step {self.seconds['start-up']:.1f} s after the start, {compiled()}"


def compiled() -> str:
    """What was compiled so far, in words; two programs may be compiled at a time."""
    programs = f"{compiling['compiled']} programs compiled, {compiling['from cache']} from the cache"
    return f"with {compiling['seconds']:.1f} s of compiling, summed over threads ({programs})"
