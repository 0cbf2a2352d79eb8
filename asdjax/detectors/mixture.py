"""Detectors by normal distributions: the Mahalanobis distance, and the likelihood of a mixture of Gaussians."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.core import Detector, InputError, UsageError
from asdjax.detectors.device import by_clip, check, float64_blocks, merged, output, references, sums
from asdjax.detectors.host import few_threads, fit_mixture

COVARIANCES = ("global_ddof1", "global_ddof0", "within_domain", "ledoit_wolf")


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
            'within_domain': about the mean of their own domain, over R minus the number of domains; 'ledoit_wolf':
            'global_ddof0', shrunk towards its mean variance in all directions (Ledoit and Wolf 2004).
        ridge: added to the diagonal, in units of the mean variance. None: 0 for 'ledoit_wolf', else 1e-6, or 1e-2
            where there are no more vectors than dimensions: then the covariance says nothing of most directions, and
            the ridge alone decides how much a deviation there counts (not in the paper: our choice).
        by_domain: a mean for each of source and target; without target clips, that of the source alone. Else one mean.
        key, units: see the module's head.

    Returns:
        Detector with state mean (1 or 2, D), whitener (D, D), is_target (N,) of the training clips. Without `own` for
        units='each'.
    """
    check("mahalanobis", "covariance", covariance, COVARIANCES)
    check("mahalanobis", "units", units, ("mean", "std", "each"))

    def fit(e, is_target):
        x = references(e, key, units, least=2)
        m = _moments(x, np.repeat(np.asarray(is_target, bool), len(x) // len(is_target)), covariance)
        n, dimensions = x.shape
        if n <= m.lost:
            raise InputError(f"mahalanobis: {n} training vectors in {m.lost} domains; expected more")
        trace = np.trace(m.scatter) / (n - m.lost)
        a, b = 1 / (n - m.lost), _ridge(ridge, covariance, n, dimensions) * trace / dimensions
        if covariance == "ledoit_wolf":
            fourth = sum((((block - m.mean) ** 2).sum(1) ** 2).sum() for _, block in float64_blocks(x)) / n
            weight = _ledoit_wolf(n, dimensions, trace, (m.scatter**2).sum() / n**2, fourth)
            a, b = (1 - weight) * a, b + weight * trace / dimensions
        with few_threads(dimensions):
            whitener = _whitener(*_principal(x, m), a, b)
        return dict(
            mean=jnp.asarray(m.means if by_domain else m.mean[None], x.dtype),
            whitener=jnp.asarray(whitener, x.dtype),
            is_target=np.asarray(is_target, np.float32),
        )

    def score(state, e):
        return _mahalanobis(state["mean"], state["whitener"], output(e, key), units=units)

    def own(state, e):
        x = references(e, key, units, least=3)
        with few_threads(x.shape[1]):
            return _left_out(np.asarray(x, np.float64), state["is_target"] > 0, covariance, ridge, by_domain)

    return Detector(fit, score, None if units == "each" else own)


@partial(jax.jit, static_argnames="units")
def _mahalanobis(mean: jax.Array, whitener: jax.Array, x: jax.Array, *, units: str) -> jax.Array:
    vectors = merged(x, units)
    white = [jnp.dot(vectors - one, whitener, precision="highest") for one in mean]
    return by_clip(jnp.stack([jnp.linalg.norm(w, axis=1) for w in white]).min(0), len(x))


class _Moments(NamedTuple):
    """Of the training vectors (R, D), in float64: `scatter` (D, D) about `centre`, and over R - lost a covariance."""

    domain: np.ndarray  # (R,) 0, 1, ...
    counts: np.ndarray
    means: np.ndarray  # (domains, D)
    mean: np.ndarray  # (D,)
    centre: np.ndarray  # (domains, D)
    scatter: np.ndarray
    lost: int


def _moments(x: jax.Array | np.ndarray, is_target: np.ndarray, covariance: str) -> _Moments:
    _, domain, counts = np.unique(is_target, return_inverse=True, return_counts=True)
    total = sums(x, domain)
    means, mean = total / counts[:, None], total.sum(0) / len(x)
    centre = means if covariance == "within_domain" else np.broadcast_to(mean, means.shape)
    residuals = (block - centre[domain[rows]] for rows, block in float64_blocks(x))
    scatter = sum(residual.T @ residual for residual in residuals)
    return _Moments(domain, counts, means, mean, centre, scatter, _lost(covariance, len(counts)))


def _lost(covariance: str, n_domains):
    return dict(global_ddof1=1, global_ddof0=0, within_domain=n_domains, ledoit_wolf=0)[covariance]


def _ridge(ridge: float | None, covariance: str, n: int, dimensions: int) -> float:
    if ridge is not None or covariance == "ledoit_wolf":
        return ridge or 0.0
    return 1e-6 if n > dimensions else 1e-2


def _principal(x: jax.Array | np.ndarray, m: _Moments) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and eigenvectors (D, r) of the scatter S, r = min(R, D): with r < D, those that are not null.

    In float64 on the host: float32 does not resolve a ridge of 1e-6 beside the largest of 128 variances.
    """
    if len(x) < x.shape[1]:  # few long vectors: of 64 of 384 numbers a tenth of the time
        u = np.asarray(x, np.float64) - m.centre[m.domain]
        _, value, rows = np.linalg.svd(u, full_matrices=False)
        return value**2, rows.T
    value, directions = np.linalg.eigh(m.scatter)
    return value.clip(0), directions


def _whitener(value: np.ndarray, directions: np.ndarray, a: float, b: float) -> np.ndarray:
    """W (D, D) with |(x - m) W| the Mahalanobis distance under the covariance a S + b 1, from the eigenvectors of S."""
    dimensions = len(directions)
    variance = a * value + b
    least = b if len(value) < dimensions else variance.min()
    if least <= dimensions * np.finfo(np.float64).eps * variance.max():
        raise InputError(
            "mahalanobis: training clips that are too few or too alike, so that the covariance of their vectors is "
            f"singular (variances {least:.2g} to {variance.max():.2g}); expected more that differ, or a larger ridge"
        )
    if len(value) == dimensions:
        return directions / np.sqrt(variance)
    return (directions * (1 / np.sqrt(variance) - 1 / np.sqrt(b))) @ directions.T + np.eye(dimensions) / np.sqrt(b)


def _ledoit_wolf(n, dimensions: int, trace, squared, fourth):
    """Weight of the mean variance in the shrunk covariance (Ledoit and Wolf 2004, section 3).

    Args:
        n: vectors. dimensions: D.
        trace, squared: of their covariance (ddof 0) the trace, and the sum of its entries' squares.
        fourth: mean of the fourth power of the vectors' distances from their mean.
    """
    distance = squared - trace**2 / dimensions  # of the covariance from its mean variance in all directions, squared
    error = np.minimum((fourth - squared) / n, distance)  # of the covariance, as estimated
    return np.where(distance > 0, error / np.where(distance > 0, distance, 1), 0.0)


def _left_out(x: np.ndarray, is_target: np.ndarray, covariance: str, ridge: float | None, by_domain: bool):
    """Each vector's score by a detector that is fitted without it, as if fitted anew: (N, D) -> (N,).

    Without vector i the scatter is S - c u u', where u is its difference from its mean of m vectors, and c = m / (m-1).
    Its covariance is a (S - c u u') + b 1, with a and b of the degrees of freedom, ridge and shrinkage. In the
    eigenvectors of S, a S + b 1 is diagonal for every i, and the formula of Sherman and Morrison does the rest. In
    float64 on the host, as the fit, and for the same reason.
    """
    (n, dimensions), m = x.shape, _moments(x, is_target, covariance)
    own = m.counts[m.domain]
    u = x - m.centre[m.domain]
    of = own if covariance == "within_domain" else np.full(n, n)
    c = np.where(of > 1, of / np.maximum(of - 1, 1), 0.0)
    left = n - 1 - _lost(covariance, len(m.counts) - (own == 1))  # degrees of freedom
    if np.any(left < 1):
        raise InputError(f"mahalanobis: {n} training vectors are too few to score one without it")
    (value, directions), squared = _principal(x, m), (u**2).sum(1)
    trace = (value.sum() - c * squared) / left
    a, b = 1 / left, _ridge(ridge, covariance, n - 1, dimensions) * trace / dimensions
    if covariance == "ledoit_wolf":
        weight = _ledoit_wolf(n - 1, dimensions, trace, *_powers_left_out(u, m.scatter))
        a, b = (1 - weight) / left, b + weight * trace / dimensions

    def product(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        """v' (a S + b 1)^-1 w of each vector."""
        along = (v @ directions) * (w @ directions)
        beyond = 0 if len(value) == dimensions else ((v * w).sum(1) - along.sum(1)) / b
        return (along / (np.reshape(a, (-1, 1)) * value + b[:, None])).sum(1) + beyond

    def squared_distance(v: np.ndarray) -> np.ndarray:
        return product(v, v) + a * c * product(v, u) ** 2 / (1 - a * c * product(u, u))

    found = []
    means, domain = (m.means, m.domain) if by_domain else (m.mean[None], np.zeros(n, int))
    with np.errstate(divide="ignore", invalid="ignore"):  # where the rest is singular there is no number
        for which, mean in enumerate(means):
            mine = domain == which
            grown = np.where(mine, mine.sum() / max(mine.sum() - 1, 1), 1.0)  # further from a mean it is no part of
            found.append(np.where(mine & (mine.sum() == 1), np.inf, squared_distance(grown[:, None] * (x - mean))))
        return np.sqrt(np.min(found, axis=0))


def _powers_left_out(u: np.ndarray, scatter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`squared` and `fourth` of _ledoit_wolf without each vector, from the vectors' differences u (N, D) from the mean.

    Without vector i the others' differences are u_k + e u_i with e = 1 / (N - 1): the fourth powers, multiplied out.
    """
    n, e = len(u), 1 / (len(u) - 1)
    length = (u**2).sum(1)
    along = ((u @ scatter) * u).sum(1)  # sum over k of (u_k u_i)^2
    third = u @ (length @ u)  # sum over k of |u_k|^2 u_k u_i
    c = n * e
    squared = ((scatter**2).sum() - 2 * c * along + c**2 * length**2) * e**2
    fourth = (length**2).sum() + 4 * e**2 * along + n * e**4 * length**2 + 4 * e * third
    fourth += 2 * e**2 * length * length.sum() - ((1 + e) ** 2 * length) ** 2
    return squared, fourth * e


def gmm(
    *,
    n_components: int = 2,
    covariance_type: str = "full",
    reg_covar: float = 1e-3,
    seed: int = 0,
    key: str = "embedding",
    units: str = "mean",
) -> Detector:
    """Negative log-likelihood of a mixture of Gaussians, -score_samples of scikit-learn's GaussianMixture.

    Two full components in Zhang 2023; reg_covar is that of the public STgram-MFN.

    Args:
        n_components: K.
        covariance_type: 'full', 'tied', 'diag' or 'spherical'.
        reg_covar: added to the covariances' diagonals, in squared units of the output.
        seed: of the initial means, training vectors that lie apart (k-means++).
        key, units: see the module's head of detectors.device.

    Returns:
        Detector with state weight (K,), mean (K, D), factor (K, D, D) or (K, D): Cholesky factors of the precisions, or
        their diagonals. fit, on the host, raises InputError with fewer than K training vectors or 2, or where a
        component's covariance is singular.
    """
    check("gmm", "covariance_type", covariance_type, ("full", "tied", "diag", "spherical"))
    check("gmm", "units", units, ("mean", "std", "each"))
    if n_components < 1 or reg_covar < 0:
        raise UsageError(f"gmm: n_components={n_components}, reg_covar={reg_covar}; expected at least 1 and 0")

    def fit(e, is_target):
        x = references(e, key, units, least=max(2, n_components))
        fitted = fit_mixture(
            x, n_components=n_components, covariance_type=covariance_type, reg_covar=reg_covar, seed=seed
        )
        return {name: jnp.asarray(value, x.dtype) for name, value in fitted.items()}

    def score(state, e):
        return _mixture(state, output(e, key), units=units)

    return Detector(fit, score)


@partial(jax.jit, static_argnames="units")
def _mixture(state: dict, x: jax.Array, *, units: str) -> jax.Array:
    vectors, factor = merged(x, units), state["factor"]
    difference = vectors[None] - state["mean"][:, None]  # (K, M, D)
    if factor.ndim == 2:
        white, diagonal = difference * factor[:, None], factor
    else:
        white = jnp.matmul(difference, factor, precision="highest")
        diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
    constant = jnp.log(state["weight"]) + jnp.log(diagonal).sum(1) - vectors.shape[1] / 2 * np.log(2 * np.pi)
    return by_clip(-jax.nn.logsumexp(constant[:, None] - (white**2).sum(-1) / 2, axis=0), len(x))
