"""The processes and their devices: one mesh, replicated state, batches sharded over the axis 'data'.

jit over a sharded batch has the meaning of one device: BatchNorm sees the global batch and random numbers do not depend
on the device count. With several processes every one runs the same program on the same values; only what it puts on its
own devices and what is read from files differs, and of the latter process 0 tells the others.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asdjax.core import InputError, UsageError, cache_folder

LOST = "another process of this run ended; start all of them again with the same command, it resumes"


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
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX's second leaves out many small programs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def join(coordinator: str = "", processes: int = 0, process: int = 0, *, patience: float = 120.0) -> None:
    """Joins the processes of one run, before JAX touches a device.

    Args:
        coordinator: HOST:PORT of process 0; '': the cluster tells everything (Cloud TPU, Slurm, Kubernetes, Open MPI).
        processes: how many there are.
        process: which of them this is, from 0.
        patience: seconds that the others may take to start.

    Raises:
        UsageError: a malformed address or number. InputError: the coordinator cannot be reached, or no cluster is
            recognised.
    """
    if not coordinator:
        try:
            jax.distributed.initialize(initialization_timeout=int(patience), heartbeat_timeout_seconds=30)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"--distributed: no cluster was recognised ({str(error).splitlines()[0]}); give "
                "--coordinator=HOST:PORT, --processes and --process"
            ) from error
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--coordinator is {coordinator!r}; expected HOST:PORT")
    if processes < 1:
        raise UsageError(
            "--coordinator needs --processes=N, how many processes there are, and --process=I, which this is"
        )
    if not 0 <= process < processes:
        raise UsageError(f"--process is {process} of --processes={processes}; expected 0 to {processes - 1}")
    if process:
        wait_for(host, int(port), patience)
    jax.distributed.initialize(
        coordinator, processes, process, initialization_timeout=int(patience), heartbeat_timeout_seconds=30
    )


def wait_for(host: str, port: int, patience: float) -> None:
    """Returns once somebody listens there. JAX itself ends the process in C++, without an exception to catch."""
    deadline = time.monotonic() + patience
    logging.info("joining the processes of %s:%d", host, port)
    while True:
        try:
            return socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"--coordinator: nobody answers at {host}:{port} after {patience:.0f} s ({error}); is process 0 up?"
                ) from error
            time.sleep(0.2)


def is_of_peer(error: Exception) -> bool:
    """Whether an exception is what a collective or the coordination service says when another process is gone."""
    words = ("gloo", "nccl", "connection", "coordination", "heartbeat", "barrier", "deadline", "socket", "peer")
    return any(word in str(error).lower() for word in words)


def leave() -> None:
    """Takes leave of the other processes, once all are done."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is process 0, which reads and writes the run's folder."""
    return jax.process_index() == 0


def from_first(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """What process 0 holds, a dict of arrays or None, to all processes; the others' argument does not matter."""
    if jax.process_count() == 1:
        return arrays
    data = b""
    if is_first() and arrays is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
    million = 10**6  # JAX knows no 64-bit integers by default
    millions, rest = multihost_utils.broadcast_one_to_all(np.array(divmod(len(data), million), np.int32)).tolist()
    size = millions * million + rest
    if not size:
        return None
    sent = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    data = np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8).tobytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return dict(stored)


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


def in_turn(make: Callable[[], Any]) -> Any:
    """make(), in process 0 first: the others then find what it left in a cache that they share."""
    made = make() if is_first() else None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("process 0 is done")
    return made if is_first() else make()


def anyone(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays -> arrays on the devices; with several processes each puts the parts that its own devices hold."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda where: x[where]), tree)


def fetch(tree: Any) -> Any:
    """Arrays on the devices -> numpy arrays, whole, in every process."""

    def whole(x):
        split = isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated
        return multihost_utils.process_allgather(x, tiled=True) if split else x

    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(whole, tree)))
