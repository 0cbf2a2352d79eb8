"""Detectors that run on the device: a bank of normal embeddings in, an anomaly score per clip out.

A factory returns core.Detector(fit, score): fit(e, is_target (N,)) -> state, a flat dict of arrays; score(state, e) ->
(M,), jitted, higher = more anomalous. `e` is a dict of arrays (N, U, ...); each factory takes

    key: the entry of `e` to look at, (N, U, D).
    units: 'mean' or 'std' over a clip's units gives one vector per clip; 'each' keeps every unit of the training clips
        as a reference, scores every unit of a test clip and averages its scores.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdjax import pooling
from asdjax.core import Detector, InputError, UsageError
from asdjax.detectors.neighbours import (
    ROWS,
    from_squared,
    nearest,
    nearest_by_density,
    squared_distances,
    unit_length,
)


def check(detector: str, field: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses an unknown option by name."""
    if value not in known:
        raise UsageError(f"{detector}: {field}={value!r}; expected one of {', '.join(known)}")


def output(e: dict, key: str) -> jax.Array | np.ndarray:
    """The network's output `key`, (N, U, D).

    Raises:
        UsageError: the network gives no such output, or not one of that shape.
    """
    if key not in e:
        raise UsageError(f"detector: key={key!r}; the network's outputs are {', '.join(sorted(e))}")
    if e[key].ndim != 3:
        raise UsageError(f"detector: {key!r} has shape {e[key].shape}; expected (clips, units, dimensions)")
    return e[key]


def merged(x: jax.Array | np.ndarray, units: str, normalise: bool = False) -> jax.Array | np.ndarray:
    """What a detector compares: (N, U, D) -> (N, D), or (N * U, D) for units='each'; of unit length if `normalise`."""
    pool = dict(mean=pooling.mean, std=pooling.std, each=lambda x: x.reshape(-1, x.shape[-1]))[units]
    dtype = jnp.promote_types(x.dtype, jnp.float32)  # a network may run in bfloat16, scores never
    x = pool(x.astype(dtype, copy=False))
    return unit_length(x) if normalise else x


def vectors(e: dict, key: str, units: str, normalise: bool = False) -> jax.Array | np.ndarray:
    """`merged` of the network's output `key`; raises UsageError where there is none."""
    return merged(output(e, key), units, normalise)


def references(e: dict, key: str, units: str, normalise: bool = False, *, least: int = 1) -> jax.Array | np.ndarray:
    """The vectors of the training clips, checked.

    Raises:
        InputError: fewer than `least` of them, or some not finite.
    """
    x = vectors(e, key, units, normalise)
    if len(x) < least:
        raise InputError(f"detector: {len(x)} training vectors of {key!r}; expected at least {least}")
    bad = np.count_nonzero(~np.isfinite(np.asarray(x)).all(1))
    if bad:
        raise InputError(f"detector: {bad} of {len(x)} training vectors of {key!r} are not finite")
    return x


def by_clip(scores: jax.Array | np.ndarray, n_clips: int) -> jax.Array | np.ndarray:
    """(M * U,) -> (M,), the mean over a clip's units; (M,) stays."""
    return scores.reshape(n_clips, -1).mean(1)


def knn(
    *,
    k: int = 1,
    metric: str = "cosine",
    density: str = "none",
    density_k: int = 4,
    key: str = "embedding",
    units: str = "mean",
) -> Detector:
    """Mean distance to the k nearest training vectors (Morita 2021: k = 1, cosine).

    Args:
        k: number of neighbours.
        metric: 'cosine' or 'euclidean'.
        density: 'none', or local-density normalisation (Wilkinghoff et al., ICASSP 2025): 'ratio' divides the distance
            to a training vector by that vector's mean distance to its own nearest others, 'difference' subtracts it;
            the k neighbours are then those nearest in this measure.
        density_k: K, how many nearest others; where there are fewer, all.
        key, units: see the module's head.

    Returns:
        Detector with state reference (R, D), of unit length for 'cosine', and for a density spacing (R,), the mean
        distance to the nearest others. fit raises InputError with fewer than k training vectors, or 2 for a density.
    """
    check("knn", "metric", metric, ("cosine", "euclidean"))
    check("knn", "density", density, ("none", "ratio", "difference"))
    check("knn", "units", units, ("mean", "std", "each"))
    if k < 1 or density_k < 1:
        raise UsageError(f"knn: k={k}, density_k={density_k}; expected at least 1")
    plain, normalise, options = density == "none", metric == "cosine", dict(k=k, metric=metric, density=density)
    least = k if plain else max(k, 2)

    def fit(e, is_target):
        # device_put: jnp.asarray makes two copies of a numpy array
        x = jax.device_put(references(e, key, units, normalise, least=least))
        spacing = {} if plain else dict(spacing=_spacing(x, density_k=density_k, metric=metric))
        return dict(reference=x, **spacing)

    def score(state, e):
        return _knn(state, output(e, key), units=units, **options)

    def own(state, e):
        rest = len(state["reference"]) * (len(e[key]) - 1) // len(e[key])
        if rest < least:
            raise InputError(f"knn: {rest} training vectors of {key!r} without those of a clip; too few")
        return _knn_own(state["reference"], n_clips=len(e[key]), density_k=density_k, **options)

    return Detector(fit, score, own)


# Compiled functions are the module's, not the factory's: detectors that differ in `key` alone share the programs.
@partial(jax.jit, static_argnames=("k", "metric", "density", "units"))
def _knn(state: dict, x: jax.Array, *, k: int, metric: str, density: str, units: str) -> jax.Array:
    """Scores (M,) of a network's output (M, U, D)."""
    query = merged(x, units, metric == "cosine")
    if density == "none":
        distance, _ = nearest(query, state["reference"], k, metric)
    else:
        usual = state["spacing"]
        distance = nearest_by_density(query, state["reference"], lambda _: (usual, False), k, metric, density)
    return by_clip(distance.mean(1), len(x))


@partial(jax.jit, static_argnames=("density_k", "metric"))
def _spacing(x: jax.Array, *, density_k: int, metric: str) -> jax.Array:
    """Mean distance of each vector (R, D) to its nearest others: (R,)."""
    distance, _ = nearest(x, x, min(density_k, len(x) - 1), metric, skip_self=True)
    return distance.mean(1)


@partial(jax.jit, static_argnames=("n_clips", "k", "metric", "density", "density_k"))
def _knn_own(x: jax.Array, *, n_clips: int, k: int, metric: str, density: str, density_k: int) -> jax.Array:
    """Scores (N,) of the reference (R, D) of N clips, each clip against the bank without its own vectors."""
    n, units = len(x), len(x) // n_clips
    clip = jnp.arange(n) // units
    if density == "none":  # the k + U nearest hold k of other clips
        distance, index = nearest(x, x, min(k + units, n), metric)
        distance = jnp.where(clip[index] == clip[:, None], jnp.inf, distance)
        return by_clip(-lax.top_k(-distance, k)[0].mean(1), n_clips)
    density_k = min(density_k, n - units - 1)
    distance, index = nearest(x, x, min(density_k + units, n - 1), metric, skip_self=True)

    def spacing(i):
        """Of each reference, were the clip of vector i (q,) not there: (q, R); and which references are that clip's."""
        mine = clip[i]
        other = clip[index] != mine[:, None, None]
        taken = other & (other.cumsum(-1) <= density_k)
        return jnp.where(taken, distance, 0).sum(-1) / density_k, clip == mine[:, None]

    return by_clip(nearest_by_density(x, x, spacing, k, metric, density).mean(1), n_clips)


def _lrd(distance: jax.Array, k_distance: jax.Array) -> jax.Array:
    """Local reachability density from the distances (Q, K) and the neighbours' own k-distances (Q, K): (Q,)."""
    return 1 / (jnp.maximum(distance, k_distance).mean(1) + 1e-10)  # scikit-learn's constant, for > k duplicates


def lof(
    *,
    n_neighbors: int = 4,
    metric: str = "euclidean",
    key: str = "embedding",
    units: str = "mean",
    normalise: bool = False,
) -> Detector:
    """Local outlier factor: the neighbours' density over the clip's own; about 1 for a normal clip.

    Equals -score_samples of scikit-learn's LocalOutlierFactor(novelty=True). Breunig et al., SIGMOD 2000, section 4;
    n_neighbors = 4 in Morita 2021 and Bai 2022.

    Args:
        n_neighbors: neighbours among the training vectors; with R <= n_neighbors of them, R - 1, as scikit-learn.
        metric: 'euclidean' or 'cosine'.
        key, units: see the module's head.
        normalise: bring the vectors, after the mean or std over units, to unit length; 'cosine' always does.

    Returns:
        Detector with state reference (R, D), k_distance (R,), lrd (R,). fit raises InputError for R < 2.
    """
    check("lof", "metric", metric, ("euclidean", "cosine"))
    check("lof", "units", units, ("mean", "std", "each"))
    if n_neighbors < 1:
        raise UsageError(f"lof: n_neighbors={n_neighbors}; expected at least 1")
    normalise = normalise or metric == "cosine"

    @jax.jit
    def densities(x):
        distance, index = nearest(x, x, min(n_neighbors, len(x) - 1), metric, skip_self=True)
        k_distance = distance[:, -1]
        return dict(k_distance=k_distance, lrd=_lrd(distance, k_distance[index]))

    def fit(e, is_target):
        x = jax.device_put(references(e, key, units, normalise, least=2))
        return dict(reference=x, **densities(x))

    @jax.jit
    def score(state, e):
        reference = state["reference"]
        x = vectors(e, key, units, normalise)
        distance, index = nearest(x, reference, min(n_neighbors, len(reference) - 1), metric)
        factor = state["lrd"][index].mean(1) / _lrd(distance, state["k_distance"][index])
        return by_clip(factor, len(e[key]))

    return Detector(fit, score)


def cosine_mean(*, key: str = "embedding", units: str = "mean", normalise: bool = False) -> Detector:
    """Cosine distance to the mean training vector (Bai 2022).

    Args:
        key, units: see the module's head.
        normalise: mean of the vectors brought to unit length, so that long ones do not weigh more.

    Returns:
        Detector with state mean (D,).
    """
    check("cosine_mean", "units", units, ("mean", "std", "each"))

    def fit(e, is_target):
        x = references(e, key, units, normalise)
        return dict(mean=jnp.asarray(sums(x, np.zeros(len(x), int))[0] / len(x), x.dtype))

    @jax.jit
    def score(state, e):
        squared = squared_distances(unit_length(state["mean"]), vectors(e, key, units, normalise=True), "cosine")
        return by_clip(from_squared(squared, "cosine"), len(e[key]))

    return Detector(fit, score)


def float64_blocks(x: jax.Array | np.ndarray):
    """(slice, those rows of x (R, D) in float64 on the host): all at once would be twice as large as x itself."""
    x = np.asarray(x)
    for first in range(0, len(x), ROWS):
        yield slice(first, first + ROWS), x[first : first + ROWS].astype(np.float64)


def sums(x: jax.Array | np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Sum of the vectors x (R, D) in each domain (R,) 0, 1, ...: (domains, D) in float64."""
    one_hot = np.eye(domain.max() + 1)
    return sum(one_hot[domain[rows]].T @ block for rows, block in float64_blocks(x))
