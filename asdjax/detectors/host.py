"""Detectors by scikit-learn, in float64 on the host: slower, and the measure of detectors.device."""

from __future__ import annotations

import numpy as np

from asdjax.core import Detector, UsageError
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
