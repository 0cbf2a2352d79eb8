"""What the machines of the embedded data set sound like, healthy and faulty: 4 s at 16 kHz from a generator.

Sounds are built from what such machines do: shafts that turn, blades that pass, teeth that mesh, balls that roll over a
dent, solenoids that click. A fault has a degree from 0 (healthy) to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RATE, SECONDS = 16000, 4
T = RATE * SECONDS
_TIME = np.arange(T) / RATE
_FREQ = np.fft.rfftfreq(T, 1 / RATE)

Harm = Callable[[str], float]  # fault -> its degree in this clip, from 0 (healthy) to 1


class Machine(NamedTuple):
    """A machine type: its sound (rng, harm, **attributes) -> (T,); words: its faults, the attributes of each domain."""

    sound: Callable[..., np.ndarray]
    faults: str
    source: str
    target: str


def _rotation(rng: np.random.Generator, hz: float) -> np.ndarray:
    """Turns done by a shaft at `hz`, which is off by up to 0.5 % from clip to clip and wanders by 0.3 %; (T,)."""
    drift = sum(np.sin(2 * np.pi * (rng.uniform(0.2, 1.0) * _TIME + rng.uniform())) for _ in range(2))
    return np.cumsum(hz * rng.uniform(0.995, 1.005) * (1 + 0.003 * drift)) / RATE + rng.uniform()


def _tones(rng: np.random.Generator, turns: np.ndarray, gains: Sequence[float], spread: float = 1.0) -> np.ndarray:
    """The sum over k of gains[k] cos(2 pi (k + 1) turns + random phase), gains off by `spread` dB (deviation); (T,)."""
    gains = np.asarray(gains) * 10 ** (spread * rng.standard_normal(len(gains)) / 20)
    step, total = np.exp(2j * np.pi * turns), np.zeros(T, complex)
    for gain in (gains * np.exp(2j * np.pi * rng.uniform(size=len(gains))))[::-1]:  # Horner's rule spares the sines
        total += gain
        total *= step
    return total.real


def _noise(rng: np.random.Generator, gain: np.ndarray) -> np.ndarray:
    """Gaussian noise of unit RMS whose amplitude spectrum is `gain` (T // 2 + 1,); (T,)."""
    spectrum = (rng.standard_normal(len(gain)) + 1j * rng.standard_normal(len(gain))) * gain
    return np.fft.irfft(spectrum, T) * T / np.sqrt(4 * np.sum(gain**2))


def _bell(centre: float, width: float) -> np.ndarray:
    """A bell over log-frequency around `centre` Hz, `width` octaves (deviation); (T // 2 + 1,)."""
    return np.exp(-0.5 * (np.log2(np.maximum(_FREQ, 1) / centre) / width) ** 2)


def _ring(rng: np.random.Generator, pulses: np.ndarray, modes: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Pulses (T,) through resonances (Hz, off by up to 2 % from clip to clip; decay in ms; gain); (T,)."""
    time = _TIME[: RATE // 4]
    waves = (np.sin(2 * np.pi * hz * rng.uniform(0.98, 1.02) * time) for hz, _, _ in modes)
    response = sum(gain * np.exp(-1e3 * time / ms) * wave for wave, (_, ms, gain) in zip(waves, modes, strict=True))
    return np.fft.irfft(np.fft.rfft(pulses) * np.fft.rfft(response, T), T)


def _strikes(rng: np.random.Generator, turns: np.ndarray) -> np.ndarray:
    """A pulse a turn, of uneven height and off by 1 % of the period, as balls slip; (T,)."""
    at = np.arange(np.ceil(turns[0]), turns[-1])
    at = np.searchsorted(turns, at + 0.01 * rng.standard_normal(len(at)))
    return np.bincount(np.minimum(at, T - 1), rng.uniform(0.7, 1.3, len(at)), T)


def _fan(rng: np.random.Generator, harm: Harm, spd: str) -> np.ndarray:
    """Shaft and 7 blades passing in flow noise (Neise, Review of fan noise generation mechanisms, 1992).

    Imbalance: shaft tones, a beating flow. Blade: one is bent, every harmonic of the shaft. Clogging: a higher hiss.
    """
    turns, fast = _rotation(rng, float(spd) / 60), float(spd) / 1200
    shaft = (0.10 + 0.40 * harm("imbalance")) / np.arange(1, 7)
    comb = (0.01 + 0.09 * harm("blade")) * 0.97 ** np.arange(60)
    blades = (0.50 - 0.20 * harm("clogging")) * 0.62 ** np.arange(8)
    tones = _tones(rng, turns, shaft) + _tones(rng, turns, comb, 3.0) + _tones(rng, 7 * turns, blades)
    centre = 700 * fast * 2 ** (0.1 * rng.standard_normal() + 0.35 * harm("clogging"))
    flow = _noise(rng, _bell(centre, 1.3) + 0.3 * (1 + harm("clogging")) * _bell(3500 * fast, 0.6))
    return tones + 0.8 * fast * flow * (1 + _tones(rng, turns, (0.1 + 0.4 * harm("imbalance"),)))


def _gearbox(rng: np.random.Generator, harm: Harm, volt: str, wt: str) -> np.ndarray:
    """19 teeth in 31, both shafts swaying the mesh (Randall, Vibration-based Condition Monitoring, 2011, ch. 2).

    Wear: upper mesh harmonics, sidebands, hiss. Tooth: a knock a turn. Eccentric: the driven wheel's sidebands.
    """
    turns = _rotation(rng, 20 * float(volt) * (1 - 0.0012 * float(wt)))
    mesh = (0.3 + 0.006 * float(wt)) * 0.6 ** np.arange(8)
    mesh[1:] *= 1 + 1.8 * harm("wear")
    sway = 1 + (0.25 + 0.3 * harm("wear")) * _tones(rng, turns, (1, 0.5))
    sway += (0.2 + harm("eccentric")) * _tones(rng, turns * 19 / 31, (1, 0.4))
    tones = _tones(rng, 19 * turns, mesh) * sway + _tones(rng, turns, (0.1, 0.08 + 0.4 * harm("eccentric")))
    knocks = 0.05 * _strikes(rng, 19 * turns) + 0.8 * harm("tooth") * _strikes(rng, turns)
    knocks = _ring(rng, knocks, ((1150, 4, 1.0), (2100, 4, 1.0), (3400, 4, 1.0)))
    return tones + knocks + (0.25 + 0.2 * harm("wear")) * _noise(rng, _bell(1500, 1.2))


def _bearing(rng: np.random.Generator, harm: Harm, vel: str) -> np.ndarray:
    """Shaft and rolling noise of 9 balls (Randall and Antoni, Rolling element bearing diagnostics, 2011).

    Outer, inner: a spalled race, 3.58 or 5.42 strikes a turn. Dirt: sparse strikes. Dry: a hiss as the load turns.
    """
    turns = _rotation(rng, float(vel))
    load = 1 + 0.9 * np.cos(2 * np.pi * turns)
    rolling = _noise(rng, _bell(16 * float(vel), 1.5) + 0.5 * _bell(2700, 0.35) + 0.3 * _bell(4600, 0.25))
    rolling += 0.4 * harm("dry") * load * _noise(rng, _bell(5200, 0.25))
    hits = 0.7 * harm("outer") * _strikes(rng, 3.58 * turns) + 0.6 * harm("inner") * load * _strikes(rng, 5.42 * turns)
    hits[rng.integers(0, T, 23)[: 3 + int(20 * harm("dirt"))]] += 4 * harm("dirt")
    rings = _ring(rng, hits, ((900, 6, 0.4), (2700, 3, 0.8), (4600, 2, 0.6)))
    return _tones(rng, turns, 0.35 * 0.75 ** np.arange(10), 2.0) + 0.5 * rolling + rings


_PATTERNS = {  # seconds: a valve's period, when in it the valve opens, for how long
    "00": (1.0, (0.0, 0.5), 0.22),
    "01": (1.0, (0.0, 0.3), 0.14),
    "02": (1.2, (0.0, 0.4, 0.8), 0.20),
    "03": (0.8, (0.0, 0.25), 0.10),
    "04": (1.3, (0.0, 0.2, 0.75), 0.12),
}


def _valve(rng: np.random.Generator, harm: Harm, pat: str) -> np.ndarray:
    """A solenoid's strokes in a rhythm: a sharp click as it opens, air while it is open, a dull click as it closes.

    Missing, late, bounce (a second click): one to six strokes. Leak: air while it is closed.
    """
    period, starts, dwell = _PATTERNS[pat]
    opens = (np.arange(np.ceil(SECONDS / period))[:, None] * period + starts).ravel() + rng.uniform(0.02, 0.2)
    opens += 0.004 * rng.standard_normal(len(opens))
    shuts = opens + dwell + 0.003 * rng.standard_normal(len(opens))
    height = 10 ** (rng.standard_normal((2, len(opens))) / 20)
    some = rng.permutation(np.flatnonzero(shuts < SECONDS))
    some = some[: 1 + int(5 * max(map(harm, ("missing", "late", "bounce"))))]
    height[:, some] *= harm("missing") == 0
    opens[some] += 0.02 * (harm("late") > 0) + 0.06 * harm("late")
    clicks, air = np.zeros((2, T + 2 * RATE)), np.full(T, 0.12 + 1.5 * harm("leak"))
    for o, s, h in zip((RATE * opens).astype(int), (RATE * shuts).astype(int), height.T, strict=True):
        clicks[(0, 1), (o, s)] += h
        air[o:s] += h[0] > 0
    again = (RATE * (opens + rng.uniform(0.02, 0.04, len(opens)))).astype(int)
    clicks[0, again[some]] += 0.4 * (harm("bounce") > 0) + 0.8 * harm("bounce")
    sharp = _ring(rng, clicks[0, :T], ((1400, 9, 1.2), (3100, 6, 1.2), (5600, 4, 1.2)))
    dull = _ring(rng, clicks[1, :T], ((480, 14, 0.8), (1100, 9, 0.8)))
    return sharp + dull + 0.12 * air * _noise(rng, _bell(4500, 0.6))


MACHINES = {
    "bearing": Machine(_bearing, "outer inner dirt dry", "vel_12 vel_16 vel_20", "vel_10 vel_24"),
    "fan": Machine(_fan, "imbalance blade clogging", "spd_1100 spd_1200 spd_1300", "spd_1000 spd_1400"),
    "gearbox": Machine(
        _gearbox,
        "wear tooth eccentric",
        "volt_1.0_wt_0 volt_1.0_wt_50 volt_1.4_wt_0 volt_1.4_wt_50",
        "volt_1.2_wt_25 volt_1.6_wt_75",
    ),
    "valve": Machine(_valve, "missing late bounce leak", "pat_00 pat_01 pat_02", "pat_03 pat_04"),
}


def factory(rng: np.random.Generator) -> np.ndarray:
    """Noise of unit RMS: a hall whose colour varies from clip to clip, and the hum of another machine; (T,)."""
    colour = 1 + rng.uniform(0, 0.8) * _bell(10 ** rng.uniform(2.3, 3.6), 0.4)
    hall = _noise(rng, np.maximum(_FREQ, 60) ** rng.normal(-0.8, 0.05) * colour)
    hum = _tones(rng, _rotation(rng, rng.choice((50, 87, 120, 196))), 0.7 ** np.arange(1, 13), 3.0)
    mix = hall + rng.uniform(0.1, 0.5) * hum
    return mix / np.sqrt(np.mean(mix**2))
