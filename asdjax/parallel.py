"""The process and its devices: one mesh, replicated state, batches sharded over the axis 'data'.

jit over a sharded batch has the meaning of one device: BatchNorm sees the global batch and random numbers do not depend
on the device count.
"""

from __future__ import annotations

import ctypes
import os
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asdjax.core import UsageError, cache_folder


def tune_malloc() -> bool:
    """Lets glibc keep freed pages; call it before JAX touches a device. `ASDJAX_MALLOC=0` switches it off.

    XLA on CPU allocates its temporaries anew in every call; with glibc's defaults each step then spends a third of its
    time in page faults. The price is that the process keeps its peak memory.

    Returns:
        True where the settings took hold (Linux with glibc).
    """
    if not sys.platform.startswith("linux") or os.environ.get("ASDJAX_MALLOC") == "0":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    settings = ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1), (top_pad, 256 << 20))
    return all(libc.mallopt(name, value) for name, value in settings)


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder: neither a second start nor an equal network compiles.

    A cache of programs is trusted code, hence in a folder of the user's own. `JAX_COMPILATION_CACHE_DIR` names another,
    and an empty value switches it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def data_mesh() -> Mesh:
    """All devices on one axis 'data'. Auto axes: with explicit ones, gathers over a sharded batch raise."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis` is split over the devices, the others are whole."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises UsageError where the batch does not split evenly over the devices."""
    if batch_size % mesh.size:
        raise UsageError(
            f"train.batch_size is {batch_size}, which does not split over {mesh.size} devices; "
            f"take a multiple of {mesh.size}"
        )


def fetch(tree):
    """Device arrays -> numpy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
