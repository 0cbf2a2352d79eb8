"""From a trained system to scores: embed every clip, fit detectors on normal clips per section, score."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from asdjax import detectors, parallel, scoretable
from asdjax.core import Clips, Detector, InputError, System, TrainState, build
from asdjax.data import feed

FOLDS = 5


def make_embed(system: System, mesh: Mesh, *, resident: bool):
    """Makes (state, store, rows) -> embed's dict, jitted: gather, frontend and network of all units in one program.

    The store is whole on every device, or each has a shard of its own clips (see feed.feed).
    """
    held = P() if resident else P("data")

    def run(state, store, rows):
        clips = jax.shard_map(feed.Store.batch, mesh=mesh, in_specs=(held, P("data"), P("data")), out_specs=P("data"))(
            store, *rows
        )
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for core.by_device
            return system.embed(state, clips["wave"])

    return jax.jit(run, out_shardings=parallel.replicated(mesh))


def embed_clips(
    system: System,
    states: list[TrainState],
    store: feed.Store,
    rows: np.ndarray,
    *,
    units: int,
    mesh: Mesh,
    progress=None,
) -> Iterator[dict[str, np.ndarray]]:
    """What the system says of the clips `rows` (N,) in each of its trained states, in padded batches of one shape.

    Args:
        system: its embed is compiled once.
        states: trained states, of the members.
        store: the clips, resident on the devices or on the host.
        rows: (N,) indices into the store.
        units: about how many units (windows) go through the network at once.
        mesh: the devices; a batch is split over them.
        progress: called as progress(clips done, clips in all).

    Yields:
        for each state embed's dict of (N, U, ...) float32 arrays.
    """
    one = jax.eval_shape(system.embed, states[0], jax.ShapeDtypeStruct((1, store.wave.shape[1]), jnp.float32))
    clips = max(1, units // jax.tree.leaves(one)[0].shape[1])
    clips = max(mesh.size, min(clips, len(rows)) // mesh.size * mesh.size)
    run = make_embed(system, mesh, resident=feed.is_resident(store))
    store = store._replace(label={})
    padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % clips)]).reshape(-1, clips)
    for member, state in enumerate(states):
        state = parallel.put(state, parallel.replicated(mesh))
        parts, pending = [], None
        for clips_there, rows_there in feed.feed(store, ((r, r) for r in padded), mesh, axis=0):
            out = run(state, clips_there, rows_there)
            if pending is not None:  # the devices are at the next batch while the host takes this one
                parts.append(parallel.fetch(pending))
            pending = out
            if progress:
                progress(min(member * len(rows) + len(parts) * clips, len(states) * len(rows)), len(states) * len(rows))
        parts.append(parallel.fetch(pending))
        if progress:
            progress((member + 1) * len(rows), len(states) * len(rows))
        yield {k: np.concatenate([part[k] for part in parts])[: len(rows)] for k in parts[0]}


def by_section(clips: Clips) -> Iterator[tuple[str, str, np.ndarray]]:
    """(machine, section, rows (N,) bool) for each section that has test clips, in order."""
    test = clips[clips.is_test]
    for machine, section in sorted(set(zip(test.machine.tolist(), test.section.tolist(), strict=True))):
        yield machine, section, rows_of(clips, machine, section)


def rows_of(clips: Clips, machine: str, section: str) -> np.ndarray:
    return (clips.machine == machine) & (clips.section == section)


def fit_and_score_rows(clips: Clips, rows: np.ndarray, fit: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The detector-data rule: pairs (training rows to fit on, rows to score), both (N,) bool.

    Args:
        clips: all clips of the group.
        rows: (N,) bool, one section.
        fit: 'section': one detector on all training clips of the section. 'by_test_domain': clips of the source domain
            are scored by a detector fitted on source training clips, those of the target domain by one fitted on source
            and target (Morita 2021, section 3.1); where there are no source training clips, both by the latter.
            Training clips without a domain count as source.
    """
    train = rows & clips.is_train
    if not train.any():  # a section that only the test has: the machine's other sections are what is known of it
        train = clips.is_train & (clips.machine == clips.machine[rows][0])
    if fit == "section":
        return [(train, rows)]
    target = clips.domain == "target"
    source = train & ~target
    return [(source if source.any() else train, rows & ~target), (train, rows & target)]


def scores_of_section(
    detector: Detector, e: Mapping[str, np.ndarray], pairs: list, is_train: np.ndarray, is_target: np.ndarray
) -> tuple[np.ndarray, list[dict]]:
    """Scores (N,) of one section's clips (NaN elsewhere), and the fitted states.

    A training clip must not be its own neighbour, else its score says nothing about new normal clips: training clips
    are scored by Detector.own, each as if it had been left out, or else by detectors fitted without their fold. Where
    the rest is too few to fit on, they stay NaN. Test clips are scored by the detector fitted on all.

    Raises:
        InputError: too few training clips for the detector.
    """
    out = np.full(len(is_train), np.nan)
    states = []

    def take(rows: np.ndarray) -> dict:
        return {k: v[rows] for k, v in e.items()}

    def fitted(rows: np.ndarray) -> dict:
        return detector.fit(take(rows), is_target[rows])

    def score(state: dict, rows: np.ndarray) -> None:
        out[rows] = np.asarray(detector.score(state, take(rows)))

    for train, rows in pairs:
        fit_on, test, own = (np.flatnonzero(m) for m in (train, rows & ~is_train, train & rows))
        if len(test):
            states.append(fitted(fit_on))
            score(states[-1], test)
        if detector.own and len(own):
            with contextlib.suppress(InputError):
                scores = detector.own(states[-1] if len(test) else fitted(fit_on), take(fit_on))
                out[own] = np.asarray(scores)[np.isin(fit_on, own)]
            continue
        for fold in folds(len(own)):
            with contextlib.suppress(InputError):
                score(fitted(np.setdiff1d(fit_on, own[fold])), own[fold])
    return out, states


def folds(n: int, n_folds: int = FOLDS) -> list[np.ndarray]:
    """Index sets that cover range(n), every `n_folds`-th clip each; equal in size, so that each compiles but once.

    Clips are sorted by name, hence by condition: taking every fifth spreads the conditions over the folds.
    """
    n_folds = min(n_folds, n)
    return [(fold + n_folds * np.arange(-(-n // n_folds))) % n for fold in range(n_folds)]


def score_group(
    clips: Clips,
    e: dict[str, np.ndarray],
    level: np.ndarray,
    scorers: tuple[Mapping[str, Any], ...],
    folder: Path | None,
    *,
    fused: Collection[str] = (),
) -> Iterator[tuple[str, np.ndarray]]:
    """Every named scorer's scores of a group's clips.

    Args:
        clips: N clips, training and test.
        e: embed's dict of (N, U, ...) and own_classes (N, C).
        level: (N,) loudness in dB as the network hears it.
        scorers: specs dict(name, fit, detector=dict(name=..., ...)).
        folder: gets detectors/SCORER/MACHINE_SECTION[_DOMAIN].npz, the fitted states; None: they are not kept.
        fused: scorers that are one voice of many: where one cannot be fitted to a section it is left out there, aloud.

    Yields:
        (scorer, scores (N,) float64, NaN for clips of sections without test clips and for training clips that nothing
        can be fitted without); last 'rms-only', the distance of a
        clip's level from the mean training level of its section, in dB: what loudness alone gives away.
    """
    is_target = clips.domain == "target"
    if folder:
        shutil.rmtree(folder / "detectors", ignore_errors=True)  # those of other scorers, where these are scored anew
    for machine, section, rows in by_section(clips):
        if not (rows & clips.is_train).any():
            logging.warning(
                "%s section %s has no training clips: scored against those of its other sections", machine, section
            )
    silent: dict[tuple[str, str], list[str]] = {}
    for spec in scorers:
        detector = detector_of(json.dumps(spec["detector"], sort_keys=True))
        total = np.full(len(clips), np.nan)
        for machine, section, rows in by_section(clips):
            pairs = fit_and_score_rows(clips, rows, spec["fit"])
            where = f"scorer {spec['name']!r}, {machine} section {section}"
            try:
                scores, states = scores_of_section(detector, e, pairs, clips.is_train, is_target)
            except InputError as error:
                if spec["name"] not in fused:
                    raise type(error)(f"{where}: {error}") from error
                silent.setdefault((machine, section), []).append(f"{spec['name']}: {error}")
                continue
            if spec["name"] in fused and not np.isfinite(scores[rows & clips.is_train]).any():
                # there is nothing to standardise its scores by
                reason = f"{spec['name']}: too few training clips to score them by each other"
                silent.setdefault((machine, section), []).append(reason)
                continue
            if (bad := rows & clips.is_test & np.isnan(scores)).any():
                raise InputError(
                    f"{where}: the score of {clips.path[bad][0]} is not a number (and {bad.sum() - 1} more)"
                )
            total = np.where(np.isnan(scores), total, scores)
            if folder:
                save_states(folder / "detectors" / spec["name"], f"{machine}_{section}", states)
        yield spec["name"], total
    for (machine, section), reasons in silent.items():
        where = (
            f"{machine} section {section} ({(clips.is_train & rows_of(clips, machine, section)).sum()} training clips)"
        )
        if len(reasons) == len(scorers):
            raise InputError(f"{where}: no scorer can be fitted; {reasons[0]}")
        logging.warning(
            "warning: %s: %d of %d scorers are left out of the fusion; %s",
            where,
            len(reasons),
            len(scorers),
            reasons[0],
        )
    total = np.full(len(clips), np.nan)
    for _, _, rows in by_section(clips):
        (train, _), *_ = fit_and_score_rows(clips, rows, "section")
        total[rows] = np.abs(level[rows] - level[train].mean())
    yield scoretable.RMS, total


@functools.lru_cache(maxsize=256)
def detector_of(spec: str) -> Detector:
    """The detector of a spec in JSON; made once, so that its programs serve all groups and members."""
    return build(detectors, json.loads(spec))


def save_states(folder: Path, name: str, states: list[dict]) -> None:
    """Writes fitted detector states, one npz each; two of them are those for source and for target clips."""
    folder.mkdir(parents=True, exist_ok=True)
    endings = [""] if len(states) == 1 else ["_source", "_target"]
    for ending, state in zip(endings, states, strict=False):
        np.savez(folder / f"{name}{ending}.npz", **{k: np.asarray(v) for k, v in state.items()})
