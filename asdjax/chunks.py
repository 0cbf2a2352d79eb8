"""The compiled program of training: S steps of E networks, from the bank to the updated states, without the host.

The networks are the members of an ensemble, or those of several machines. Their states are stacked along a leading axis
E; where their numbers of classes differ, the smaller ones are padded with zeros, which no gradient reaches.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from asdjax import parallel
from asdjax.core import System, TrainState, UsageError

LOWERINGS = ("map", "vmap", "shard")


def lowering(networks: int, mesh: Mesh) -> str:
    """How E networks share the devices, by what was measured (benchmarks/train_step.py).

    'shard' gives every device its own networks, without any traffic between devices; 'map' trains one network after the
    other on all devices. 'vmap' trains them side by side, with E times the memory: on two CPU cores four networks with
    batches of 8 take 528 ms a step, by 'map' 604, one of them alone 132. Not measured on GPU or TPU, where convolutions
    with a kernel for each network become grouped ones.
    """
    return "shard" if mesh.size > 1 and networks % mesh.size == 0 else "map"


def make_chunk(system: System, mesh: Mesh, *, lowering: str, resident: bool):
    """Makes (states, seeds (E,), store, rows, asked (devices,)) -> (states, metrics, whether any was asked), jitted.

    Args:
        system: of the (padded) networks.
        mesh: the devices.
        lowering: 'map' and 'vmap' split the batch over the devices, 'shard' the networks.
        resident: whether the store is whole on every device, or each has a shard of its own clips.

    Returns:
        a jitted function of the stacked states (donated), seeds (E,) uint32, a feed.Store or feed.Frames with its rows,
        a pair of (E, S, B) int32, and a flag by device (any of a device's process asked to stop: all must stop at one
        step). The metrics are (E, S).
    """
    if lowering not in LOWERINGS:
        raise UsageError(f"lowering is {lowering!r}; there is: {', '.join(LOWERINGS)}")
    held = P() if resident else P("data")
    batch = P("data")

    def take(store, rows, labelled):
        if lowering == "shard":
            return store.batch(rows, labelled)
        # each device gathers its own rows; left to itself, XLA would gather a sharded store whole
        local = jax.shard_map(type(store).batch, mesh=mesh, in_specs=(held, batch, batch), out_specs=batch)
        return local(store, rows, labelled)

    def one(state, seed, store, rows):
        key = jax.random.key(seed)

        def step(state, rows):
            return system.update(state, jax.random.fold_in(key, state.step), take(store, *rows))

        return jax.lax.scan(step, state, rows)

    def mapped(states, seeds, store, rows):
        return jax.lax.map(lambda each: one(*each[:2], store, each[2]), (states, seeds, rows))

    if lowering == "shard":
        each = P("data")
        networks = jax.shard_map(
            mapped, mesh=mesh, in_specs=(each, each, held, each), out_specs=(each, each), check_vma=False
        )
    else:
        networks = mapped if lowering == "map" else jax.vmap(one, in_axes=(0, 0, None, 0))

    def chunk(states, seeds, store, rows, asked):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for core.by_device
            states, metrics = networks(states, seeds, store, rows)
        # hung on the last step, since XLA:CPU may deadlock on a collective beside those of the steps
        return states, metrics, (asked & (states.step[0] >= 0)).any()

    whole = parallel.replicated(mesh)
    states = parallel.sharded(mesh) if lowering == "shard" else whole
    return jax.jit(chunk, donate_argnums=0, out_shardings=(states, whole, whole))


def padded_shapes(states: list) -> Any:
    """The shapes into which all these trees fit, as ShapeDtypeStruct, or None where they are not of one kind."""
    flat = [jax.tree.flatten(state) for state in states]
    if any(tree != flat[0][1] for _, tree in flat):
        return None
    shapes = []
    for leaves in zip(*(leaves for leaves, _ in flat), strict=True):
        if len({(leaf.ndim, leaf.dtype) for leaf in leaves}) > 1:
            return None
        shape = tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves), strict=True))
        shapes.append(jax.ShapeDtypeStruct(shape, leaves[0].dtype))
    return jax.tree.unflatten(flat[0][1], shapes)


def stack(trees: list, shapes: Any) -> Any:
    """Trees on the host -> one of leaves (E, ...), each padded with zeros at the end of its axes."""

    def leaf(shape: jax.ShapeDtypeStruct, *leaves: np.ndarray) -> np.ndarray:
        out = np.zeros((len(leaves), *shape.shape), shape.dtype)
        for i, value in enumerate(leaves):
            out[(i, *map(slice, value.shape))] = value
        return out

    return jax.tree.map(leaf, shapes, *trees)


def unstack(states: TrainState, likes: list[TrainState]) -> list[TrainState]:
    """The inverse of `stack`: states of the shapes of `likes`."""

    def network(i: int, like: TrainState) -> TrainState:
        return jax.tree.map(lambda leaf, like: leaf[(i, *map(slice, like.shape))], states, like)

    return [network(i, like) for i, like in enumerate(likes)]


def label_table(labels: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Labellings of the same N clips, dicts of (N, ...) -> one of (G * N, ...), padded with zeros: no such class."""
    if len(labels) == 1:  # as it is: it may be too large to be an array
        return labels[0]
    shapes = padded_shapes(labels)
    if shapes is None:
        raise UsageError("networks with labels of different kinds cannot be trained together")
    return jax.tree.map(lambda v: v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]), stack(labels, shapes))
