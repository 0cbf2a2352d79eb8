"""Detectors by scikit-learn, in float64 on the host: slower, and the measure of detectors.device."""

from __future__ import annotations

import contextlib
import functools
import warnings

import numpy as np

from asdjax.core import Detector, InputError, UsageError
from asdjax.detectors.device import by_clip, check, references, vectors


def _float64(e: dict, key: str) -> dict:
    # Given float32, scikit-learn rounds the distances to float32 as well.
    return {key: np.asarray(e[key], np.float64)} if key in e else e


def lof_host(
    *,
    n_neighbors: int = 4,
    metric: str = "euclidean",
    key: str = "embedding",
    units: str = "mean",
    normalise: bool = False,
) -> Detector:
    """Local outlier factor, -score_samples of LocalOutlierFactor(novelty=True); arguments as detectors.lof.

    Returns:
        Detector with state reference (R, D); scores are float64 numpy. fit raises InputError for R < 2.
    """
    check("lof_host", "metric", metric, ("euclidean", "cosine"))
    check("lof_host", "units", units, ("mean", "std", "each"))
    if n_neighbors < 1:
        raise UsageError(f"lof_host: n_neighbors={n_neighbors}; expected at least 1")

    def fit(e, is_target):
        return dict(reference=references(_float64(e, key), key, units, normalise, least=2))

    def score(state, e):
        from sklearn.neighbors import LocalOutlierFactor

        # The state is arrays, so that it can be stored; fitting again costs less than scoring.
        model = LocalOutlierFactor(
            n_neighbors=min(n_neighbors, len(state["reference"]) - 1), metric=metric, novelty=True
        )
        model.fit(state["reference"])
        return by_clip(-model.score_samples(vectors(_float64(e, key), key, units, normalise)), len(e[key]))

    return Detector(fit, score)


@functools.cache
def _blas():
    from threadpoolctl import ThreadpoolController  # of scikit-learn

    return ThreadpoolController()


def few_threads(dimensions: int):
    """A context with one thread for products and decompositions of small matrices.

    On busy cores the threads of a small decomposition wait for each other ten times as long as they work.
    """
    return _blas().limit(limits=1, user_api="blas") if dimensions <= 512 else contextlib.nullcontext()


def fit_mixture(x, *, n_components: int, covariance_type: str, reg_covar: float, seed: int) -> dict[str, np.ndarray]:
    """Fits scikit-learn's GaussianMixture to vectors (R, D), for detectors.gmm.

    Returns:
        weight (K,), mean (K, D), and factor: of each component's precision P the Cholesky factor F with F F' = P
        (K, D, D), or its diagonal (K, D) where the covariances are diagonal.

    Raises:
        InputError: a component whose covariance is singular.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = np.asarray(x, np.float64)
    model = GaussianMixture(
        n_components,
        covariance_type=covariance_type,
        reg_covar=reg_covar,
        init_params="k-means++",  # the default, a whole k-means, takes six times as long as all the rest
        random_state=seed,
    )
    try:
        with few_threads(x.shape[1]), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of clips that coincide, or of a slow last digit
            model.fit(x)
    except ValueError as error:
        raise InputError(
            f"gmm: with reg_covar={reg_covar} the covariance of a component of {len(x)} training vectors is singular "
            f"({error}); expected fewer components, or a larger reg_covar"
        ) from error
    factor, (k, dimensions) = model.precisions_cholesky_, model.means_.shape
    if covariance_type == "tied":
        factor = np.broadcast_to(factor, (k, dimensions, dimensions))
    elif covariance_type == "spherical":
        factor = np.broadcast_to(factor[:, None], (k, dimensions))
    return dict(weight=model.weights_, mean=model.means_, factor=factor)
