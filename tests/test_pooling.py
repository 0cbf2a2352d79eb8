from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from asdjax import pooling

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
