"""The decision threshold: above which score a clip is called anomalous, from normal training clips alone."""

from __future__ import annotations

import warnings

import numpy as np

from asdjax.core import InputError


def gamma_threshold(scores: np.ndarray, *, q: float = 0.9, guard: bool = True) -> tuple[float, str]:
    """Decision threshold of the official baselines: the q quantile of a gamma distribution fitted to normal scores.

    The likelihood of a three-parameter gamma is unbounded for shapes below 1, where the fit may run away; the guard
    then takes the empirical quantile.

    Args:
        scores: (N,) scores of normal training clips. Infinite ones are left out.
        q: the quantile; a clip is called anomalous when its score is strictly above the threshold.
        guard: whether to fall back to the empirical quantile where the fit failed or its shape is below 1.

    Returns:
        the threshold, and a sentence that says what was out of the ordinary ('' when nothing was).

    Raises:
        InputError: no finite score, a NaN among them, or a failed fit without the guard.
    """
    scores = np.asarray(scores, np.float64)
    finite = scores[np.isfinite(scores)]
    if np.isnan(scores).any() or not len(finite):
        raise InputError(
            f"scores of normal clips: found {np.isnan(scores).sum()} NaN and {len(finite)} finite values of "
            f"{len(scores)}; a threshold needs finite ones and no NaN"
        )
    note = f"{len(scores) - len(finite)} infinite scores left out; " if len(finite) < len(scores) else ""
    threshold, trouble = _fitted_quantile(finite, q)
    if trouble and guard:
        return float(np.quantile(finite, q)), f"{note}{trouble}; threshold is the empirical quantile"
    if not np.isfinite(threshold):
        raise InputError(f"gamma fit of {len(finite)} scores from {finite.min()} to {finite.max()}: {trouble}")
    return threshold, (note + trouble).removesuffix("; ")


def _fitted_quantile(scores: np.ndarray, q: float) -> tuple[float, str]:
    """Quantile of the fitted gamma (NaN when there is none), and what is wrong with it ('' when nothing is)."""
    if len(scores) < 10 or scores.min() == scores.max():
        return np.nan, f"{len(scores)} scores with {len(np.unique(scores))} values are too few for a gamma fit"
    from scipy import stats

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of trial parameters during the search
            shape, loc, scale = stats.gamma.fit(scores)
            threshold = float(stats.gamma.ppf(q, shape, loc=loc, scale=scale))
    except (ValueError, RuntimeError, FloatingPointError) as error:  # scipy's FitError is a RuntimeError
        return np.nan, f"gamma fit failed ({error})"
    if shape < 1:
        return threshold, "gamma fit has a shape below 1"
    inside = scores.min() <= threshold <= scores.max()
    return threshold, "" if inside else "gamma fit has its quantile outside the scores"
