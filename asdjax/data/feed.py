"""From the bank to the devices: the whole bank resident there, or the clips of a chunk, gathered one chunk ahead.

Either way a compiled program gets a store on the devices and rows into it, so that it does not know the difference. The
bank holds waveforms (Store) or features (Frames).
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
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
    """Waveforms that batches are gathered from, on the host or on the devices.

    Attributes:
        wave: (N, T) int16.
        gain: (N,) float32; wave * gain is the waveform that the network hears.
        label: dict of (G * N, ...) float32: a table of N labels for each of G labellings, one after the other.
    """

    wave: Any
    gain: Any
    label: dict[str, Any]
    unit = "clip"

    @property
    def units(self) -> int:
        """Rows per clip: a row is a clip."""
        return 1

    @property
    def row_bytes(self) -> int:
        return self.wave.shape[1] * self.wave.dtype.itemsize

    def batch(self, rows: Any, labelled: Any) -> Batch:
        """The clips `rows` (B,) as floats, with the labels `labelled` (B,)."""
        wave = self.wave[rows].astype(jnp.float32) * self.gain[rows][:, None]
        return {"wave": wave, "label": {k: v[labelled] for k, v in self.label.items()}}

    def clips(self, chosen: np.ndarray) -> Store:
        """These clips alone; the labels stay."""
        return self._replace(wave=self.wave[chosen], gain=self.gain[chosen])

    def sent(self, rows: np.ndarray, labelled: np.ndarray, shards: Callable, devices: int) -> Store:
        """The clips that rows ask for, one a row: shards(rows, function of rows) puts each device's own on it."""
        label = {k: shards(labelled, v.__getitem__) for k, v in self.label.items()}
        return Store(shards(rows, self.wave.__getitem__), shards(rows, self.gain.__getitem__), label)


class Frames(NamedTuple):
    """Features that batches are gathered from, where the frontend has been run once and for all; rows are units.

    Attributes:
        frames: (N, L, F) float32, the frontend's output.
        places: (U, w) int32, the frames of each unit of a clip; row r is unit r % U of clip r // U.
        label: as Store's.
    """

    frames: Any
    places: Any
    label: dict[str, Any]
    unit = "unit"

    @property
    def units(self) -> int:
        """Rows per clip."""
        return self.places.shape[0]

    @property
    def row_bytes(self) -> int:
        return self.places.shape[1] * self.frames.shape[2] * self.frames.dtype.itemsize

    def batch(self, rows: Any, labelled: Any) -> Batch:
        """The units `rows` (B,) as features (B, w, F), with the labels `labelled` (B,)."""
        features = self.frames[rows[:, None] // self.units, self.places[rows % self.units]]
        return {"features": features, "label": {k: v[labelled] for k, v in self.label.items()}}

    def clips(self, chosen: np.ndarray) -> Frames:
        """These clips alone; the labels stay."""
        return self._replace(frames=self.frames[chosen])

    def sent(self, rows: np.ndarray, labelled: np.ndarray, shards: Callable, devices: int) -> Frames:
        """The units that rows ask for, as clips of one unit: shards(rows, function of rows), as Store's."""
        label = {k: shards(labelled, v.__getitem__) for k, v in self.label.items()}
        units = shards(rows, lambda r: self.batch(r, r[:0])["features"])
        whole = np.arange(self.places.shape[1], dtype=np.int32)
        return Frames(units, shards(np.arange(devices), lambda r: np.tile(whole, (len(r), 1))), label)


def fits(store: Store | Frames) -> bool:
    """Whether the bank takes at most RESIDENT_SHARE of a device's memory (of the machine's, where that is unknown)."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # CPU: its devices share the machine
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    return store[0].nbytes <= RESIDENT_SHARE * limit


def resident(store: Store | Frames, mesh: Mesh) -> Store | Frames:
    """The store on every device."""
    return parallel.put(store, parallel.replicated(mesh))


def on_devices(store: Store | Frames, wanted: bool, mesh: Mesh, name: str) -> Store | Frames:
    """The store, resident on the devices where that is wanted and it fits, else as it is; says which."""
    size = f"{store[0].nbytes / 1e6:,.0f} MB of {name}"
    if wanted and not parallel.anyone(not fits(store)):  # all processes must run the same program
        logging.info("%s on every device (%d)", size, mesh.size)
        return resident(store, mesh)
    reason = "" if not wanted else f": more than {RESIDENT_SHARE:.0%} of a device's memory"
    logging.info("%s stay on the host and are sent chunk by chunk%s", size, reason)
    return store


def is_resident(store: Store | Frames) -> bool:
    return isinstance(store[0], jax.Array)


def example(store: Store | Frames) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of two clips without labels, in shapes."""
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), store._replace(label={}))
    rows = jax.ShapeDtypeStruct((2,), np.int32)
    batch = jax.eval_shape(lambda store, rows: store.batch(rows, rows), arrays, rows)
    return {k: v for k, v in batch.items() if k != "label"}


def feed(
    store: Store | Frames, requests: Iterable[tuple[np.ndarray, np.ndarray]], mesh: Mesh, *, axis: int
) -> Iterator[tuple[Store | Frames, tuple[jax.Array, jax.Array]]]:
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


def gathered(store: Store | Frames, rows: np.ndarray, labelled: np.ndarray, mesh: Mesh, axis: int):
    """One request from a store on the host: each device gets its own clips and no others."""
    order, labels = (np.concatenate([p.ravel() for p in np.split(r, mesh.size, axis)]) for r in (rows, labelled))
    split = parallel.sharded(mesh)

    def shards(index, read):
        shape = (len(index), *read(index[:0]).shape[1:])  # none is read: it may mean decoding
        return jax.make_array_from_callback(shape, split, lambda where: read(index[where[0]]))

    device = store.sent(order, labels, shards, mesh.size)
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
