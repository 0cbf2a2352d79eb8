"""From groups of clips to their networks' embeddings: read where a finished run left them, else trained for now."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdjax import evaluate, parallel, steplog, timing, train
from asdjax.core import Clips, System, TrainState, build
from asdjax.data import feed, sampling
from asdjax.data import labels as classes
from asdjax.data.feed import Frames, Store
from asdjax.progress import reporter

MEMBER = "member_"  # folders of a group with several networks


class Group(NamedTuple):
    """Clips that are learnt and scored together.

    Attributes:
        name: 'all', a machine, or MACHINE_SECTION, as a folder's name.
        machine: whose clips; '' of all.
        labels: what its networks learn to tell apart.
        rows: its training and test clips, indices.
        config: of its networks and scorers.
    """

    name: str
    machine: str
    labels: classes.Labels
    rows: np.ndarray
    config: Mapping[str, Any]


def learnt(
    config: Mapping[str, Any], workdir: Path, groups: list[Group], clips: Clips, store: Store, mesh, watch: timing.Watch
) -> Iterator[tuple[Group, list[tuple[Path, dict[str, np.ndarray]]]]]:
    """For each group its members' folders and embeddings: read where a finished run left them, else trained for now.

    The networks of all groups and members are trained in one program, unless they differ in shapes or steps. The config
    is that of all the groups.
    """
    folders = {group.name: member_folders(workdir, group, config["train"]["members"]) for group in groups}
    found = {folder: parallel.from_first(read_embeddings(folder)) for own in folders.values() for folder in own}
    lacking = [group for group in groups if any(found[folder] is None for folder in folders[group.name])]
    trained = trained_groups(config, {g.name: (g, folders[g.name]) for g in lacking}, clips, store, mesh, watch)
    for group in groups:
        missing = [(n, state) for n, state in trained.get(group.name, []) if found[n.folder] is None]
        if missing:
            networks, states = zip(*missing, strict=True)
            made = embeddings(config, group, list(networks), list(states), store, mesh, watch)
            found |= {network.folder: e for network, e in zip(networks, made, strict=True)}
        yield group, [(folder, found.pop(folder)) for folder in folders[group.name]]  # kept no longer than needed


def member_folders(workdir: Path, group: Group, members: int) -> list[Path]:
    """The folder of each of a group's networks."""
    folder = workdir / "groups" / group.name
    folders = [folder] if members == 1 else [folder / f"{MEMBER}{i}" for i in range(members)]
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    return folders


def trained_groups(
    config, groups: Mapping[str, tuple[Group, list[Path]]], clips: Clips, store: Store, mesh, watch: timing.Watch
) -> dict[str, list[tuple[train.Network, TrainState]]]:
    """The networks of groups, given with their folders, and their trained states."""
    if not groups:
        return {}
    held = np.arange(len(store.wave))  # which clips the bank holds
    if config["data"]["bank"] == "features":
        held = np.flatnonzero(np.any([group.labels.rows for group, _ in groups.values()], axis=0))
        store = bank_of_features(
            config, called([n for _, own in groups.values() for n in own]), store, held, mesh, watch
        )
    networks = {
        name: members(config, group, folders, clips[held], held, store.units)
        for name, (group, folders) in groups.items()
    }
    packs: dict[int, list[train.Network]] = {}
    for own in networks.values():
        packs.setdefault(own[0].steps, []).extend(own)
    if len(packs) > 1:
        logging.info(
            "the groups' networks train for %s steps: only those of one number are trained together; with "
            "config.train.steps instead of epochs all are",
            ", ".join(map(str, sorted(packs))),
        )
    states = {}
    for pack in packs.values():
        parts = [pack]
        if train.largest(pack, store) is None:
            logging.info("the groups' networks differ in more than their number of classes: trained one by one")
            parts = [own for own in networks.values() if any(own[0] is network for network in pack)]
        for part in parts:
            trained = trained_states(config, part, store, mesh, watch)
            states |= {network.folder: state for network, state in zip(part, trained, strict=True)}
    return {name: [(network, states[network.folder]) for network in own] for name, own in networks.items()}


def bank_of_features(config, name: str, store: Store, held: np.ndarray, mesh, watch: timing.Watch) -> Frames:
    """The frontend's output of the clips `held`, computed once, on the devices where it fits."""
    places = train.unit_frames(config, store.wave.shape[1])
    frontend = train.frontend(config)
    system = System(None, None, lambda state, wave: {"features": frontend(wave)[:, None]})
    with reporter(f"{name}: features") as report, watch.phase("features"):

        def on_batch(done, total):
            report(done, total, f"{name}: features of {done} of {total} clips")

        settings = dict(units=config["score"]["units"], mesh=mesh, progress=on_batch)
        (made,) = evaluate.embed_clips(system, [()], store, held, **settings)
    frames = Frames(made["features"][:, 0], places, {})
    return feed.on_devices(frames, config["data"]["resident"], mesh, "features")


def members(
    config, group: Group, folders: list[Path], clips: Clips, held: np.ndarray, units: int
) -> list[train.Network]:
    """The networks of a group, seeded one after the other, for a store of the clips `held` with so many units each."""
    labels, settings = group.labels, config["train"]
    rows, is_target = labels.rows[held], clips.domain == "target"
    label = {"class": labels.onehot[held], "target": is_target.astype(np.float32)}
    draws = sampler(config, clips, rows, units)
    if draws.note:
        logging.info("%s: %s", group.name, draws.note)
    steps = settings["steps"] or math.ceil(settings["epochs"] * draws.epoch)
    system = train.make({**config, "train": {**settings, "steps": steps}}, len(labels.names))
    return [
        train.Network(folder, system, label, rows, draws.draw, config["seed"] + i, steps)
        for i, folder in enumerate(folders)
    ]


def sampler(config, clips: Clips, rows: np.ndarray, units: int) -> sampling.Sampler:
    """How batches are drawn from a store of these clips with so many units each; a network learns from `rows`."""
    batch_size = config["train"]["batch_size"]
    return build(sampling, config["sampler"], clips=clips, rows=rows, batch_size=batch_size, units=units)


def trained_states(
    config, networks: list[train.Network], store: Store | Frames, mesh, watch: timing.Watch
) -> list[TrainState]:
    """The networks' trained states; they have one number of steps."""
    settings = config["train"]
    name = called([network.folder for network in networks])
    clips = sum({id(n.label): int(n.rows.sum()) for n in networks}.values())
    found = sorted({n.label["class"].shape[1] for n in networks})
    told = f", {' to '.join(map(str, found[:1] + found[1:][-1:]))} classes" if found[-1] else ""
    if networks[0].system.update:
        logging.info("%s: training on %d clips%s, %d steps", name, clips, told, networks[0].steps)
    with reporter(f"{name}: compiling") as report:

        def on_chunk(step, stop, metrics, clips_per_s):
            values = "  ".join(f"{k} {metrics[k]:.{n}f}" for k, n in (("loss", 3), ("accuracy", 2)) if k in metrics)
            report(step, stop, f"{name}: step {step}  {values}  {clips_per_s:.0f} {store.unit}s/s")

        states = train.train(
            networks,
            store,
            steps=networks[0].steps,
            chunk=settings["chunk"],
            checkpoint_every=settings["checkpoint_every"],
            mesh=mesh,
            init_from=config["init_from"],
            progress=on_chunk,
            watch=watch,
        )
    for network in networks:
        if warning := steplog.collapse_warning(network.folder, network.label["class"].shape[1]):
            which = f" {network.folder.name}" if MEMBER in network.folder.name else ""
            logging.warning("warning: %s%s: %s", called([network.folder]), which, warning)
    return states


def called(folders: list[Path]) -> str:
    """'fan', 'fan (3 networks)', '7 groups' or '7 groups (21 networks)'."""
    groups = dict.fromkeys(folder.parent.name if MEMBER in folder.name else folder.name for folder in folders)
    name = next(iter(groups)) if len(groups) == 1 else f"{len(groups)} groups"
    return name if len(groups) == len(folders) else f"{name} ({len(folders)} networks)"


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
