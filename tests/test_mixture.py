from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import core, detectors

GOLDEN = json.loads((Path(__file__).parent / "golden" / "gmm_nll.json").read_text())
TYPES = ["full", "tied", "diag", "spherical"]


def normal(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def fitted(detector, x, dtype=jnp.float32) -> dict:
    return detector.fit({"embedding": jnp.asarray(x, dtype)}, np.zeros(len(x), bool))


def two_clusters(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """(n, 1, D), correlated, around two places."""
    x = normal(n, dimensions, seed=seed) @ normal(dimensions, dimensions, seed=9)
    return (x + 20 * (np.arange(n) % 2)[:, None])[:, None]


@pytest.mark.parametrize("dtype, rtol", [(jnp.float64, 1e-12), (jnp.float32, 1e-5)])
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_score_of_a_known_mixture_matches_the_golden(covariance, dtype, rtol):
    inputs = GOLDEN["inputs"]
    covariances = np.array(inputs[f"cov_{covariance}"])
    if covariance == "full":  # P = inv(L L') = F F' with F = inv(L)'
        factor = np.linalg.inv(np.linalg.cholesky(covariances)).swapaxes(1, 2)
    else:
        factor = covariances**-0.5
    with jax.enable_x64(dtype == jnp.float64):
        state = {"weight": inputs["weights"], "mean": inputs["means"], "factor": factor}
        state = {name: jnp.asarray(value, dtype) for name, value in state.items()}
        z = jnp.asarray(inputs["z"], dtype)[:, None]
        found = detectors.gmm(covariance_type=covariance).score(state, {"embedding": z})
    np.testing.assert_allclose(found, GOLDEN["outputs"][f"nll_{covariance}"], rtol=rtol)


@pytest.mark.parametrize("n_components, covariance_type", [(2, kind) for kind in TYPES] + [(1, "full"), (3, "diag")])
def test_score_matches_sklearn(n_components, covariance_type):
    """Fitted by it as well: nothing is ours but the way of the numbers, and the score on the device."""
    from sklearn.mixture import GaussianMixture

    train, test = two_clusters(60, 5), two_clusters(9, 5, seed=1)
    options = dict(covariance_type=covariance_type, reg_covar=1e-3, random_state=3, init_params="k-means++")
    model = GaussianMixture(n_components, **options).fit(train[:, 0])
    detector = detectors.gmm(n_components=n_components, covariance_type=covariance_type, seed=3)
    for dtype, rtol in ((jnp.float64, 1e-9), (jnp.float32, 2e-4)):
        with jax.enable_x64(dtype == jnp.float64):
            state = fitted(detector, train, dtype)
            found = detector.score(state, {"embedding": jnp.asarray(test, dtype)})
        np.testing.assert_allclose(found, -model.score_samples(test[:, 0]), rtol=rtol)


def test_units_are_scored_each_or_merged():
    from sklearn.mixture import GaussianMixture

    train, test = normal(30, 3, 4), normal(5, 3, 4, seed=1)
    for units, merge in (("each", lambda x: x.reshape(-1, 4)), ("std", lambda x: x.std(1))):
        model = GaussianMixture(2, reg_covar=1e-3, random_state=0, init_params="k-means++").fit(merge(train))
        expected = -model.score_samples(merge(test)).reshape(5, -1).mean(1)
        detector = detectors.gmm(units=units)
        with jax.enable_x64(True):
            state = fitted(detector, train, jnp.float64)
            found = detector.score(state, {"embedding": jnp.asarray(test, jnp.float64)})
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_more_dimensions_than_clips_and_a_network_that_does_not_move():
    train = normal(12, 1, 40)
    train[..., 3] = 7.0
    for covariance_type in TYPES:
        detector = detectors.gmm(covariance_type=covariance_type)
        far = np.concatenate([train, train + 5 * (np.arange(40) == 3)])
        found = np.asarray(detector.score(fitted(detector, train), {"embedding": jnp.asarray(far, jnp.float32)}))
        assert np.isfinite(found).all() and found[12:].min() > found[:12].max()


@pytest.mark.parametrize(
    "kwargs, train, message",
    [
        (dict(n_components=5), normal(4, 1, 3), "4 training vectors of 'embedding'; expected at least 5"),
        (dict(n_components=1), normal(1, 1, 3), "1 training vectors of 'embedding'; expected at least 2"),
        (dict(reg_covar=0.0), normal(3, 1, 6), "reg_covar=0.0 the covariance of a component of 3 .* is singular"),
        (dict(), np.full((4, 1, 3), np.nan), "4 of 4 training vectors .* not finite"),
        (dict(key="logits"), normal(4, 1, 3), "key='logits'; the network's outputs are embedding"),
    ],
)
def test_training_clips_that_cannot_be_used_are_refused(kwargs, train, message):
    with pytest.raises(core.InputError, match=message):
        fitted(detectors.gmm(**kwargs), train)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(covariance_type="round"), "covariance_type='round'; expected one of full, tied, diag, spherical"),
        (dict(n_components=0), "n_components=0"),
        (dict(reg_covar=-1.0), "n_components=2, reg_covar=-1.0"),
        (dict(units="all"), "units='all'"),
    ],
)
def test_wrong_options_are_refused_before_any_data(kwargs, message):
    with pytest.raises(core.UsageError, match=f"gmm: {message}"):
        detectors.gmm(**kwargs)
