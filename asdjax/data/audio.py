"""Recordings on disk -> one int16 memory map per data set: decoded once, verified and reused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from rich import progress
from rich.console import Console

from asdjax.core import Clips, InputError, UsageError, cache_folder

FORMAT = 1  # of the files in the cache; part of the fingerprint, so another format is never read as this one
BLOCK = 256  # clips decoded ahead of the writer: a slow disk must not fill the memory


class Bank(NamedTuple):
    """The clips of a data set as one array; row i is clip i.

    Attributes:
        wave: (N, T) int16, a read-only memory map.
        scale: (N,) float32; wave * scale is the waveform as recorded, in [-1, 1]. 1/32768 where the file holds 16 bits
            or fewer, else peak/32767, so that quiet recordings of a finer resolution keep it.
        rms: (N,) float64, root mean square as recorded, of the samples kept, before tiling or padding.
        seconds: (N,) float64, length as recorded, before cutting, tiling or padding.
        sample_rate: Hz.
    """

    wave: np.ndarray
    scale: np.ndarray
    rms: np.ndarray
    seconds: np.ndarray
    sample_rate: int


def bank(
    clips: Clips,
    *,
    sample_rate: int = 16000,
    seconds: float | None = None,
    length: str = "tile",
    channel: int = 0,
    resample: bool = False,
    cache: str | Path | None = None,
) -> Bank:
    """The waveforms of N clips as one array, from the cache where it holds them.

    Args:
        clips: N clips.
        sample_rate: Hz, of every file or, with `resample`, after conversion (librosa.resample).
        seconds: length of a row; None: of the longest clip ('crop': of the shortest). Longer clips lose their end.
        length: what becomes of clips shorter than a row: 'tile' repeats them, 'pad' appends zeros, 'crop' allows none.
        channel: of a file with several; 0 is the near microphone of DCASE 2026.
        resample: whether files of another sample rate are converted or refused.
        cache: folder of the decoded banks; None: $ASDJAX_CACHE, else $XDG_CACHE_HOME/asdjax, else ~/.cache/asdjax.

    Raises:
        UsageError: an argument out of its range.
        InputError: a file that does not fit (missing, unreadable, empty, not finite, sample rate, channel, too short);
            a cache folder that is full or not writable.
    """
    n = None if seconds is None else round(seconds * sample_rate)
    if length not in ("tile", "pad", "crop"):
        raise UsageError(f"length: {length!r}, expected 'tile', 'pad' or 'crop'")
    if channel < 0 or sample_rate < 1 or (n is not None and n < 1):
        raise UsageError(f"channel {channel}, sample_rate {sample_rate}, seconds {seconds}: expected >= 0, > 0 and > 0")
    if not len(clips):
        raise InputError("no clips to decode, expected at least one")
    paths, settings = [os.path.abspath(p) for p in clips.path], (sample_rate, n, length, channel, resample)
    name = fingerprint(paths, settings)
    path = Path(cache or cache_folder()).expanduser() / "banks" / f"{name}.npy"
    if os.path.exists(path):
        try:
            return load(path)
        except Exception as error:  # whatever is wrong with it, the recordings are still there
            logging.warning("%s is not trusted (%s): decoding the clips again", path, error)
    save(path, paths, *settings)
    if fingerprint(paths, settings) != name:
        raise InputError(f"{os.path.commonpath(paths)}: files changed while they were read; start again")
    return load(path)


def gain(bank: Bank, level: str, *, rms: float = 0.1) -> np.ndarray:
    """The factors (N,) float32 that turn rows of the bank into what the network hears; floats, so nothing clips.

    Args:
        bank: N clips.
        level: 'as_recorded', or 'rms': every clip gets the same root mean square (silent ones keep their scale).
        rms: that root mean square, where 1 is full scale.

    Raises:
        UsageError: unknown level.
    """
    if level not in ("as_recorded", "rms"):
        raise UsageError(f"level: {level!r}, expected 'as_recorded' or 'rms'")
    change = np.divide(rms, bank.rms, out=np.ones_like(bank.rms), where=(bank.rms > 0) & (level == "rms"))
    return (bank.scale * change).astype(np.float32)


def loudness(bank: Bank, level: str) -> np.ndarray:
    """The level (N,) float64 of each clip as the network hears it (`gain`), in dB of full scale, at least -120.

    Rounded to 0.0001 dB, so that clips brought to one level are exactly tied (0.01 dB would move AUCs by 0.002).
    """
    rms = bank.rms * gain(bank, level) / bank.scale
    return np.round(20 * np.log10(np.maximum(rms, 1e-6)), 4)


def fingerprint(paths: list[str], settings: tuple) -> str:
    """A name for the bank of these files under these settings: another one as soon as a file was written to."""
    digest = hashlib.blake2b(json.dumps([FORMAT, settings]).encode(), digest_size=16)
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}, expected an audio file") from error
        digest.update(json.dumps([path, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def load(path: Path) -> Bank:
    """Opens a bank once all of it (0.4 s per GB) agrees with the checksums taken when it was decoded, else raises."""
    about, check = json.loads(path.with_suffix(".json").read_text())
    if zlib.crc32(json.dumps(about).encode()) != check or about["fingerprint"] != path.stem:
        raise ValueError("its sidecar is damaged or of another bank")
    if (size := path.stat().st_size) != about["bytes"]:
        raise ValueError(f"{size} bytes, expected {about['bytes']}")
    wave = np.load(path, mmap_mode="r", allow_pickle=False)
    if wave.dtype != np.dtype("<i2") or list(wave.shape) != about["shape"]:
        raise ValueError(f"{wave.dtype} {wave.shape}, expected int16 {about['shape']}")
    with ThreadPoolExecutor() as pool:
        if list(pool.map(zlib.crc32, wave)) != about["crc"]:
            raise ValueError("its content changed")
    rms, seconds = np.array(about["rms"]), np.array(about["seconds"])
    return Bank(wave, np.array(about["scale"], np.float32), rms, seconds, about["sample_rate"])


def save(path: Path, paths: list[str], rate: int, n: int | None, length: str, channel: int, resample: bool) -> None:
    """Decodes files into the bank `path`; it and its sidecar appear whole or not at all, the bank last."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    sidecar = temporary.with_suffix(".json.tmp")
    with ThreadPoolExecutor() as pool:
        headers = pool.map(partial(header, rate=rate, channel=channel, resample=resample), paths)
        frames, seconds = zip(*headers, strict=True)
        n = n or (min if length == "crop" else max)(frames)
        if length == "crop" and min(frames) < n:
            raise InputError(f"{paths[np.argmin(frames)]}: {min(frames)} samples, expected at least {n} to crop")
        blocks = (slice(i, i + BLOCK) for i in range(0, len(paths), BLOCK))
        decode = partial(row, n=n, length=length, rate=rate, channel=channel)
        rows = (r for block in blocks for r in pool.map(decode, paths[block], frames[block]))
        try:
            make_room(path.parent, 2 * n * len(paths))
            about = write(temporary, rows, (len(paths), n), os.path.commonpath(paths))
            about |= {"fingerprint": path.stem, "sample_rate": rate, "seconds": seconds}
            sidecar.write_text(json.dumps([about, zlib.crc32(json.dumps(about).encode())]))
            os.replace(sidecar, path.with_suffix(".json"))
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written to ({error}); set $ASDJAX_CACHE") from error
        finally:
            for left in (temporary, sidecar):
                with contextlib.suppress(OSError):
                    left.unlink()


def make_room(folder: Path, size: int) -> None:
    """Makes the folder, clears what a killed writer left there a day or more ago, and sees that `size` bytes fit."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may clear the same
            if time.time() - left.stat().st_mtime > 86400:
                left.unlink()
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB free, expected {size / 1e9:.1f} GB for the decoded clips; "
            "set $ASDJAX_CACHE to a folder on a larger disk, or data.seconds to cut the clips"
        )


def write(path: Path, rows: Iterable[tuple], shape: tuple[int, int], source: str) -> dict:
    """Streams rows into a .npy file, with a progress bar on a terminal; returns what else the rows hold, by name."""
    terminal, start, columns = sys.stderr.isatty(), time.monotonic(), []
    tell = logging.debug if terminal else logging.info
    tell("decoding %d clips of %s", shape[0], source)
    with open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": shape})
        bar = {"console": Console(stderr=True), "transient": True, "disable": not terminal}
        for wave, *rest in progress.track(rows, "decoding", shape[0], **bar):
            file.write(wave)
            columns.append(rest)
    tell("decoded %d clips in %.1f s", shape[0], time.monotonic() - start)
    scale, rms, crc = zip(*columns, strict=True)
    return {"bytes": path.stat().st_size, "shape": shape, "scale": scale, "rms": rms, "crc": crc}


def header(path: str, *, rate: int, channel: int, resample: bool) -> tuple[int, float]:
    """A file's number of samples at the wanted rate, and its seconds, from its header alone."""
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: cannot be read as audio: {error.error_string}") from error
    if info.frames < 1:
        raise InputError(f"{path}: no samples, expected a recording")
    if info.channels <= channel:
        raise InputError(f"{path}: {info.channels} channel(s), expected one numbered {channel}, counting from 0")
    if info.samplerate != rate and not resample:
        raise InputError(f"{path}: sample rate {info.samplerate} Hz, expected {rate} Hz; data.resample=True converts")
    return math.ceil(info.frames * (rate / info.samplerate)), info.frames / info.samplerate


def row(path: str, frames: int, *, n: int, length: str, rate: int, channel: int) -> tuple:
    """One file, decoded: wave (n,) int16, its scale, the root mean square of the samples kept, a checksum of wave."""
    try:
        with soundfile.SoundFile(path) as file:
            # int16 reads 4 times as fast as float; the samples of these subtypes fit in it
            exact = file.subtype in ("PCM_16", "PCM_U8", "PCM_S8") and file.samplerate == rate
            x, recorded = file.read(dtype="int16" if exact else "float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: cannot be read as audio: {error.error_string}") from error
    x = x[:, channel]
    if not exact and not np.isfinite(x).all():
        raise InputError(f"{path}: NaN or infinite samples, expected finite ones")
    if recorded != rate:
        import librosa

        x = librosa.resample(x, orig_sr=recorded, target_sr=rate)
    if len(x) != frames:
        raise InputError(f"{path}: {len(x)} samples, expected {frames} as its header says")
    x, scale = x[:n], np.float32(1 / 32768)
    rms = math.sqrt(np.square(x, dtype=np.float64).mean())
    if exact:
        rms /= 32768
    elif (peak := np.abs(x).max()) > 1e-30:  # below that the scale would leave float32
        scale = np.float32(peak / 32767)
        x = np.rint(x / scale)
    else:
        x, rms = np.zeros_like(x), 0.0
    wave = np.pad(x, (0, n - len(x))) if length == "pad" else np.resize(x, n)
    wave = np.ascontiguousarray(wave, "<i2")
    return wave, float(scale), rms, zlib.crc32(wave)
