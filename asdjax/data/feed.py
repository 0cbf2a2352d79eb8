"""From the bank to the devices: the whole bank resident there, or the clips of a chunk, gathered one chunk ahead.

Either way a compiled program gets a Store on the devices and rows into it, so that it does not know the difference.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from asdjax import parallel
from asdjax.core import Batch

RESIDENT_SHARE = 0.5  # of a device's memory that the bank may take: the rest is for the network and its maps
SENT = 2**30  # bytes of clips that a request to a store on the host should take at most: some three are alive at once


class Store(NamedTuple):
    """What batches are gathered from, on the host or on the devices.

    Attributes:
        wave: (N, T) int16.
        gain: (N,) float32; wave * gain is the waveform that the network hears.
        label: dict of (G * N, ...) float32: a table of N labels for each of G labellings, one after the other.
    """

    wave: Any
    gain: Any
    label: dict[str, Any]

    def batch(self, rows: Any, labelled: Any) -> Batch:
        """The clips `rows` (B,) as floats, with the labels `labelled` (B,)."""
        wave = self.wave[rows].astype(jnp.float32) * self.gain[rows][:, None]
        return {"wave": wave, "label": {k: v[labelled] for k, v in self.label.items()}}


def fits(store: Store) -> bool:
    """Whether the bank takes at most RESIDENT_SHARE of a device's memory (of the machine's, where that is unknown)."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # CPU: its devices share the machine
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    return store.wave.nbytes <= RESIDENT_SHARE * limit


def resident(store: Store, mesh: Mesh) -> Store:
    """The store on every device."""
    return parallel.put(store, parallel.replicated(mesh))


def is_resident(store: Store) -> bool:
    return isinstance(store.wave, jax.Array)


def feed(
    store: Store, requests: Iterable[tuple[np.ndarray, np.ndarray]], mesh: Mesh, *, axis: int
) -> Iterator[tuple[Store, tuple[jax.Array, jax.Array]]]:
    """Serves requests for clips in the devices' terms.

    Args:
        store: resident, or on the host: then the requested clips are gathered and sent by a thread, one request ahead.
        requests: pairs of rows into the clips and into the labels, int arrays of one shape.
        mesh: the devices.
        axis: of the rows, split over the devices.

    Yields:
        a Store on the devices and the two rows arrays on them, split along `axis`. Where the store was on the host,
        the device's shard of the Store holds its own clips, and its rows count within the shard.
    """
    if is_resident(store):
        split = parallel.sharded(mesh, axis)
        for rows in requests:
            yield store, parallel.put(tuple(r.astype(np.int32) for r in rows), split)
    else:
        yield from ahead(gathered(store, *rows, mesh, axis) for rows in requests)


def gathered(store: Store, rows: np.ndarray, labelled: np.ndarray, mesh: Mesh, axis: int):
    """One request from a store on the host: each device gets its own clips and no others."""
    order, labels = (np.concatenate([p.ravel() for p in np.split(r, mesh.size, axis)]) for r in (rows, labelled))
    split = parallel.sharded(mesh)

    def clips(source, index):
        shape = (len(index), *source.shape[1:])
        return jax.make_array_from_callback(shape, split, lambda where: source[index[where[0]]])

    device = Store(
        clips(store.wave, order), clips(store.gain, order), {k: clips(v, labels) for k, v in store.label.items()}
    )
    shape = list(rows.shape)
    shape[axis] //= mesh.size
    within = np.arange(rows.size // mesh.size, dtype=np.int32).reshape(shape)
    within = parallel.put(np.concatenate([within] * mesh.size, axis), parallel.sharded(mesh, axis))
    return device, (within, within)


def ahead(items: Iterable) -> Iterator:
    """The same items, each made by a thread while the one before is in use. An exception of theirs is raised here."""
    made: queue.Queue = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def offer(item) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer((item, None))
                if stopped.is_set():
                    return
            offer((None, StopIteration()))
        except BaseException as error:
            offer((None, error))

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()
