"""Wavs on disk -> results: a run of configs/mfn.py against the same work as an ordinary PyTorch program.

    python -m benchmarks.end_to_end [--short] [--out FILE] [--steps N] [--rounds N]

Every form is a process of its own, started in turn, round after round, on the embedded data set, which is made before:

    ours, cold                decodes the wavs and compiles all its programs
    ours, warm                decodes the wavs, finds the compiled programs of an earlier run
    torch                     peers/pipeline.py as PyTorch comes, two workers reading wavs
    torch, tuned              channels-last maps, wavs decoded once, allocator and OpenMP set for the machine

Bar: `ours, cold` takes at most 0.7 of the wall time of `torch`. Columns: seconds of wall and of CPU time (all threads
and child processes), medians over rounds; ratio and cpu ratio: of `ours, cold` to the form, medians of the rounds'
ratios; then, of the last round, seconds by phase (start-up: to the first step, with compiling) and the official scores
of 2023.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from asdjax.data import synth
from benchmarks import common

ROOT = Path(__file__).parents[1]
BAR = 0.7
OURS, PEER = "ours, cold", "torch"
FORMS = {
    OURS: {},
    PEER: dict(workers=2),
    "torch, tuned": dict(workers=0, tuned=True),
    "ours, warm": {},
}


def ours(folder: Path, root: Path, steps: int, cache: Path) -> dict:
    """One run of asdjax in a new folder, with the compiled programs that are in `cache`, but no decoded recordings."""
    shutil.rmtree(cache / "banks", ignore_errors=True)
    environ = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"ASDJAX_CACHE": str(cache)}
    flags = [f"--config.data.root={root}", f"--config.train.steps={steps}", f"--workdir={folder}"]
    took = timed([sys.executable, "-m", "asdjax.main", "--config=configs/mfn.py", *flags], environ)
    with open(folder / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "official score" and row["machine"] == "all"]
    return {**took, **phases(folder), **{row["scorer"]: float(row["value"]) for row in rows}}


def peer(folder: Path, root: Path, steps: int, *, workers: int, tuned: bool = False) -> dict:
    """One run of the PyTorch program in a new folder."""
    environ = {**os.environ, **common.tuned_environment()} if tuned else os.environ
    flags = [f"--steps={steps}", f"--workers={workers}", *["--tuned"] * tuned]
    took = timed([sys.executable, "-m", "benchmarks.peers.pipeline", str(root), str(folder), *flags], environ)
    return {**took, **phases(folder), **json.loads((folder / "results.json").read_text())}


def timed(command: list[str], environ: Mapping[str, str]) -> dict[str, float]:
    """Runs a program to its end; wall seconds, and CPU seconds of it and its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}")
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def phases(run: Path) -> dict[str, float]:
    """Seconds by phase as the program wrote them; the report is a part of scoring."""
    seconds = json.loads((run / "timing.json").read_text())["seconds"]
    seconds["score"] += seconds.get("report", 0)
    return {f"{name} s": seconds[name] for name in ("start-up", "train", "embed", "score")}


def main() -> None:
    flags = common.parser(__doc__)
    flags.add_argument("--steps", type=int, help="training steps; default 320, short 24: compiling then weighs more")
    flags.add_argument("--rounds", type=int, help="default 3, short 1")
    args = flags.parse_args()
    steps, rounds = args.steps or (24 if args.short else 320), args.rounds or (1 if args.short else 3)
    root = synth.embedded()
    found = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory(prefix="asdjax-end-to-end-") as temporary:
        for number in range(rounds):
            for form, how in FORMS.items():
                print(f"round {number + 1} of {rounds}: {form}, {steps} steps ... ", end="", flush=True)
                folder, cache = Path(temporary, f"{number} {form}"), Path(temporary, f"{number} cache")
                # `ours, warm` comes after `ours, cold` of its round, and finds what that compiled
                run = peer(folder, root, steps, **how) if how else ours(folder, root, steps, cache)
                found[form].append(run)
                print(f"{run['wall']:.1f} s", flush=True)
    times = {kind: {form: [run[kind] for run in runs] for form, runs in found.items()} for kind in ("wall", "cpu")}
    rows = []
    for form, runs in found.items():
        rest = {k: v for k, v in runs[-1].items() if k not in times}
        rows.append(
            {
                "form": form,
                "wall s": common.median(times["wall"][form]),
                "cpu s": common.median(times["cpu"][form]),
                "ratio": common.ratio(times["wall"], OURS, form),
                "bar": BAR if form == PEER else None,
                "cpu ratio": common.ratio(times["cpu"], OURS, form),
                **rest,
            }
        )
    weight = {"note": "few steps: starting and compiling weigh more than in a real run"} if args.short else {}
    # Only now: describing the machine takes hold of a GPU's memory, which the runs needed.
    common.report("end_to_end", rows, {"steps": steps, "rounds": rounds, **weight}, out=args.out)


if __name__ == "__main__":
    main()
