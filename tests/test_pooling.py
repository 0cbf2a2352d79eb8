from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import pooling
from asdjax.core import UsageError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "merge.json").read_text())


def test_mean_and_std_match_the_golden_in_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(GOLDEN["units"], jnp.float64)[None]
        np.testing.assert_allclose(pooling.mean(x)[0], GOLDEN["mean"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(pooling.std(x)[0], GOLDEN["std"], rtol=0, atol=1e-9)


def test_float32_and_numpy_arrays_and_one_clip_per_row():
    one = np.asarray(GOLDEN["units"], np.float32)
    x = np.stack([one, one[::-1] * 2])  # order does not matter, scale does
    for got in (pooling.mean(jnp.asarray(x)), pooling.mean(x)):
        np.testing.assert_allclose(got, np.outer([1, 2], GOLDEN["mean"]), atol=1e-5)
    for got in (pooling.std(jnp.asarray(x)), pooling.std(x)):
        np.testing.assert_allclose(got, np.outer([1, 2], GOLDEN["std"]), atol=1e-5)


def test_std_of_one_unit_is_zero():
    np.testing.assert_array_equal(pooling.std(jnp.ones((2, 1, 3))), np.zeros((2, 3)))


@pytest.mark.parametrize("r, expected", [(1, 7 / 3), (0, 4), (0.5, (4 + 2 / 2 + 1 / 4) / (1 + 1 / 2 + 1 / 4))])
def test_gwrp_by_hand(r, expected):
    x = np.array([[1.0, 4.0, 2.0], [2.0, 1.0, 4.0]], np.float32)[..., None]
    for found in (pooling.gwrp(x, r), pooling.gwrp(jnp.asarray(x), r)):
        np.testing.assert_allclose(found, np.full((2, 1), expected), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 2, 313])
def test_ranks_and_quantiles_match_numpy(length, dtype):
    x = np.random.default_rng(0).normal(size=(3, length, 4)).astype(dtype)
    x[0, : length // 2] = 0.0
    x[1, :, 0], x[2, 0, 1] = -0.0, -1e-30
    rtol, order = 1e-5 if dtype == np.float32 else 1e-12, -np.sort(-x, axis=1)
    with jax.enable_x64(dtype == np.float64):
        for own in (x, jnp.asarray(x)):
            for q in (0, 0.05, 0.5, 0.95, 1):
                expected = np.quantile(x, q, axis=1)
                np.testing.assert_allclose(pooling.quantile(own, q), expected, rtol=rtol, atol=rtol)
            for r in (0, 0.5, 0.95, 1):
                expected = np.average(order, axis=1, weights=float(r) ** np.arange(length))
                np.testing.assert_allclose(pooling.gwrp(own, r), expected, rtol=rtol, atol=rtol)
            np.testing.assert_array_equal(pooling.maximum(own), order[:, 0])
            assert pooling.gwrp(own, 0.5).dtype == pooling.quantile(own, 0.5).dtype == dtype


def test_ranks_out_of_range_are_refused():
    x = np.ones((1, 2, 3))
    for pool in (pooling.gwrp, pooling.quantile):
        for value in (-0.1, 1.1):
            with pytest.raises(UsageError, match=f"{value}; expected 0 to 1"):
                pool(x, value)
