"""All benchmarks one after another, each in a process of its own, and one table of how they stand against their bars.

    python -m benchmarks [--full] [--out FOLDER]

The short form takes some twenty minutes on two cores, the full one hours. FOLDER (benchmarks/results) gets
NAME.json of each benchmark and summary.json. A row of a benchmark that has a `bar` meets it where its `ratio`, our time
over the peer's, is at most the bar. Exit code 1: a benchmark failed; a bar that is missed is no failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMES = ("frontends", "train_step", "mixing", "autoencoder", "scoring", "end_to_end")


def summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line for a benchmark: how many of its bars are met, and the row that comes out worst against its bar."""
    barred = [row for row in rows if row.get("bar") is not None and row.get("ratio") is not None]
    if not barred:
        return {"benchmark": name, "met": "has no bar"}
    worst = max(barred, key=lambda row: row["ratio"] / row["bar"])
    met = sum(row["ratio"] <= row["bar"] for row in barred)
    what = " ".join(value for value in worst.values() if isinstance(value, str))
    found = {"met": f"{met} of {len(barred)}", "worst row": what, "bar": worst["bar"], "ratio": worst["ratio"]}
    return {"benchmark": name, **found}


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = flags.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="the default")
    form.add_argument("--full", action="store_true")
    flags.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON files")
    args = flags.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("error: the benchmarks compare with PyTorch, which is missing: pip install -e '.[bench]'")
    lines = []
    for number, name in enumerate(NAMES, 1):
        print(f"=== {number} of {len(NAMES)}: {name}", flush=True)
        file, began = args.out.absolute() / f"{name}.json", time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(file), *["--short"] * (not args.full)]
        code = subprocess.run(command, cwd=ROOT).returncode
        failed = {"benchmark": name, "met": f"FAILED, exit code {code}"}
        line = failed if code else summary(name, json.loads(file.read_text())["rows"])
        lines.append({**line, "minutes": (time.perf_counter() - began) / 60})
    from benchmarks import common  # last: it may take hold of a GPU, which the benchmarks needed

    common.report("summary", lines, {"form": "full" if args.full else "short"}, out=str(args.out / "summary.json"))
    return int(any(line["met"].startswith("FAILED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
