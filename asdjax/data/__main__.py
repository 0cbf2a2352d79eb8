"""`python -m asdjax.data ROOT`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from rich import progress, table, text
from rich.console import Console

from asdjax import commandline
from asdjax.core import Clips, InputError, UsageError
from asdjax.data import dcase
from asdjax.data.names import YEARS

STEP = 2**-15  # of 16 bits
CLIPPED = 1e-3  # of a clip's samples


class Facts(NamedTuple):
    """What a file holds, and what is wrong with it; `seconds` is None where it cannot be read."""

    seconds: float | None
    rate: int
    channels: int
    digest: bytes
    problems: list[str]


def facts(path: str) -> Facts:
    """Reads a recording, whatever the file may hold."""
    try:
        content = Path(path).read_bytes()
        x, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # libsndfile's own is a RuntimeError
        return Facts(None, 0, 0, b"", [f"unreadable: {getattr(error, 'error_string', error)}"])
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Facts(len(x) / rate, rate, x.shape[1], digest, wave_problems(x))


def wave_problems(x: np.ndarray) -> list[str]:
    """What is wrong with the samples (T, C) of a recording."""
    if not len(x):
        return ["empty: no samples"]
    if bad := np.count_nonzero(~np.isfinite(x)):
        return [f"NaN or infinite: {bad} samples"]
    problems = []
    if (silent := np.ptp(x, axis=0) <= STEP).any():
        problems.append("silent" if silent.all() else f"silent: channel {np.argmax(silent)}")
    if (share := clipped_share(x)) >= CLIPPED:
        problems.append(f"clipped: {100 * share:.1f} % of the samples in runs at full scale")
    return problems


def clipped_share(x: np.ndarray) -> float:
    """The share of samples (T, C) at full scale beside another one there, in the worst channel; one alone is no run."""
    share = np.zeros(x.shape[1])
    for full in (x >= 1 - STEP, x <= STEP - 1):
        beside = np.pad(full, ((1, 1), (0, 0)))
        share += (full & (beside[:-2] | beside[2:])).mean(0)
    return float(share.max())


def guess(root: str) -> tuple[str, str]:
    """The newest year whose file names and machines are those found (else whose names are, else 'plain'), and why."""
    names, machines, folders = [], set(), set()
    for path in Path(root).expanduser().rglob("*"):
        if path.suffix.lower() == ".wav" and not path.name.startswith("."):
            names.append(path.stem)
            folders.add(path.parent.name)
            machines.add(path.parent.parent.name)
    years = []
    for year, rules in YEARS.items():
        forms = (rules.labelled.regex, rules.hidden.regex)
        fit = sum(any(re.fullmatch(form, name) for form in forms) for name in names)
        odd = folders & {"source_test", "target_test"} - set(rules.test_folders)
        if year != "plain" and 2 * fit > len(names) and not odd:  # most: a stray name is to be reported, not obeyed
            years.append(year)
    best = [y for y in years if machines <= {*YEARS[y].dev, *YEARS[y].additional}]
    if best:
        others = f" ({', '.join(map(str, best[:-1]))} would fit as well)" if best[:-1] else ""
        return str(best[-1]), f"guessed: the newest with such file names and machines{others}"
    if years:
        return str(years[-1]), "guessed: the newest with such file names; no year has all these machines"
    return "plain", "guessed: no year has such file names"


def summary(clips: Clips, found: list[Facts]) -> table.Table:
    """One row for each machine, section, split and domain."""
    out = table.Table(*("machine", "section", "split", "domain", "clips", "anomalies", "seconds", "rate", "channels"))
    keys = list(zip(clips.machine, clips.section, clips.split, clips.domain, strict=True))
    for key in sorted(set(keys)):
        own = [i for i, k in enumerate(keys) if k == key]
        labels, read = clips.is_anomaly[own], [found[i] for i in own if found[i].seconds is not None]
        seconds = sorted({f"{pick(f.seconds for f in read):.1f}" for pick in (min, max)}, key=float) if read else "?"
        columns = ("-".join(seconds), *(", ".join(map(str, sorted({f[i] for f in read}))) or "?" for i in (1, 2)))
        cells = (*key, str(len(own)), "?" if (labels < 0).any() else str(labels.sum()), *columns)
        out.add_row(*map(text.Text, cells))
    return out


def problems(clips: Clips, found: list[Facts], root: Path) -> Iterator[str]:
    """One line for each thing that is wrong, with the file it is wrong with."""

    def shown(path: str) -> str:
        return commandline.printable(str(Path(path).relative_to(root)))

    rates, channels = (Counter(f[i] for f in found if f.seconds is not None) for i in (1, 2))
    first = {}
    for path, f in zip(clips.path, found, strict=True):
        for problem in f.problems:
            yield f"{shown(path)}: {problem}"
        if f.seconds is None:
            continue
        if f.rate != (usual := rates.most_common(1)[0][0]):
            yield f"{shown(path)}: sample rate {f.rate} Hz, {usual} in most files"
        if f.channels != (usual := channels.most_common(1)[0][0]):
            yield f"{shown(path)}: channels: {f.channels}, {usual} in most files"
        if (same := first.setdefault(f.digest, path)) != path:
            yield f"{shown(path)}: byte-identical to {shown(same)}"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 clean, 1 something is wrong with the data, 2 bad usage."""
    years = ", ".join(map(str, YEARS))
    parser = argparse.ArgumentParser(prog="python -m asdjax.data", description=__doc__)
    parser.add_argument("root", help="a folder of machines, or one with dev_data/ and eval_data/")
    parser.add_argument("--year", help=f"{years}; default: guessed from the file names")
    parser.add_argument("--train_on", default="dev,additional", help="default: %(default)s")
    parser.add_argument("--test_on", default="dev", help="dev (default) or eval")
    parser.add_argument("--ground_truth", help="the official labels of evaluation clips: a folder or a csv")
    args = parser.parse_args(argv)
    try:
        year, why = (args.year, "as told") if args.year else guess(args.root)
        train_on = tuple(args.train_on.split(","))
        clips = dcase.index(args.root, year, train_on=train_on, test_on=args.test_on, ground_truth=args.ground_truth)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(f"year: {year}, {why}")
    bar = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    with ThreadPoolExecutor() as pool:
        try:
            found = list(progress.track(pool.map(facts, clips.path.tolist()), "reading", len(clips), **bar))
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the rest of the files
    Console(width=None if sys.stdout.isatty() else 120).print(summary(clips, found))
    lines = list(problems(clips, found, Path(args.root).expanduser()))
    print(*lines, f"{len(clips)} clips, problems: {len(lines) or 'none'}", sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
