"""Fitting and scoring of the detectors against scikit-learn: k nearest neighbours, LOF and Mahalanobis distance.

    python -m benchmarks.scoring [--short] [--out FILE] [--sizes N ...]

1,000 embeddings of 128 dimensions are scored against N normal ones. `clustered` ones lie about 64 centres, as those of
a trained network do; `gaussian` ones have no structure. Times are medians of calls in turn, in milliseconds, without
the first of ours, which compiles (`first ms`: of the scoring); `ratio` is ours over the peer's scoring, `fit ratio` the
fitting. max diff is that of the scores, mean the peer's mean score. On an accelerator ours runs there, from embeddings
in the host's memory, and scikit-learn on the CPU.

MiB is the highest memory of a fresh process that holds the N embeddings, fits and scores: all of it, with what its
imports take (the peer's imports JAX too), which is printed above the table. With an accelerator, that of the host.

Bars for a million embeddings: nearest neighbours in at most 0.5 (cosine) and 1.0 (Euclidean) of scikit-learn's brute
force on the same cores, in less than 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes that measure memory need some too
    if "--memory" not in sys.argv:  # they are as a user's are
        common.restart_tuned()

import jax
import numpy as np

from asdjax import detectors, parallel
from asdjax.core import Detector

ROOT = Path(__file__).parents[1]
DIMENSIONS, QUERIES, CENTRES, SPREAD = 128, 1000, 64, 0.3
SIDES = ("ours", "peer")
SIZES = (1_000, 10_000, 100_000, 1_000_000)


class Case(NamedTuple):
    """A detector and the peer's two calls: fit: x (N, D) -> model, score: (model, x (M, D)) -> (M,)."""

    ours: Detector
    fit: Callable[[np.ndarray], Any]
    score: Callable[[Any, np.ndarray], np.ndarray]
    largest: int
    bar: float | None = None


def knn(k: int, metric: str, bar: float) -> Case:
    def fit(x):
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(x)

    return Case(detectors.knn(k=k, metric=metric), fit, lambda model, x: model.kneighbors(x)[0].mean(1), 10**6, bar)


def lof() -> Case:
    def fit(x):
        from sklearn.neighbors import LocalOutlierFactor

        return LocalOutlierFactor(n_neighbors=4, novelty=True).fit(x)

    return Case(detectors.lof(n_neighbors=4), fit, lambda model, x: -model.score_samples(x), 10**5)


def mahalanobis() -> Case:
    def fit(x):
        from sklearn.covariance import EmpiricalCovariance

        return EmpiricalCovariance().fit(x)

    ours = detectors.mahalanobis(covariance="global_ddof0", ridge=0.0, by_domain=False)
    return Case(ours, fit, lambda model, x: np.sqrt(model.mahalanobis(x)), 10**6)


CASES = {
    "kNN cosine k=1": knn(1, "cosine", 0.5),
    "kNN cosine k=4": knn(4, "cosine", 0.5),
    "kNN Euclidean k=1": knn(1, "euclidean", 1.0),
    "kNN Euclidean k=4": knn(4, "euclidean", 1.0),
    "LOF k=4": lof(),
    "Mahalanobis": mahalanobis(),
}


def embeddings(kind: str, n: int, seed: int) -> np.ndarray:
    """(n, DIMENSIONS) float32; made in blocks, so that making them does not take more memory than scoring."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, DIMENSIONS), dtype=np.float32)
    if kind == "clustered":
        centres = np.random.default_rng(0).standard_normal((CENTRES, DIMENSIONS), dtype=np.float32)
        for block in np.array_split(x, -(-n // 10_000)):
            block *= SPREAD
            block += centres[rng.integers(CENTRES, size=len(block))]
    return x


def ours_fit(case: Case, x: np.ndarray) -> dict:
    return jax.block_until_ready(case.ours.fit(dict(embedding=x[:, None]), np.zeros(len(x), bool)))


def ours_score(case: Case, state: dict, x: np.ndarray) -> np.ndarray:
    return np.asarray(case.ours.score(state, dict(embedding=x[:, None])))


def row(name: str, kind: str, n: int, repeats: int, seconds: float, memory_of: tuple[str, ...] = ()) -> dict[str, Any]:
    """Times and differences of one case, and the memory of 'ours' and 'peer' if asked for."""
    case, x, queries = CASES[name], embeddings(kind, n, seed=n), embeddings(kind, QUERIES, seed=1)
    models, scores = {}, {}
    fits = {
        "ours": lambda: models.update(ours=ours_fit(case, x)),
        "peer": lambda: models.update(peer=case.fit(x)),
    }
    calls = {
        "ours": lambda: scores.update(ours=ours_score(case, models["ours"], queries)),
        "peer": lambda: scores.update(peer=case.score(models["peer"], queries)),
    }
    fits["ours"]()
    began = time.perf_counter()
    calls["ours"]()
    first = time.perf_counter() - began
    fit = common.interleaved(fits, repeats=repeats, warmup=0, seconds=seconds)
    score = common.interleaved(calls, repeats=repeats, warmup=0, seconds=seconds)
    found = {
        "detector": name,
        "data": kind,
        "references": n,
        "fit ms": 1e3 * common.median(fit["ours"]),
        "peer fit ms": 1e3 * common.median(fit["peer"]),
        "fit ratio": common.ratio(fit, "ours", "peer"),
        "first ms": 1e3 * first,
        "score ms": 1e3 * common.median(score["ours"]),
        "peer score ms": 1e3 * common.median(score["peer"]),
        "ratio": common.ratio(score, "ours", "peer"),
        "bar": case.bar if n == max(SIZES) else None,
        "rounds": len(score["ours"]),
        "max diff": float(np.abs(scores["ours"] - scores["peer"]).max()),
        "mean": float(scores["peer"].mean()),
    }
    return found | {f"{side} MiB": memory(side, name, kind, n)["peak"] for side in memory_of}


def memory(side: str, name: str, kind: str, n: int) -> dict[str, float]:
    """MiB after the imports, and at most, of a fresh process that fits and scores."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--memory", side, name, kind, str(n)]
    environ = {k: v for k, v in os.environ.items() if k not in common.tuned_environment()}
    done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def use_memory(side: str, name: str, kind: str, n: int) -> None:
    """What `memory` starts: fits and scores once, prints what it took."""
    if side == "peer":
        import sklearn.covariance
        import sklearn.neighbors  # noqa: F401
    else:
        parallel.tune_malloc()  # as asdjax.main does
    imports = common.peak_rss()
    case, x, queries = CASES[name], embeddings(kind, n, seed=n), embeddings(kind, QUERIES, seed=1)
    if side == "peer":
        case.score(case.fit(x), queries)
    else:
        ours_score(case, ours_fit(case, x), queries)
    print(json.dumps({"imports": imports / 2**20, "peak": common.peak_rss() / 2**20}))


def main() -> None:
    flags = common.parser(__doc__)
    flags.add_argument("--sizes", type=int, nargs="+", help="numbers of embeddings; default 1,000 to 1,000,000")
    flags.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.memory:
        return use_memory(*args.memory[:3], int(args.memory[3]))
    parallel.tune_malloc()
    rows = []
    for n in args.sizes or SIZES:
        large = n == max(SIZES)
        for name, case in CASES.items():
            for kind in ("clustered", "gaussian"):
                if n > case.largest or (n == max(SIZES) and "k=4" in name and kind == "gaussian"):
                    continue
                # The peer's LOF fits 100,000 in a minute, its cosine neighbours of a million take half of one.
                if args.short and (kind == "gaussian" or (n > 10_000 and "k=4" in name)):
                    continue
                repeats, seconds = (1, 0) if args.short and large else (3, 5) if args.short else (5, 20)
                sides = SIDES[: 1 if args.short else 2] if large and kind == "clustered" else ()
                rows.append(row(name, kind, n, repeats, seconds, sides))
                print(f"{name}, {kind}, {n}: ratio {rows[-1]['ratio']:.3g}", file=sys.stderr, flush=True)
    devices = jax.devices()
    settings = {
        "dimensions": DIMENSIONS,
        "queries": QUERIES,
        "ours on": f"{devices[0].platform} {devices[0].device_kind}",
        "scikit-learn on": common.environment()["cpu"],
        **{f"{s} MiB after imports": round(memory(s, "Mahalanobis", "gaussian", 1000)["imports"]) for s in SIDES},
    }
    common.report("scoring", rows, settings, out=args.out)


if __name__ == "__main__":
    main()
