"""The embedded data set: sounds of four machines made from a seed, in the layout of DCASE 2023 Task 2.

    ROOT/MACHINE/train/section_00_source_train_normal_0000_spd_1100.wav
    ROOT/MACHINE/test/section_00_target_test_anomaly_0003_spd_1400.wav
    ROOT/MACHINE/attributes_00.csv

A machine has 64 source and 10 target clips to learn from and 20 test clips per domain and label, of 4 s. The domains
differ in speed, load or rhythm, machine and factory noise are 5 to 7 dB apart, faults go from inaudible to plain.
How hard it is for a score without a network, the distance to the nearest training clip in the log-mel spectrogram
(128 bands, 1024/512), averaged over time and z-scored: AUC source, AUC target and pAUC for seed 0, then the same with
all clips brought to one level:

    bearing   0.83  0.65  0.63    0.86  0.73  0.72
    fan       0.86  0.53  0.61    0.89  0.64  0.70
    gearbox   0.88  0.63  0.61    0.88  0.68  0.63
    valve     0.77  0.62  0.60    0.77  0.64  0.63

Their harmonic mean is 0.667 and 0.719 (seeds 1 to 5: 0.64 to 0.69 and 0.68 to 0.71). Loudness alone is at chance.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

from asdjax.core import InputError, UsageError, cache_folder
from asdjax.data.machines import MACHINES, RATE, factory

VERSION = 1  # of the sounds: it names the cached folder
SNR = (5.0, 7.0)  # dB, machine over factory noise
LEVELS = (-36.0, -33.0)  # dBFS, RMS of a clip: its peaks, up to 27 dB above in the valve, stay below full scale


class Recording(NamedTuple):
    """One file to be made: `level` in dBFS, `entropy` the seed of its own generator."""

    path: str
    machine: str
    attributes: str
    fault: str
    degree: float
    level: float
    entropy: tuple[int, ...]


def plan(
    seed: int = 0, machines: Sequence[str] = tuple(MACHINES), n_train: int = 64, n_target: int = 10, n_test: int = 20
) -> list[Recording]:
    """What `generate` writes, with the faults and degrees that the file names do not tell; Args as there.

    Attribute values take turns, and degrees are spread evenly over 0..1 and over the faults. The four groups of a
    machine's test clips have the same levels in another order, so that loudness says nothing of the label.
    """
    recordings = []
    for name in machines:
        number, faults = sorted(MACHINES).index(name), MACHINES[name].faults.split()
        rng = np.random.default_rng([seed, number])
        levels = rng.uniform(*LEVELS, n_test)
        groups = [("train", "source", "normal", n_train), ("train", "target", "normal", n_target)]
        groups += [("test", domain, y, n_test) for domain in ("source", "target") for y in ("normal", "anomaly")]
        for group, (split, domain, label, count) in enumerate(groups):
            values = getattr(MACHINES[name], domain).split()
            level = rng.permutation(levels) if split == "test" else rng.uniform(*LEVELS, count)
            for i, order in enumerate(rng.permutation(count)):
                tail = values[i % len(values)]
                path = f"{name}/{split}/section_00_{domain}_{split}_{label}_{i:04d}_{tail}.wav"
                harm = (faults[order % len(faults)], (order + 0.5) / count) if label == "anomaly" else ("", 0.0)
                recordings.append(Recording(path, name, tail, *harm, level[i], (seed, number, group, i)))
    return recordings


def render(recording: Recording) -> np.ndarray:
    """The sound of one line of the plan, by its own generator: (T,) int16 at 16 kHz."""
    rng = np.random.default_rng(recording.entropy)
    words = recording.attributes.split("_")
    attributes = dict(zip(words[::2], words[1::2], strict=True))
    sound = MACHINES[recording.machine].sound
    sound = sound(rng, lambda fault: recording.degree * (fault == recording.fault), **attributes)
    wave = sound / np.sqrt(np.mean(sound**2)) + 10 ** (-rng.uniform(*SNR) / 20) * factory(rng)
    wave *= 10 ** (recording.level / 20) / np.sqrt(np.mean(wave**2))
    return np.round(32768 * wave).astype(np.int16)


def generate(
    root: str | Path,
    *,
    seed: int = 0,
    machines: Sequence[str] = tuple(MACHINES),
    n_train: int = 64,
    n_target: int = 10,
    n_test: int = 20,
    workers: int | None = None,
) -> Path:
    """Writes 16-bit 16 kHz mono wavs of 4 s, and attributes_00.csv per machine; a seed gives the same bytes.

    Args:
        root: a new or empty folder.
        seed: of every clip; some of the machines have the same clips as in all of them.
        machines: names out of MACHINES.
        n_train, n_target: training clips per machine, of the source and of the target domain.
        n_test: test clips per machine, domain and label.
        workers: threads, of no influence on the bytes; None: a few more than there are cores.

    Raises:
        UsageError: an unknown machine, a negative seed, a count that is too small.
        InputError: root is not a new or empty folder.
    """
    root = Path(root)
    if unknown := set(machines) - set(MACHINES):
        raise UsageError(f"machines: no {', '.join(sorted(unknown))}; there is: {', '.join(MACHINES)}")
    if min(seed, n_target, n_train - 1, n_test - 1) < 0:
        raise UsageError(
            f"seed {seed}, n_target {n_target}, n_train {n_train}, n_test {n_test}: expected >= 0, 0, 1, 1"
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is there and no empty folder; the data set goes to a new or an empty one")
    recordings = plan(seed, machines, n_train, n_target, n_test)
    for name in machines:
        for split in ("train", "test"):
            (root / name / split).mkdir(parents=True)
        mine = [r for r in recordings if r.machine == name]
        header = "file_name" + "".join(f",d{i}p,d{i}v" for i in range(1, 2 + mine[0].attributes.count("_") // 2))
        rows = (f"{r.path},{r.attributes.replace('_', ',')}" for r in mine)
        (root / name / "attributes_00.csv").write_text("\n".join([header, *rows, ""]))

    def write(recording: Recording) -> None:
        soundfile.write(root / recording.path, render(recording), RATE, subtype="PCM_16")

    write_all(write, recordings, workers, "making the embedded data set")
    return root


def write_all(write: Callable, items: Sequence, workers: int | None, title: str) -> None:
    """write(item) of every item, by threads, with a progress bar on a terminal."""
    bar = dict(total=len(items), console=Console(stderr=True), disable=not sys.stderr.isatty())
    with ThreadPoolExecutor(workers) as pool:
        for _ in track(pool.map(write, items), title, **bar):
            pass


def embedded(cache: str | Path | None = None, seed: int = 0) -> Path:
    """The folder of the embedded data set: made on first use (79 MB), and anew where files are missing or altered.

    Args:
        cache: where it is kept; by default $ASDJAX_CACHE, else $XDG_CACHE_HOME/asdjax, else ~/.cache/asdjax.
        seed: of every clip.

    Raises:
        InputError: the cache cannot be written.
    """
    folder = Path(cache or cache_folder()).expanduser() / f"embedded-v{VERSION}-seed{seed}"
    return kept(folder, "the embedded data set", partial(generate, seed=seed))


def kept(folder: Path, name: str, make: Callable[[Path], Path]) -> Path:
    """The folder, made by make(folder) if it is not there as it was made; it appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    if _complete(folder):
        return folder
    logging.info("making %s in %s", name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-unfinished-", dir=folder.parent) as unfinished:
            new = make(Path(unfinished) / folder.name)
            (new / "manifest.json").write_text(json.dumps(_sizes(new), indent=0))
            if not _complete(folder):  # another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{folder}: cannot write {name} ({error}); set ASDJAX_CACHE") from error
    return folder


def _sizes(root: Path) -> dict[str, int]:
    """Bytes of every wav and csv, by its path below root."""
    return {p.relative_to(root).as_posix(): p.stat().st_size for p in root.rglob("*") if p.suffix in (".wav", ".csv")}


def _complete(root: Path) -> bool:
    try:
        return json.loads((root / "manifest.json").read_text()) == _sizes(root)
    except (OSError, ValueError):
        return False
