"""Detectors that run on the device: a bank of normal embeddings in, an anomaly score per clip out.

A factory returns core.Detector(fit, score): fit(e, is_target (N,)) -> state, a flat dict of arrays; score(state, e) ->
(M,), jitted, higher = more anomalous. `e` is a dict of arrays (N, U, ...); each factory takes

    key: the entry of `e` to look at, (N, U, D).
    units: 'mean' or 'std' over a clip's units gives one vector per clip; 'each' keeps every unit of the training clips
        as a reference, scores every unit of a test clip and averages its scores.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asdjax import pooling
from asdjax.core import Detector, InputError, UsageError
from asdjax.detectors.neighbours import ROWS, from_squared, nearest, squared_distances, unit_length


def check(detector: str, field: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses an unknown option by name."""
    if value not in known:
        raise UsageError(f"{detector}: {field}={value!r}; expected one of {', '.join(known)}")


def vectors(e: dict, key: str, units: str, normalise: bool = False) -> jax.Array | np.ndarray:
    """What a detector compares: (N, U, D) -> (N, D), or (N * U, D) for units='each'; of unit length if `normalise`.

    Raises:
        UsageError: the network gives no such output, or not one of shape (N, U, D).
    """
    if key not in e:
        raise UsageError(f"detector: key={key!r}; the network's outputs are {', '.join(sorted(e))}")
    if e[key].ndim != 3:
        raise UsageError(f"detector: {key!r} has shape {e[key].shape}; expected (clips, units, dimensions)")
    pool = dict(mean=pooling.mean, std=pooling.std, each=lambda x: x.reshape(-1, x.shape[-1]))[units]
    dtype = jnp.promote_types(e[key].dtype, jnp.float32)  # a network may run in bfloat16, scores never
    x = pool(e[key].astype(dtype, copy=False))
    return unit_length(x) if normalise else x


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


def knn(*, k: int = 1, metric: str = "cosine", key: str = "embedding", units: str = "mean") -> Detector:
    """Mean distance to the k nearest training vectors (Morita 2021: k = 1, cosine).

    Args:
        k: number of neighbours.
        metric: 'cosine' or 'euclidean'.
        key, units: see the module's head.

    Returns:
        Detector with state reference (R, D), of unit length for 'cosine'. fit raises InputError with fewer than k
        training vectors.
    """
    check("knn", "metric", metric, ("cosine", "euclidean"))
    check("knn", "units", units, ("mean", "std", "each"))
    if k < 1:
        raise UsageError(f"knn: k={k}; expected at least 1")
    normalise = metric == "cosine"

    def fit(e, is_target):
        # device_put: jnp.asarray makes two copies of a numpy array
        return dict(reference=jax.device_put(references(e, key, units, normalise, least=k)))

    @jax.jit
    def score(state, e):
        distance, _ = nearest(vectors(e, key, units, normalise), state["reference"], k, metric)
        return by_clip(distance.mean(1), len(e[key]))

    return Detector(fit, score)


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
        return dict(mean=jnp.asarray(_sums(x, np.zeros(len(x), int))[0] / len(x), x.dtype))

    @jax.jit
    def score(state, e):
        squared = squared_distances(unit_length(state["mean"]), vectors(e, key, units, normalise=True), "cosine")
        return by_clip(from_squared(squared, "cosine"), len(e[key]))

    return Detector(fit, score)


def _float64_blocks(x: jax.Array | np.ndarray):
    """(slice, those rows of x (R, D) in float64 on the host): all at once would be twice as large as x itself."""
    x = np.asarray(x)
    for first in range(0, len(x), ROWS):
        yield slice(first, first + ROWS), x[first : first + ROWS].astype(np.float64)


def _sums(x: jax.Array | np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Sum of the vectors x (R, D) in each domain (R,) 0, 1, ...: (domains, D) in float64."""
    one_hot = np.eye(domain.max() + 1)
    return sum(one_hot[domain[rows]].T @ block for rows, block in _float64_blocks(x))


def _scatter(x: jax.Array | np.ndarray, centre: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Sum of the outer products of x (R, D) - centre (domains, D) of the vector's domain (R,): (D, D) in float64."""
    residuals = (block - centre[domain[rows]] for rows, block in _float64_blocks(x))
    return sum(residual.T @ residual for residual in residuals)


def _whitener(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """W (D, D) with |(x - m) W| the Mahalanobis distance under covariance + ridge * its mean variance * identity.

    In float64 on the host: float32 does not resolve a ridge of 1e-6 beside the largest of 128 variances.
    """
    variance, directions = np.linalg.eigh(covariance)
    variance = variance.clip(0) + ridge * np.trace(covariance) / len(covariance)
    if variance[0] <= len(covariance) * np.finfo(np.float64).eps * variance[-1]:
        raise InputError(
            f"mahalanobis: with ridge={ridge} the covariance of the training vectors is singular "
            f"(variances {variance[0]:.2g} to {variance[-1]:.2g}); expected vectors that differ, and ridge > 0"
        )
    return directions / np.sqrt(variance)


def mahalanobis(
    *,
    covariance: str = "global_ddof1",
    ridge: float | None = None,
    by_domain: bool = True,
    key: str = "embedding",
    units: str = "mean",
) -> Detector:
    """Mahalanobis distance to the nearer of the domains' means, with one covariance (Zeng 2023, eq. 3).

    Args:
        covariance: 'global_ddof1' or 'global_ddof0': of all training vectors about their mean, over R - 1 or R;
            'within_domain': about the mean of their own domain, over R minus the number of domains.
        ridge: added to the diagonal, in units of the mean variance. None: 1e-6, or 1e-2 where there are no more vectors
            than dimensions: then the covariance says nothing of most directions, and the ridge alone decides how much a
            deviation there counts (not in the paper: our choice).
        by_domain: a mean for each of source and target; without target clips, that of the source alone. Else one mean.
        key, units: see the module's head.

    Returns:
        Detector with state mean (1 or 2, D), whitener (D, D).
    """
    check("mahalanobis", "covariance", covariance, ("global_ddof1", "global_ddof0", "within_domain"))
    check("mahalanobis", "units", units, ("mean", "std", "each"))

    def fit(e, is_target):
        x = references(e, key, units, least=2)
        target = np.repeat(np.asarray(is_target, bool), len(x) // len(is_target))
        _, domain, counts = np.unique(target, return_inverse=True, return_counts=True)
        sums = _sums(x, domain)
        means = sums / counts[:, None]
        mean = sums.sum(0, keepdims=True) / len(x)
        within = covariance == "within_domain"
        lost = dict(global_ddof1=1, global_ddof0=0, within_domain=len(counts))[covariance]
        if len(x) <= lost:
            raise InputError(f"mahalanobis: {len(x)} training vectors in {lost} domains; expected more")
        scatter = _scatter(x, means, domain) if within else _scatter(x, mean, np.zeros_like(domain))
        default = 1e-6 if len(x) > x.shape[1] else 1e-2
        whitener = _whitener(scatter / (len(x) - lost), default if ridge is None else ridge)
        return dict(mean=jnp.asarray(means if by_domain else mean, x.dtype), whitener=jnp.asarray(whitener, x.dtype))

    @jax.jit
    def score(state, e):
        x = vectors(e, key, units)
        white = [jnp.dot(x - mean, state["whitener"], precision="highest") for mean in state["mean"]]
        distance = jnp.stack([jnp.linalg.norm(w, axis=1) for w in white]).min(0)
        return by_clip(distance, len(e[key]))

    return Detector(fit, score)
