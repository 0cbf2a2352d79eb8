"""Spectra and log-mel spectrograms of 10-s clips at 16 kHz, at the settings of the reports, beside PyTorch and librosa.

    python -m benchmarks.frontends [--short] [--out FILE]

A time is that of a batch of clips already in the device's memory. PyTorch has the same cores, and the same GPU where
there is one; librosa works through the clips in as many threads as there are cores. Below each report's features stand
ours with the transform in each formulation of asdjax/frontends.py: the one of this platform should be the fastest.
The largest difference from librosa is over all values: without mel, that of a bin some 90 dB below the loudest, where
float32 rounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from asdjax import frontends, parallel
from benchmarks import common

SECONDS, RATE = 10, 16000
# The log-mel of each report, or its spectrogram where there is no mel (Morita); the arguments of frontends.log_mel.
SETTINGS = {
    "baseline, Bai": dict(win=1024, hop=512, n_mels=128),
    "Morita": dict(win=2048, hop=512, pad="reflect"),
    "Zeng": dict(win=512, hop=160, n_mels=64, f_min=50.0, f_max=8000.0, pad="reflect", floor=1e-10),
    "Zhang": dict(win=1024, hop=160, n_mels=128, mel="htk", pad="reflect"),
    "Hai": dict(win=1024, hop=256, n_mels=224, f_min=50.0, f_max=7800.0, mel="htk", power=1.0, pad="reflect"),
}


def make_waves(n_clips: int) -> np.ndarray:
    """Two tones in noise, (B, T) float32: machine sound spans some 80 dB."""
    time = np.arange(int(SECONDS * RATE)) / RATE
    tones = 0.5 * np.sin(2 * np.pi * 440 * time) + 0.25 * np.sin(2 * np.pi * 3000 * time)
    noise = np.random.default_rng(0).normal(scale=0.05, size=(n_clips, len(time)))
    return (tones + noise).astype(np.float32)


def cases(setting: dict[str, Any], scale: str, wave: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Ours, PyTorch's and librosa's form of one frontend on the same waves, each returning (B, L, F) when called."""
    import torch

    from benchmarks.peers import frontends as peers

    win, hop, pad = setting["win"], setting["hop"], setting.get("pad", "constant")
    rest = {k: setting[k] for k in ("power", "floor") if k in setting}
    shape = dict(win=win, hop=hop, pad=pad)
    if scale == "log-mel":
        ours = frontends.log_mel(**setting)
        mel = {k: setting[k] for k in ("win", "n_mels", "f_min", "f_max", "mel") if k in setting}
        settings = dict(**shape, **rest, bank=peers.mel_bank(**mel))
    else:
        ours = frontends.spectrogram(**shape, scale="log_power" if scale == "log power" else "power", drop_bin="none")
        settings = dict(**shape, scale="power" if scale == "power" else "dB")
    ours, x = jax.jit(ours), jnp.asarray(wave)

    cuda = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    theirs, tensor = peers.Frontend(**settings).to(device), torch.from_numpy(wave).to(device)

    def run_torch():
        y = theirs(tensor)
        if cuda:
            torch.cuda.synchronize()
        return y

    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    return {
        "ours": lambda: jax.block_until_ready(ours(x)),
        "torch": run_torch,
        "librosa": lambda: list(threads.map(lambda clip: peers.librosa_frontend(clip, **settings), wave)),
    }


BAR = 0.6  # of PyTorch's time, for what a report's network is given


def measure(setting: dict[str, Any], scale: str, wave: np.ndarray, repeats: int) -> dict[str, Any]:
    calls = cases(setting, scale, wave)
    found, expected = np.asarray(calls["ours"]()), np.stack(calls["librosa"]())
    if scale == "power":
        found, expected = (10 * np.log10(np.maximum(x, frontends.EPS)) for x in (found, expected))
    times = common.interleaved(calls, repeats=repeats)
    return {
        **{f"{name} clips/s": len(wave) / common.median(seconds) for name, seconds in times.items()},
        "ratio": common.ratio(times, "ours", "torch"),
        "bar": None if scale == "power" else BAR,
        "ratio to librosa": common.ratio(times, "ours", "librosa"),
        "max difference dB": float(np.abs(found - expected).max()),
    }


def measure_forms(setting: dict[str, Any], wave: np.ndarray, repeats: int) -> dict[str, float]:
    """The same features with the transform in each of its formulations: clips/s by the formulation's name."""
    x = jnp.asarray(wave)
    calls = {}
    for form in frontends._FORMS.values():
        make = frontends.log_mel if "n_mels" in setting else frontends.spectrogram
        frontend = jax.jit(make(**setting))
        with mock.patch.dict(frontends._FORMS, {platform: form for platform in frontends._FORMS}):
            frontend(x)  # traced, hence the form is fixed
        calls[form.__name__.strip("_")] = lambda frontend=frontend: jax.block_until_ready(frontend(x))
    times = common.interleaved(calls, repeats=repeats)
    return {name: len(wave) / common.median(seconds) for name, seconds in times.items()}


def main() -> None:
    args = common.parser(__doc__).parse_args()
    common.restart_tuned()
    parallel.tune_malloc()  # as asdjax.main does; it is the process's, hence PyTorch's as well
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n_clips, repeats = (16, 5) if args.short else (32, 15)
    wave = make_waves(n_clips)
    rows = []
    for name, setting in SETTINGS.items():
        shape = dict(zip(("win", "hop", "mels"), (setting["win"], setting["hop"], setting.get("n_mels")), strict=True))
        for scale in ("power", "log-mel" if "n_mels" in setting else "log power"):
            rows.append({"setting": name, **shape, "features": scale, **measure(setting, scale, wave, repeats)})
        for form, speed in measure_forms(setting, wave, max(3, repeats // 3)).items():
            rows.append({"setting": name, **shape, "features": f"{scale} by {form}", "ours clips/s": speed})
    common.report("frontends", rows, {"clips": n_clips, "seconds a clip": SECONDS, "rounds": repeats}, out=args.out)


if __name__ == "__main__":
    main()
