"""The vocabulary of asdjax: what a run passes from one module to the next.

    config -> Parts -> System -> TrainState -> embeddings -> Detector -> scores -> results

Scores: higher means more anomalous, everywhere.

Shapes use one alphabet: B batch, T samples, L frames, F frequency bins, C classes or channels, D embedding,
U units (windows) per clip, N reference clips, M test clips, S steps, K neighbours.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct
from jax.sharding import AxisType, PartitionSpec


class InputError(ValueError):
    """Something a user gave is wrong (a file, a folder, a label). The message names it and what was expected."""


class UsageError(InputError):
    """A flag or a config value is wrong."""


class Preempted(BaseException):
    """The process was asked to stop (SIGTERM). No Exception, as KeyboardInterrupt, lest a handler of errors eats it."""


def cache_folder() -> Path:
    """Where banks, the embedded data set and compiled programs lie: $ASDJAX_CACHE, else the user's cache folder."""
    base = os.environ.get("ASDJAX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "asdjax")
    return Path(base).expanduser()


@dataclasses.dataclass(frozen=True)
class Clips:
    """An index of recordings: equal-length numpy arrays, one entry per clip.

    Attributes:
        path: (N,) str, the audio file.
        machine: (N,) str, machine type, e.g. 'fan'.
        section: (N,) str, e.g. '00' (2020: the machine id); '' where a data set has none.
        domain: (N,) str, 'source' or 'target', '' where unknown. For test clips it serves the metrics; a detector
            may see it only in the year whose protocol gives it (2021).
        split: (N,) str, 'train', 'test' or 'supplemental'.
        is_anomaly: (N,) int8, 0 normal, 1 anomaly, -1 unknown.
        attributes: (N,) str, the opaque attribute tail of the file name, training clips only: '' for every other clip,
            because test-clip attributes leak labels.
    """

    path: np.ndarray
    machine: np.ndarray
    section: np.ndarray
    domain: np.ndarray
    split: np.ndarray
    is_anomaly: np.ndarray
    attributes: np.ndarray

    def __post_init__(self):
        lengths = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of Clips differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.path)

    def __getitem__(self, index) -> Clips:
        """The clips that a mask, slice or integer array selects."""
        return Clips(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    @property
    def is_train(self) -> np.ndarray:
        return self.split == "train"

    @property
    def is_test(self) -> np.ndarray:
        return self.split == "test"


# wave (B, T) float32 in [-1, 1], or features (B, w, F) where the bank holds those; label: dict of float leaves (B, ...)
Batch = dict[str, Any]


class TrainState(struct.PyTreeNode):
    """Arrays only, so that a checkpoint holds data and nothing else.

    Attributes:
        step: () int32, updates done.
        params: what the gradient moves.
        stats: every other collection: batch statistics, data statistics, adaptive scales.
        opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any


class Parts(NamedTuple):
    """The built pieces of a system; no config inside. A piece whose config is empty is None (or ()).

    Attributes:
        wave_ops: tuple of (key, x (B, T), label) -> (x, label), applied to the waveform in training.
        frontend: wave (B, T) -> features (B, L, F).
        cut: how a clip becomes units (frontends.cut).
        feature_ops: tuple of (key, x (B, L, F), label) -> (x, label), applied to the units in training.
        backbone: Linen module, (x (B, L, F), train) -> embedding (B, D); what reconstructs gives units, or both.
        head: Linen module, (embedding (B, D), label, train) -> loss (B,), logits (B, C).
        tx: optax transformation.
    """

    wave_ops: tuple[Callable, ...]
    frontend: Callable
    cut: Any
    feature_ops: tuple[Callable, ...]
    backbone: Any
    head: Any
    tx: Any


class System(NamedTuple):
    """How a network is trained, and what it says of a clip; pure functions.

    Attributes:
        init: (key, sample Batch) -> TrainState. The sample is some of the group's own training clips, so that data
            statistics land in state.stats, hence in every checkpoint.
        update: (state, key, batch) -> (state, metrics dict of scalars), or None for a training-free system.
        embed: (state, wave (B, T)) -> dict of (B, U, ...): embedding (B, U, D), logits (B, U, C), ...
    """

    init: Callable[[jax.Array, Batch], TrainState]
    update: Callable[[TrainState, jax.Array, Batch], tuple[TrainState, dict]] | None
    embed: Callable[[TrainState, jax.Array], dict[str, jax.Array]]


class Detector(NamedTuple):
    """How the network's output on normal clips becomes an anomaly score.

    Attributes:
        fit: (e, is_target (N,) bool) -> state, a dict of arrays. `e` is embed's dict over N normal training clips, plus
            own_classes (N, C) bool, the classes that machine and section alone allow.
        score: (state, e over M clips) -> (M,) scores, higher = more anomalous.
        own: (state, e of the N clips that the state was fitted on) -> (N,) scores, each as if fitted without that clip;
            None where fitting anew is the only way.
    """

    fit: Callable[[dict, np.ndarray], dict]
    score: Callable[[dict, dict], jax.Array]
    own: Callable[[dict, dict], jax.Array] | None = None


def by_device(function: Callable) -> Callable:
    """`function` of arrays (B, ...) -> (B, ...), example by example, run by every device on its own examples.

    XLA splits neither FFTs nor loops over an axis that is sharded: it gathers all examples, and every device does all.
    """

    def run(*arrays):
        mesh, n = jax.sharding.get_abstract_mesh(), arrays[0].shape[0]
        automatic = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get("data") == AxisType.Auto
        if not automatic or mesh.size == 1 or n % mesh.size:
            return function(*arrays)
        split = PartitionSpec("data")
        return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split)(*arrays)

    return run


def build(module: ModuleType, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Builds `module.NAME(**kwargs)` from a spec `dict(name=NAME, **kwargs)`; nested specs are built first.

    Args:
        module: where the name is looked up; only public functions and classes count.
        spec: a mapping with a 'name'. Values (or members of tuples) that are such mappings are built alike.
        **extra: keyword arguments that the program, not the config, knows (for example the number of classes).

    Raises:
        UsageError: no name, an unknown name or argument; the message lists what there is.
    """

    def nested(value):
        if isinstance(value, Mapping):
            return build(module, value) if "name" in value else {k: nested(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return tuple(nested(v) for v in value)
        return value

    if not hasattr(spec, "items") or "name" not in spec:  # a ConfigDict is no Mapping
        raise UsageError(f"{module.__name__}: found {spec!r}, expected a dict with a 'name'")
    kwargs = {k: nested(v) for k, v in spec.items() if k != "name"}
    name = spec["name"]
    known = sorted(
        k
        for k, v in {k: getattr(module, k) for k in getattr(module, "__all__", vars(module))}.items()
        if callable(v)
        and not k.startswith("_")
        and getattr(v, "__module__", "").startswith(module.__name__)
        and not (isinstance(v, type) and issubclass(v, tuple))  # what factories return is none of them
    )
    if name not in known:
        raise UsageError(f"{module.__name__} has no {name!r}; there is: {', '.join(known)}")
    target = getattr(module, name)
    try:
        inspect.signature(target).bind(**kwargs, **extra)
    except TypeError as error:
        taken = ", ".join(k for k in inspect.signature(target).parameters if k not in (*extra, "parent", "name"))
        raise UsageError(f"{module.__name__}.{name}: {error}; it takes {taken or 'nothing'}") from error
    return target(**kwargs, **extra)
