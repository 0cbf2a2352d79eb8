"""A miniature of AudioSet: synthetic sound events made from a seed, in AudioSet's format.

    ROOT/class_labels_indices.csv, ROOT/{balanced_train,unbalanced_train,eval}_segments.csv
    ROOT/audios/balanced_train_segments/Y{YTID}.wav

A clip has one to three events of different classes, at random times and levels, over faint noise; all that are heard
are tagged. In the balanced and the evaluation segments the classes take turns, in the unbalanced ones they go from
common to rare. As in the wild, some clips are short and some segments have no file.

How hard it is without a network: the distance to the mean of the training clips without a class minus that to the mean
of those with it, in z-scored log-mel spectrograms (64 bands, 512/160) averaged over time, learnt on the balanced
segments, has a mean average precision of 0.56 for seed 0 (seeds 1 and 2: 0.58 and 0.56); chance is 0.25.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from asdjax.core import InputError, UsageError, cache_folder
from asdjax.data import synth

VERSION = 1  # of the sounds: it names the cached folder
RATE = 16000
LEVELS = (-30.0, -20.0)  # dBFS, RMS of an event while it is heard
FAINT = (-50.0, -40.0)  # dBFS, RMS of the noise below
ALPHABET = string.ascii_letters + string.digits + "-_"


class Kind(NamedTuple):
    """A class of events: its label and display name, and its sound (rng, n) -> (n,)."""

    mid: str
    name: str
    sound: Callable[[np.random.Generator, int], np.ndarray]


class Excerpt(NamedTuple):
    """One segment to be made: `classes` are numbers of KINDS, `entropy` the seed of its own generator."""

    csv: str
    id: str
    start: float
    end: float
    classes: tuple[int, ...]
    has_file: bool
    entropy: tuple[int, ...]


def _noise(rng: np.random.Generator, n: int, centre: float, octaves: float) -> np.ndarray:
    """Gaussian noise whose spectrum is a bell over log-frequency around `centre` Hz; (n,)."""
    freq = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 1)
    gain = np.exp(-0.5 * (np.log2(freq / centre) / octaves) ** 2)
    return np.fft.irfft((rng.standard_normal(len(freq)) + 1j * rng.standard_normal(len(freq))) * gain, n)


def _at(rng: np.random.Generator, n: int, one: np.ndarray, rate: tuple[float, float]) -> np.ndarray:
    """The sound `one` again and again, so many times a second; (n,)."""
    step = int(RATE / rng.uniform(*rate))
    hits = np.zeros(n)
    first = rng.integers(min(step, n))
    hits[first::step] = rng.uniform(0.6, 1.0, len(range(first, n, step)))
    size = n + len(one)
    return np.fft.irfft(np.fft.rfft(hits, size) * np.fft.rfft(one, size), size)[:n]


def _siren(rng: np.random.Generator, n: int) -> np.ndarray:
    time = np.arange(n) / RATE
    wave = np.sin(2 * np.pi * (rng.uniform(0.3, 1.5) * time + rng.uniform()))
    turns = np.cumsum(rng.uniform(700, 1100) * 2 ** (0.6 * wave)) / RATE
    return np.sin(2 * np.pi * turns) + 0.4 * np.sin(4 * np.pi * turns)


def _ticking(rng: np.random.Generator, n: int) -> np.ndarray:
    time = np.arange(RATE // 50) / RATE
    return _at(rng, n, _noise(rng, len(time), rng.uniform(2000, 5000), 0.7) * np.exp(-time / 0.003), (3, 9))


def _gust(rng: np.random.Generator, n: int) -> np.ndarray:
    return _noise(rng, n, rng.uniform(500, 1500), 1.0) * np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2


def _hum(rng: np.random.Generator, n: int) -> np.ndarray:
    turns = rng.choice([50.0, 60.0, 100.0]) * np.arange(n) / RATE
    gains = 0.75 ** np.arange(10) * rng.uniform(0.5, 1.0, 10)
    return sum(g * np.sin(2 * np.pi * ((k + 1) * turns + rng.uniform())) for k, g in enumerate(gains))


def _tweet(rng: np.random.Generator, n: int) -> np.ndarray:
    time = np.arange(int(rng.uniform(0.05, 0.15) * RATE)) / RATE
    hertz = rng.uniform(2200, 4500) * 2 ** (rng.uniform(0.3, 0.8) * time / time[-1])
    one = np.sin(2 * np.pi * np.cumsum(hertz) / RATE) * np.sin(np.pi * time / time[-1])
    return _at(rng, n, one, (2, 6))


def _idling(rng: np.random.Generator, n: int) -> np.ndarray:
    beat = np.cos(2 * np.pi * (rng.uniform(8, 20) * np.arange(n) / RATE + rng.uniform()))
    return _noise(rng, n, rng.uniform(120, 300), 0.8) * (1 + beat) ** 2


def _bell(rng: np.random.Generator, n: int) -> np.ndarray:
    time = np.arange(RATE) / RATE
    partials = rng.uniform(400, 800) * np.array([1.0, 2.0, 2.4, 3.0, 4.5])  # of a church bell, in tune
    one = sum(np.sin(2 * np.pi * hz * time) * np.exp(-time * hz / 1500) / (1 + k) for k, hz in enumerate(partials))
    return _at(rng, n, one, (0.7, 2))


def _steam(rng: np.random.Generator, n: int) -> np.ndarray:
    return _noise(rng, n, rng.uniform(4000, 6500), 0.35)


KINDS = (
    Kind("/m/0asd1a", "Siren", _siren),
    Kind("/m/0asd2b", "Clock, ticking", _ticking),
    Kind("/t/asd0003", "Wind, gust", _gust),
    Kind("/m/0asd4_d", "Mains hum", _hum),
    Kind("/m/0asd5e", 'Chirp, "tweet"', _tweet),
    Kind("/m/0asd6f", "Engine, idling", _idling),
    Kind("/t/asd0007", 'Bell, "ding", chime', _bell),
    Kind("/m/0asd8h", "Steam, hiss", _steam),
)


def plan(
    seed: int = 0, balanced: int = 64, unbalanced: int = 80, evaluation: int = 48, seconds: float = 10.0
) -> list[Excerpt]:
    """What `miniature` writes; Args as there. Of 16 segments two are shorter than the others, one has no file."""
    counts = {"balanced_train": balanced, "unbalanced_train": unbalanced, "eval": evaluation}
    excerpts, n = [], len(KINDS)
    for number, (name, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        common = 1 / np.arange(1, n + 1) if name == "unbalanced_train" else np.ones(n)
        for i in range(count):
            others = common * (np.arange(n) != i % n) if common[-1] == 1 else common
            heard = rng.choice(n, rng.integers(1, 4), replace=False, p=others / others.sum()).tolist()
            if common[-1] == 1:
                heard = [i % n, *heard[1:]]
            key = "".join(rng.choice(list(ALPHABET), 11))
            key = ("-" + key[1:], "Y" + key[1:], key[:4] + "_" + key[5:], key)[min(i, 3)]
            start = float(10 * rng.integers(40))
            end = start + seconds * (round(rng.uniform(0.4, 0.9), 2) if i % 8 == 3 else 1)
            tags = tuple(sorted(heard))
            excerpts.append(Excerpt(f"{name}_segments", key, start, end, tags, i % 16 != 5, (seed, number, i)))
    return excerpts


def render(excerpt: Excerpt) -> np.ndarray:
    """The sound of one line of the plan, by its own generator: (T,) int16 at 16 kHz."""
    rng = np.random.default_rng(excerpt.entropy)
    n = round((excerpt.end - excerpt.start) * RATE)
    wave = _noise(rng, n, rng.uniform(150, 1500), 2.0)
    wave *= 10 ** (rng.uniform(*FAINT) / 20) / np.sqrt(np.mean(wave**2))
    for number in excerpt.classes:
        size = max(int(rng.uniform(0.2, 0.7) * n), RATE // 4)
        sound = KINDS[number].sound(rng, size)
        sound *= 10 ** (rng.uniform(*LEVELS) / 20) / np.sqrt(np.mean(sound**2) + 1e-12)
        first = rng.integers(max(1, n - size))
        wave[first : first + size] += sound[: n - first]
    return np.round(32767 * wave / max(1.0, np.abs(wave).max())).astype(np.int16)


def miniature(
    root: str | Path,
    *,
    seed: int = 0,
    balanced: int = 64,
    unbalanced: int = 80,
    evaluation: int = 48,
    seconds: float = 10.0,
    workers: int | None = None,
) -> Path:
    """Writes 16-bit 16 kHz mono wavs, the class index and the csvs of segments; a seed gives the same bytes.

    Args:
        root: a new or empty folder.
        seed: of every clip.
        balanced, unbalanced, evaluation: segments of each csv.
        seconds: length of a clip; two of 16 are shorter.
        workers: threads, of no influence on the bytes; None: a few more than there are cores.

    Raises:
        UsageError: a negative seed or count, clips of less than a second.
        InputError: root is not a new or empty folder.
    """
    root = Path(root)
    if min(seed, balanced, unbalanced, evaluation) < 0 or seconds < 1:
        raise UsageError(
            f"seed {seed}, balanced {balanced}, unbalanced {unbalanced}, evaluation {evaluation}, seconds {seconds}: "
            "expected >= 0 and >= 1 s"
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is there and no empty folder; the data set goes to a new or an empty one")
    excerpts = plan(seed, balanced, unbalanced, evaluation, seconds)
    quoted = (f'{i},{kind.mid},"{kind.name.replace(chr(34), 2 * chr(34))}"' for i, kind in enumerate(KINDS))
    root.mkdir(parents=True, exist_ok=True)
    (root / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *quoted, ""]))
    for csv in ("balanced_train_segments", "unbalanced_train_segments", "eval_segments"):
        own = [e for e in excerpts if e.csv == csv]
        head = ["# Synthetic sound events in AudioSet's format", f"# num_ytids={len(own)}, num_segs={len(own)}"]
        head.append("# YTID, start_seconds, end_seconds, positive_labels")
        lines = (f'{e.id}, {e.start:.3f}, {e.end:.3f}, "{",".join(KINDS[c].mid for c in e.classes)}"' for e in own)
        (root / f"{csv}.csv").write_text("\n".join([*head, *lines, ""]))
        (root / "audios" / csv).mkdir(parents=True)
    made = [e for e in excerpts if e.has_file]

    def write(e: Excerpt) -> None:
        soundfile.write(root / "audios" / e.csv / f"Y{e.id}.wav", render(e), RATE, subtype="PCM_16")

    synth.write_all(write, made, workers, "making the miniature of AudioSet")
    return root


def embedded(cache: str | Path | None = None, seed: int = 0) -> Path:
    """The folder of the miniature: made on first use (55 MB), and anew where files are missing or altered.

    Args:
        cache: where it is kept; by default $ASDJAX_CACHE, else $XDG_CACHE_HOME/asdjax, else ~/.cache/asdjax.
        seed: of every clip.

    Raises:
        InputError: the cache cannot be written.
    """
    folder = Path(cache or cache_folder()).expanduser() / f"embedded-events-v{VERSION}-seed{seed}"
    return synth.kept(folder, "the embedded miniature of AudioSet", partial(miniature, seed=seed))
