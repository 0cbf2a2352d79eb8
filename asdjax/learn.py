"""From groups of clips to their networks' embeddings: read where a finished run left them, else trained for now."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdjax import evaluate, parallel, timing, train
from asdjax.core import TrainState
from asdjax.data import labels as classes
from asdjax.data import sampling
from asdjax.data.feed import Store
from asdjax.progress import reporter


class Group(NamedTuple):
    """Clips that are learnt and scored together.

    Attributes:
        name: 'all', a machine, or MACHINE_SECTION.
        own: (N,) bool, its clips.
        labels: what its networks learn to tell apart.
        rows: its training and test clips, indices.
    """

    name: str
    own: np.ndarray
    labels: classes.Labels
    rows: np.ndarray


def learnt(
    config: Mapping[str, Any], workdir: Path, groups: list[Group], store: Store, mesh, watch: timing.Watch
) -> Iterator[tuple[Group, list[tuple[Path, dict[str, np.ndarray]]]]]:
    """For each group its members' folders and embeddings: read where a finished run left them, else trained for now.

    The networks of all groups and members are trained in one program, unless their shapes differ.
    """
    pack = {group.name: members(config, workdir, group) for group in groups}
    every = [network for networks in pack.values() for network in networks]
    found = {network.folder: parallel.from_first(read_embeddings(network.folder)) for network in every}
    states = {}
    if any(e is None for e in found.values()):
        packs = [every]
        if train.largest(every, store.wave.shape[1]) is None:
            logging.info("the groups' networks differ in more than their number of classes: trained one by one")
            packs = list(pack.values())
        for networks in packs:
            trained = trained_states(config, networks, store, mesh, watch)
            states |= {network.folder: state for network, state in zip(networks, trained, strict=True)}
    for group in groups:
        networks = pack[group.name]
        missing = [network for network in networks if found[network.folder] is None]
        if missing:
            made = embeddings(config, group, missing, [states[n.folder] for n in missing], store, mesh, watch)
            found |= {network.folder: e for network, e in zip(missing, made, strict=True)}
        yield group, [(network.folder, found[network.folder]) for network in networks]


def members(config: Mapping[str, Any], workdir: Path, group: Group) -> list[train.Network]:
    """The networks of a group: as many as config.train.members, seeded one after the other."""
    n, labels = config["train"]["members"], group.labels
    folder = workdir / "groups" / group.name
    system = train.make(config, len(labels.names))
    sampler = sampling.uniform(labels.rows, batch_size=config["train"]["batch_size"])
    label = {"class": labels.onehot}
    folders = [folder] if n == 1 else [folder / f"member_{i}" for i in range(n)]
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    return [
        train.Network(each, system, label, labels.rows, sampler, config["seed"] + i) for i, each in enumerate(folders)
    ]


def trained_states(config, networks: list[train.Network], store: Store, mesh, watch: timing.Watch) -> list[TrainState]:
    """The networks' trained states."""
    settings = config["train"]
    folders = dict.fromkeys(network.folder for network in networks)
    name = networks[0].folder.name if len(folders) == 1 else f"{len(folders)} networks"
    clips = sum({id(n.label): int(n.rows.sum()) for n in networks}.values())
    found = sorted({n.label["class"].shape[1] for n in networks})
    logging.info("%s: training on %d clips, %s classes", name, clips, " to ".join(map(str, found[:1] + found[1:][-1:])))
    with reporter(f"{name}: compiling") as report:

        def on_chunk(step, stop, metrics, clips_per_s):
            values = "  ".join(f"{k} {metrics[k]:.{n}f}" for k, n in (("loss", 3), ("accuracy", 2)) if k in metrics)
            report(step, stop, f"{name}: step {step}  {values}  {clips_per_s:.0f} clips/s")

        states = train.train(
            networks,
            store,
            steps=settings["steps"],
            chunk=settings["chunk"],
            checkpoint_every=settings["checkpoint_every"],
            mesh=mesh,
            progress=on_chunk,
            watch=watch,
        )
    for network in networks:
        if warning := train.collapse_warning(network.folder, network.label["class"].shape[1]):
            logging.warning("warning: %s: %s", network.folder, warning)
    return states


def embeddings(
    config, group: Group, networks: list[train.Network], states: list[TrainState], store: Store, mesh, watch
) -> Iterator[dict[str, np.ndarray]]:
    """embed's dict over the group's clips from each of its networks, kept in their folders."""
    by = f" by {len(networks)} networks" if len(networks) > 1 else ""
    with reporter(f"{group.name}: embedding") as report, watch.phase("embed"):
        made = evaluate.embed_clips(
            networks[0].system,
            states,
            store,
            group.rows,
            units=config["score"]["units"],
            mesh=mesh,
            progress=lambda done, total: report(done, total, f"{group.name}: embedded {done} of {total} clips{by}"),
        )
        for network, e in zip(networks, made, strict=True):
            file = network.folder / "embeddings" / "embeddings.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file.with_suffix(".tmp"), "wb") as temporary:
                np.savez(temporary, **e)
            os.replace(file.with_suffix(".tmp"), file)
            yield e


def read_embeddings(folder: Path) -> dict[str, np.ndarray] | None:
    """What a finished run left in a network's folder, or None."""
    file = folder / "embeddings" / "embeddings.npz"
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read (%s): embedding anew", file, error)
        return None
