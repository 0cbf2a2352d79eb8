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
from jax import lax

from asdjax import pooling
from asdjax.core import Detector, InputError, UsageError

BLOCK = 2**24  # numbers in one block of query-reference differences: 64 MB in float32


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
    x = pool(e[key].astype(jnp.promote_types(e[key].dtype, jnp.float32)))  # a network may run in bfloat16, scores never
    return _unit_length(x) if normalise else x


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


def _unit_length(x):
    """x / |x| over the last axis; zero stays zero, as in scikit-learn's normalize."""
    norm = (x**2).sum(-1, keepdims=True) ** 0.5
    return x / (norm + (norm == 0))


def _distances(x: jax.Array, reference: jax.Array, metric: str) -> jax.Array:
    """Distances of one vector (D,) to each reference (R, D): (R,). For 'cosine' both are of unit length, or zero.

    From the differences, in both metrics: |a|^2 + |b|^2 - 2 ab and 1 - ab lose their digits in float32 where clips lie
    close together, which a trained network sees to.
    """
    squared = ((x - reference) ** 2).sum(-1)
    if metric == "euclidean":
        return jnp.sqrt(squared)
    # 1 - ab = |a - b|^2 / 2 for unit vectors; the second term puts a zero vector at 1 from everything.
    lengths = (x != 0).any(-1).astype(x.dtype) + (reference != 0).any(-1).astype(x.dtype)
    return squared / 2 + (1 - lengths / 2)


def _nearest(x: jax.Array, reference: jax.Array, k: int, metric: str, skip_self: bool = False):
    """The k smallest distances of each x (Q, D) to the references (R, D), and which: two (Q, k). Memory is bounded."""
    if metric == "cosine":
        x, reference = _unit_length(x), _unit_length(reference)

    def one(i):
        distance = _distances(x[i], reference, metric)
        distance = distance.at[i].set(jnp.inf) if skip_self else distance
        negative, index = lax.top_k(-distance, k)
        return -negative, index

    return lax.map(one, jnp.arange(len(x)), batch_size=max(1, min(len(x), BLOCK // reference.size)))


def knn(*, k: int = 1, metric: str = "cosine", key: str = "embedding", units: str = "mean") -> Detector:
    """Mean distance to the k nearest training vectors (Morita 2021: k = 1, cosine).

    Args:
        k: number of neighbours.
        metric: 'cosine' or 'euclidean'.
        key, units: see the module's head.

    Returns:
        Detector with state reference (R, D). fit raises InputError with fewer than k training vectors.
    """
    check("knn", "metric", metric, ("cosine", "euclidean"))
    check("knn", "units", units, ("mean", "std", "each"))
    if k < 1:
        raise UsageError(f"knn: k={k}; expected at least 1")

    def fit(e, is_target):
        return dict(reference=jnp.asarray(references(e, key, units, least=k)))

    @jax.jit
    def score(state, e):
        distance, _ = _nearest(vectors(e, key, units), state["reference"], k, metric)
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
        normalise: bring the vectors, after the mean or std over units, to unit length.

    Returns:
        Detector with state reference (R, D), k_distance (R,), lrd (R,). fit raises InputError for R < 2.
    """
    check("lof", "metric", metric, ("euclidean", "cosine"))
    check("lof", "units", units, ("mean", "std", "each"))
    if n_neighbors < 1:
        raise UsageError(f"lof: n_neighbors={n_neighbors}; expected at least 1")

    @jax.jit
    def densities(x):
        distance, index = _nearest(x, x, min(n_neighbors, len(x) - 1), metric, skip_self=True)
        k_distance = distance[:, -1]
        return dict(reference=x, k_distance=k_distance, lrd=_lrd(distance, k_distance[index]))

    def fit(e, is_target):
        return densities(references(e, key, units, normalise, least=2))

    @jax.jit
    def score(state, e):
        reference = state["reference"]
        x = vectors(e, key, units, normalise)
        distance, index = _nearest(x, reference, min(n_neighbors, len(reference) - 1), metric)
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
        return dict(mean=jnp.asarray(references(e, key, units, normalise)).mean(0))

    @jax.jit
    def score(state, e):
        distance = _distances(_unit_length(state["mean"]), _unit_length(vectors(e, key, units)), "cosine")
        return by_clip(distance, len(e[key]))

    return Detector(fit, score)


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
        rows, dtype = np.asarray(x, np.float64), x.dtype
        target = np.repeat(np.asarray(is_target, bool), len(rows) // len(is_target))
        domains = [rows[m] for m in (~target, target) if m.any()]
        within = covariance == "within_domain"
        residual = np.concatenate([d - d.mean(0) for d in (domains if within else [rows])])
        lost = dict(global_ddof1=1, global_ddof0=0, within_domain=len(domains))[covariance]
        if len(rows) <= lost:
            raise InputError(f"mahalanobis: {len(rows)} training vectors in {lost} domains; expected more")
        default = 1e-6 if len(rows) > rows.shape[1] else 1e-2
        whitener = _whitener(residual.T @ residual / (len(rows) - lost), default if ridge is None else ridge)
        mean = np.stack([d.mean(0) for d in (domains if by_domain else [rows])])
        return dict(mean=jnp.asarray(mean, dtype), whitener=jnp.asarray(whitener, dtype))

    @jax.jit
    def score(state, e):
        x = vectors(e, key, units)
        white = [jnp.dot(x - mean, state["whitener"], precision="highest") for mean in state["mean"]]
        distance = jnp.stack([jnp.linalg.norm(w, axis=1) for w in white]).min(0)
        return by_clip(distance, len(e[key]))

    return Detector(fit, score)
