"""The embedded data set: sounds of four machines made from a seed, in the layout of DCASE 2023 Task 2.

    ROOT/MACHINE/train/section_00_source_train_normal_0000_spd_1100.wav
    ROOT/MACHINE/test/section_00_target_test_anomaly_0003_spd_1480.wav
    ROOT/MACHINE/attributes_00.csv

@@FACTS@@
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from asdjax.core import InputError, UsageError

RATE, SECONDS = 16000, 4
T = RATE * SECONDS
LEVELS = (-36.0, -33.0)  # dBFS, RMS of a clip: the peaks of the impulsive machines, 30 dB above, stay below full scale
VERSION = 1  # of the sounds: it names the cached folder
_TIME = np.arange(T) / RATE
_FREQ = np.fft.rfftfreq(T, 1 / RATE)

Harm = Callable[[str], float]  # fault -> its degree in this clip, 0 (healthy) to 1


class Machine(NamedTuple):
    """What one machine type is: its sound (rng, harm, **attributes) -> (T,), the attribute values of each domain, the
    faults that `sound` knows, and how many dB it stands above the factory noise."""

    sound: Callable[..., np.ndarray]
    source: tuple[dict, ...]
    target: tuple[dict, ...]
    faults: tuple[str, ...]
    snr: float


class Recording(NamedTuple):
    """One file to be made: `level` in dBFS, `entropy` the seed of its own generator."""

    path: str
    machine: str
    attributes: dict
    fault: str
    degree: float
    level: float
    entropy: tuple[int, ...]


def _rotation(rng: np.random.Generator, hz: float, wander: float = 0.003) -> np.ndarray:
    """exp(i angle) of a shaft that turns at `hz`, within 0.5 % from clip to clip, and wanders slowly; (T,) complex."""
    drift = sum(np.sin(2 * np.pi * (rng.uniform(0.2, 1.0) * _TIME + rng.uniform())) for _ in range(2))
    speed = hz * rng.uniform(0.995, 1.005) * (1 + wander * drift)
    return np.exp(2j * np.pi * (np.cumsum(speed) / RATE + rng.uniform()))


def _harmonics(rng: np.random.Generator, turn: np.ndarray, gains: Sequence[float], spread: float = 1.0) -> np.ndarray:
    """The sum of gains[k] cos((k + 1) angle + random phase), the gains off by `spread` dB (deviation); (T,)."""
    gains = np.asarray(gains) * 10 ** (spread * rng.standard_normal(len(gains)) / 20)
    total = np.zeros(T, complex)
    for factor in (gains * np.exp(2j * np.pi * rng.uniform(size=len(gains))))[
        ::-1
    ]:  # Horner's rule: no sine a harmonic
        total = (total + factor) * turn
    return total.real


def _noise(rng: np.random.Generator, gain: np.ndarray) -> np.ndarray:
    """Gaussian noise of unit RMS whose amplitude spectrum is `gain` (T // 2 + 1,); (T,)."""
    spectrum = (rng.standard_normal(len(gain)) + 1j * rng.standard_normal(len(gain))) * gain
    return np.fft.irfft(spectrum, T) * T / np.sqrt(4 * np.sum(gain**2))


def _bell(centre: float, width: float) -> np.ndarray:
    """A bell over log-frequency, `width` octaves (deviation); (T // 2 + 1,)."""
    return np.exp(-0.5 * (np.log2(np.maximum(_FREQ, 1) / centre) / width) ** 2)


def _ring(rng: np.random.Generator, pulses: np.ndarray, modes: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Pulses (T,) through resonances (Hz, within 2 % from clip to clip; decay in ms; gain), as a struck casing; (T,)."""
    time = _TIME[: RATE // 4]
    modes = [(hz * rng.uniform(0.98, 1.02), ms, gain) for hz, ms, gain in modes]
    response = sum(gain * np.exp(-time / (1e-3 * ms)) * np.sin(2 * np.pi * hz * time) for hz, ms, gain in modes)
    return np.fft.irfft(np.fft.rfft(pulses) * np.fft.rfft(response, T), T)


def _strikes(rng: np.random.Generator, turn: np.ndarray, order: float) -> np.ndarray:
    """Pulses, `order` of them a turn, uneven in height, each off by 1 % of the period (a rolling ball slips); (T,)."""
    angle = np.unwrap(np.angle(turn)) / (2 * np.pi) * order
    at = np.arange(angle[0] + 1, angle[-1])
    at = np.searchsorted(angle, at + 0.01 * rng.standard_normal(len(at)))
    pulses = np.zeros(T)
    pulses[np.minimum(at, T - 1)] = rng.uniform(0.7, 1.3, len(at))
    return pulses


def _fan(rng: np.random.Generator, harm: Harm, spd: int) -> np.ndarray:
    """Shaft, 7 blades passing, motor hum and flow noise, after Neise, Review of fan noise generation mechanisms, 1992.

    Imbalance: shaft tones and a beating flow. Blade: one bent, so every harmonic of the shaft. Clogging: flow noise
    moves up, blade tones sink.
    """
    turn, fast = _rotation(rng, spd / 60), spd / 1200
    shaft = 0.10 / np.arange(1, 7) * (1 + 3 * harm("imbalance"))
    comb = (0.01 + 0.07 * harm("blade")) * 0.97 ** np.arange(60)
    blades = 0.5 * 0.62 ** np.arange(8) * (1 - 0.4 * harm("clogging"))
    tones = _harmonics(rng, turn, shaft) + _harmonics(rng, turn, comb, 3.0) + _harmonics(rng, turn**7, blades)
    tones += _harmonics(rng, _rotation(rng, 100, 0.0), (0.05, 0.03, 0.02, 0.02))
    centre = 700 * fast * 2 ** (0.1 * rng.standard_normal() + 0.35 * harm("clogging"))
    flow = _noise(rng, _bell(centre, 1.3) + 0.3 * (1 + harm("clogging")) * _bell(3500 * fast, 0.6))
    return tones + 0.8 * fast * flow * (1 + (0.1 + 0.4 * harm("imbalance")) * _harmonics(rng, turn, (1,), 0))


def _gearbox(rng: np.random.Generator, harm: Harm, volt: float, wt: int) -> np.ndarray:
    """19 teeth meshing with 31; the two shafts' turns are sidebands of the mesh (Randall, Vibration-based Condition
    Monitoring, 2011, ch. 2).

    Wear: upper mesh harmonics, sidebands and hiss. Tooth: a knock once a turn. Eccentric: the driven wheel's sidebands.
    """
    turn = _rotation(rng, 20 * volt * (1 - 0.0012 * wt))
    slow = np.exp(1j * np.unwrap(np.angle(turn)) * 19 / 31)
    mesh = 0.6 * 0.6 ** np.arange(8) * (0.5 + 0.01 * wt)
    mesh[1:] *= 1 + 1.8 * harm("wear")
    sway = 1 + (0.25 + 0.3 * harm("wear")) * _harmonics(rng, turn, (1, 0.5))
    sway += (0.2 + harm("eccentric")) * _harmonics(rng, slow, (1, 0.4))
    tones = _harmonics(rng, turn**19, mesh) * sway + _harmonics(rng, turn, (0.1, 0.08 + 0.4 * harm("eccentric")))
    knocks = 0.05 * _strikes(rng, turn, 19) + 0.8 * harm("tooth") * _strikes(rng, turn, 1)
    knocks = _ring(rng, knocks, ((1150, 4, 1.0), (2100, 4, 1.0), (3400, 4, 1.0)))
    return tones + knocks + (0.25 + 0.2 * harm("wear")) * _noise(rng, _bell(1500, 1.2))


def _bearing(rng: np.random.Generator, harm: Harm, vel: int) -> np.ndarray:
    """Shaft and rolling noise; faults strike a resonance (Randall and Antoni, Rolling element bearing diagnostics, 2011).

    Outer and inner: a spalled race, 3.58 and 5.42 strikes a turn (9 balls), the inner race loaded once a turn. Dirt:
    sparse random strikes. Dry: a hiss at the top, once a turn.
    """
    turn = _rotation(rng, vel)
    load = 1 + 0.9 * turn.real
    tones = _harmonics(rng, turn, 0.35 * 0.75 ** np.arange(10), 2.0)
    rolling = _noise(rng, _bell(250 * vel / 16, 1.5) + 0.5 * _bell(2700, 0.35) + 0.3 * _bell(4600, 0.25))
    rolling += 0.5 * harm("dry") * _noise(rng, _bell(5200, 0.25)) * load
    hits = 0.8 * harm("outer") * _strikes(rng, turn, 3.58) + 0.7 * harm("inner") * _strikes(rng, turn, 5.42) * load
    hits[rng.integers(0, T, 3 + int(25 * harm("dirt")))] += 6 * harm("dirt")
    return tones + 0.5 * rolling + 0.8 * _ring(rng, hits, ((900, 6, 0.5), (2700, 3, 1.0), (4600, 2, 0.8)))


_PATTERNS = {  # a valve's period, when in it the valve opens, for how long; seconds
    "00": (1.0, (0.0, 0.5), 0.22),
    "01": (1.0, (0.0, 0.3), 0.14),
    "02": (1.2, (0.0, 0.4, 0.8), 0.20),
    "03": (0.8, (0.0, 0.25), 0.10),
    "04": (1.3, (0.0, 0.2, 0.75), 0.12),
}


def _valve(rng: np.random.Generator, harm: Harm, pat: str) -> np.ndarray:
    """A solenoid's strokes in a rhythm: a sharp click as it opens, air while it is open, a dull click as it closes.

    Missing, late, bounce (a second click): some strokes. Weak: every opening click. Leak: air while it is closed.
    """
    period, starts, dwell = _PATTERNS[pat]
    opens = (np.arange(SECONDS / period)[:, None] * period + starts).ravel() + rng.uniform(0, 0.2)
    opens += 0.004 * rng.standard_normal(len(opens))
    shuts = opens + dwell + 0.003 * rng.standard_normal(len(opens))
    height = 10 ** (rng.standard_normal((2, len(opens))) / 20)
    height[0] *= 1 - 0.85 * harm("weak")
    some = rng.permutation(np.flatnonzero(shuts < SECONDS))
    some = some[: 1 + int(5 * max(map(harm, ("missing", "late", "bounce"))))]
    height[:, some] *= harm("missing") == 0
    opens[some] += (0.03 + 0.08 * harm("late")) * (harm("late") > 0)
    again = opens[some] + rng.uniform(0.02, 0.04, len(some))
    clicks, air = np.zeros((2, T + RATE)), np.full(T, 0.12 + 1.5 * harm("leak"))
    for o, s, h in zip((RATE * opens).astype(int), (RATE * shuts).astype(int), height.T, strict=True):
        clicks[0, o] += h[0]
        clicks[1, s] += h[1]
        air[o:s] += h[0] > 0
    clicks[0, (RATE * again).astype(int)] += (0.4 + 0.8 * harm("bounce")) * (harm("bounce") > 0)
    sharp = _ring(rng, clicks[0, :T], ((1400, 9, 1.2), (3100, 6, 1.2), (5600, 4, 1.2)))
    dull = _ring(rng, clicks[1, :T], ((480, 14, 0.8), (1100, 9, 0.8)))
    return sharp + dull + 0.12 * air * _noise(rng, _bell(4500, 0.6))


MACHINES = {
    "fan": Machine(
        sound=_fan,
        source=tuple({"spd": rpm} for rpm in (1100, 1200, 1300)),
        target=({"spd": 960}, {"spd": 1480}),
        faults=("imbalance", "blade", "clogging"),
        snr=6,
    ),
    "gearbox": Machine(
        sound=_gearbox,
        source=tuple({"volt": volt, "wt": wt} for volt in (1.0, 1.4) for wt in (0, 50)),
        target=({"volt": 1.2, "wt": 25}, {"volt": 1.6, "wt": 75}),
        faults=("wear", "tooth", "eccentric"),
        snr=6,
    ),
    "bearing": Machine(
        sound=_bearing,
        source=tuple({"vel": hz} for hz in (12, 16, 20)),
        target=({"vel": 9}, {"vel": 25}),
        faults=("outer", "inner", "dirt", "dry"),
        snr=6,
    ),
    "valve": Machine(
        sound=_valve,
        source=({"pat": "00"}, {"pat": "01"}, {"pat": "02"}),
        target=({"pat": "03"}, {"pat": "04"}),
        faults=("missing", "late", "bounce", "weak", "leak"),
        snr=6,
    ),
}


def _factory(rng: np.random.Generator) -> np.ndarray:
    """Noise of unit RMS: a hall whose colour varies from clip to clip, and the hum of one other machine; (T,)."""
    colour = 1 + rng.uniform(0, 0.8) * _bell(10 ** rng.uniform(2.3, 3.6), 0.4)
    hall = _noise(rng, np.maximum(_FREQ, 60) ** rng.normal(-0.8, 0.05) * colour)
    hum = _harmonics(rng, _rotation(rng, rng.choice((50, 87, 120, 196))), 0.7 ** np.arange(1, 13), 3.0)
    mix = hall + rng.uniform(0.1, 0.5) * hum
    return mix / np.sqrt(np.mean(mix**2))


def plan(
    seed: int = 0, machines: Sequence[str] = tuple(MACHINES), n_train: int = 64, n_target: int = 10, n_test: int = 20
) -> list[Recording]:
    """What `generate` writes, clip by clip, with the faults and degrees that file names do not tell.

    Attribute values take turns, faults and degrees are spread evenly over the clips. All four groups of a machine's
    test clips have the same levels in another order, so that loudness says nothing of the label.
    """
    recordings = []
    for name in machines:
        machine, which = MACHINES[name], list(MACHINES).index(name)
        rng = np.random.default_rng([seed, which])
        levels = rng.uniform(*LEVELS, n_test)
        groups = [("train", "source", "normal", n_train), ("train", "target", "normal", n_target)]
        groups += [
            ("test", domain, label, n_test) for domain in ("source", "target") for label in ("normal", "anomaly")
        ]
        for group, (split, domain, label, count) in enumerate(groups):
            order = rng.permutation(count)
            level = rng.permutation(levels) if split == "test" else rng.uniform(*LEVELS, count)
            for i in range(count):
                values = getattr(machine, domain)
                attributes = values[i % len(values)]
                tail = "_".join(f"{k}_{v}" for k, v in attributes.items())
                path = f"{name}/{split}/section_00_{domain}_{split}_{label}_{i:04d}_{tail}.wav"
                sick = label == "anomaly"
                fault = machine.faults[order[i] % len(machine.faults)] if sick else ""
                degree = (order[i] + 0.5) / count if sick else 0.0
                recordings.append(Recording(path, name, attributes, fault, degree, level[i], (seed, which, group, i)))
    return recordings


def render(recording: Recording) -> np.ndarray:
    """The sound of one line of the plan, the same wherever and whenever it is made; (T,) int16 at 16 kHz."""
    rng = np.random.default_rng(recording.entropy)
    machine = MACHINES[recording.machine]
    sound = machine.sound(rng, lambda fault: recording.degree * (fault == recording.fault), **recording.attributes)
    snr = machine.snr + rng.uniform(-1, 1)
    wave = sound / np.sqrt(np.mean(sound**2)) + 10 ** (-snr / 20) * _factory(rng)
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
    """Writes 16-bit 16 kHz mono wavs of 4 s, and attributes_00.csv per machine; a seed always gives the same bytes.

    Args:
        root: a new or empty folder.
        seed: of the whole data set; a subset of machines has the same clips as all of them.
        machines: names out of MACHINES.
        n_train, n_target: training clips per machine, of the source and of the target domain.
        n_test: test clips per machine, domain and label.
        workers: threads, by default one per core.

    Returns:
        root.

    Raises:
        UsageError: an unknown machine, a negative seed, a count that is too small.
        InputError: root is a file or not empty.
    """
    root = Path(root)
    if unknown := set(machines) - set(MACHINES):
        raise UsageError(f"machines: no {', '.join(sorted(unknown))}; there is: {', '.join(MACHINES)}")
    least = {"seed": 0, "n_train": 1, "n_target": 0, "n_test": 1}
    for name, value in dict(seed=seed, n_train=n_train, n_target=n_target, n_test=n_test).items():
        if value < least[name]:
            raise UsageError(f"{name} is {value}, expected {least[name]} or more")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is not an empty folder: the data set is only written to a new or empty one")
    recordings = plan(seed, machines, n_train, n_target, n_test)
    for name in machines:
        for split in ("train", "test"):
            (root / name / split).mkdir(parents=True)
        _write_attributes(root / name / "attributes_00.csv", [r for r in recordings if r.machine == name])

    def write(recording: Recording) -> None:
        soundfile.write(root / recording.path, render(recording), RATE, subtype="PCM_16")

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        _follow(pool.map(write, recordings), len(recordings))
    return root


def _write_attributes(path: Path, recordings: Sequence[Recording]) -> None:
    """The table of DCASE 2023: file name, then parameter and value of every attribute."""
    columns = [f"d{i}{kind}" for i in range(1, 1 + len(recordings[0].attributes)) for kind in "pv"]
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", *columns])
        table.writerows([r.path, *(x for pair in r.attributes.items() for x in pair)] for r in recordings)


def _follow(done, total: int) -> None:
    """Waits for every item of `done`, with a progress bar where somebody is watching."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    for _ in track(done, "making the embedded data set", total, console=console, disable=not sys.stderr.isatty()):
        pass


def embedded(cache: str | Path | None = None, seed: int = 0) -> Path:
    """The folder of the embedded data set: made on first use (79 MB), made anew where files are missing or altered.

    Args:
        cache: the folder to keep it in; by default $ASDJAX_CACHE, else $XDG_CACHE_HOME/asdjax, else ~/.cache/asdjax.
        seed: of the data set.

    Returns:
        CACHE/embedded-v1-seed0, a folder of machines as `generate` writes it.

    Raises:
        UsageError: a negative seed.
        InputError: the cache cannot be written.
    """
    if not cache:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = os.environ.get("ASDJAX_CACHE") or Path(home) / "asdjax"
    folder = Path(cache).expanduser() / f"embedded-v{VERSION}-seed{seed}"
    if _complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-unfinished-", dir=folder.parent) as unfinished:
            new = generate(Path(unfinished) / folder.name, seed=seed)
            (new / "manifest.json").write_text(json.dumps(_sizes(new), indent=0))
            shutil.rmtree(folder, ignore_errors=True)
            try:
                new.rename(folder)
            except OSError:
                if not _complete(folder):  # else another process was faster: its folder serves
                    raise
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(
            f"{folder}: cannot write the embedded data set ({error}); set ASDJAX_CACHE to a folder"
        ) from error
    return folder


def _sizes(root: Path) -> dict[str, int]:
    """Bytes of every wav and csv, by path below `root`."""
    files = sorted(path for path in root.rglob("*") if path.suffix in (".wav", ".csv"))
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def _complete(root: Path) -> bool:
    """Whether the files below `root` are those of its manifest."""
    try:
        return json.loads((root / "manifest.json").read_text()) == _sizes(root)
    except (OSError, ValueError):
        return False
