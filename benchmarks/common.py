"""Shared by the benchmarks: timing in turn, the machine's description, tables and JSON.

Times on shared machines drift by tens of per cent, so ours and a peer are called in turn, round after round, and
compared within each round: the median of the rounds' ratios is steady where the ratio of two medians is not.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from asdjax.rundir import write_json

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("asdjax", "jax", "jaxlib", "flax", "numpy", "torch", "scikit-learn", "librosa")

# Dense peaks in TFLOP/s as the makers state them: float32, TF32, bfloat16. JAX multiplies float32 in TF32 on NVIDIA
# GPUs and in bfloat16 on TPUs unless told otherwise. The first pattern found in the device kind counts.
PEAKS = (
    (r"\bH200 NVL\b", 60.0, 417.5, 835.5),
    (r"\bH200\b", 67.0, 494.5, 989.5),
    (r"\bH100 PCIe\b", 51.0, 378.0, 756.5),
    (r"\bH100\b", 67.0, 494.5, 989.5),
    (r"\bA100\b", 19.5, 156.0, 312.0),
    (r"\bL4\b", 30.3, 60.0, 121.0),
    (r"\bT4\b", 8.1, None, None),
    (r"\bTPU v4$", None, None, 275.0),
    (r"\bTPU v5 ?(lite|e)\b", None, None, 197.0),
    (r"\bTPU v5p?$", None, None, 459.0),
    (r"\bTPU v6 ?(lite|e)\b", None, None, 918.0),
)


# --- timing --------------------------------------------------------------------------------------------------------


def interleaved(
    cases: Mapping[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 1, seconds: float | None = None
) -> dict[str, list[float]]:
    """Wall time of every call, the cases called in turn round after round.

    Args:
        cases: functions that return when their work is done (`block_until_ready`, `cuda.synchronize` are theirs).
        repeats: rounds.
        warmup: rounds before them that are not counted (compilation, caches).
        seconds: no counted round after the first begins later than this.

    Returns:
        seconds of each call by case; the i-th of each belong to one round.
    """
    for _ in range(warmup):
        for call in cases.values():
            call()
    times = {name: [] for name in cases}
    began = time.perf_counter()
    for i in range(repeats):
        if i and seconds is not None and time.perf_counter() - began > seconds:
            break
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def ratio(times: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """Median over rounds of ours / peer: below 1, ours is faster."""
    return statistics.median(a / b for a, b in zip(times[ours], times[peer], strict=True))


# --- the process ---------------------------------------------------------------------------------------------------


def tuned_environment() -> dict[str, str]:
    """The variables with which PyTorch is at its best on a shared CPU: pages kept, idle threads asleep."""
    return {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "OMP_WAIT_POLICY": "PASSIVE"}


def restart_tuned() -> None:
    """Starts the process anew where a variable of `tuned_environment` is unset, since glibc reads them at its start.

    Call it first, before there are devices or threads. Variables already set are left as they are.
    """
    environ = {**tuned_environment(), **os.environ}
    if environ.keys() != os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def peak_rss() -> int:
    """Highest resident memory of this process so far, in bytes (Linux)."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark has; `description` is the module's docstring."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--short", action="store_true", help="end within a minute or two")
    flags.add_argument("--out", help="JSON file; default benchmarks/results/NAME-HARDWARE.json")
    return flags


# --- the machine ---------------------------------------------------------------------------------------------------


def peak_flops(device: jax.Device, precision: str = "float32") -> float | None:
    """Highest FLOP/s of matrix products on one device; None where it is not known.

    Args:
        device: of jax.devices().
        precision: 'float32', 'tf32' or 'bfloat16': what the products are computed in. On a CPU, float32 is measured:
            the best of some products of 2048 x 2048.
    """
    column = ("float32", "tf32", "bfloat16").index(precision)
    if device.platform != "cpu":
        found = [peaks[column] for pattern, *peaks in PEAKS if re.search(pattern, device.device_kind)]
        return found[0] * 1e12 if found and found[0] else None
    if precision != "float32":
        return None
    x = jax.device_put(jnp.ones((2048, 2048)), device)
    product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    return 2 * 2048**3 / min(interleaved({"": lambda: product(x).block_until_ready()}, repeats=10)[""])


def _cpu_model() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    cores = len(os.sched_getaffinity(0))
    accelerators = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    cpu = f"{_cpu_model()}, {cores} cores"
    several = f"{len(accelerators)} x " if len(accelerators) > 1 else ""
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    torch = sys.modules.get("torch")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": several + accelerators[0] if accelerators else cpu,
        "cpu": cpu,
        "cores": cores,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
        "torch_threads": torch.get_num_threads() if torch else None,
        "variables": {
            k: v for k, v in sorted(os.environ.items()) if re.match("MALLOC_|ASDJAX_MALLOC|OMP_|MKL_|XLA_|JAX_PLAT", k)
        },
    }


# --- the report ----------------------------------------------------------------------------------------------------


def report(name: str, rows: list[dict[str, Any]], settings: dict[str, Any], *, out: str | None = None) -> Path:
    """Prints the rows as a table and writes {name, environment, settings, rows} as JSON, whole or not at all.

    Args:
        name: of the benchmark.
        rows: cells by column name; a row may lack columns. None is shown as '-'.
        settings: what was measured: sizes, rounds.
        out: file; default benchmarks/results/NAME-HARDWARE.json.

    Returns:
        the file written.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    machine = environment()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        number = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    # A terminal's width is kept; a log has none, and a table folded to 80 columns cannot be read.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    console.print(f"{name} on {machine['hardware']}, {machine['memory'] / 2**30:.0f} GiB", soft_wrap=True)
    console.print(", ".join(f"{key} {value}" for key, value in settings.items()), soft_wrap=True)
    console.print(table)

    slug = re.sub(r"[^a-z0-9]+", "-", machine["hardware"].lower()).strip("-")
    path = Path(out) if out else RESULTS / f"{name}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"name": name, "environment": machine, "settings": settings, "rows": rows})
    console.print(f"written to {path}", soft_wrap=True)
    return path


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)
