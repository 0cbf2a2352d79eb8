import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import augment
from asdjax.core import UsageError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mixup_conventions.json").read_text())


def test_blend_against_golden():
    given, expected = GOLDEN["inputs"], GOLDEN["outputs"]
    lam = np.where(np.array(given["dec"]) == 1, given["lam"], 1.0)
    with jax.enable_x64(True):
        for name, partner in (("asdkit", given["perm"]), ("wilkinghoff", [3, 2, 1, 0])):
            for leaf, values in (("x", given["x"]), ("y", given["Y"])):
                got = augment.blend(jnp.array(values), jnp.array(partner), jnp.array(lam))
                np.testing.assert_allclose(got, expected[f"{name}_{leaf}"], rtol=0, atol=1e-12)


def test_mixup_blends_label_and_wave_alike():
    x = jnp.eye(64)
    label = {"class": jnp.eye(64), "own": jnp.arange(64.0)}
    mixed, out = jax.jit(augment.mixup(p=0.5))(jax.random.key(0), x, label)
    np.testing.assert_allclose(mixed, out["class"], atol=1e-7)  # x is its own one-hot here
    np.testing.assert_allclose(out["own"], mixed @ jnp.arange(64.0), rtol=1e-5)
    np.testing.assert_allclose(mixed.sum(1), 1.0, atol=1e-6)
    untouched = (np.diag(mixed) == 1).mean()
    assert 0.3 < untouched < 0.7  # a binomial of 64 draws at 0.5: sigma 0.06


def test_mixup_never_and_always():
    x, label = jax.random.normal(jax.random.key(1), (16, 5)), {"class": jnp.eye(16)}
    same, _ = augment.mixup(p=0.0)(jax.random.key(0), x, label)
    np.testing.assert_array_equal(same, x)
    _, out = augment.mixup(p=1.0)(jax.random.key(0), x, label)
    assert (out["class"].max(1) < 1).mean() > 0.8  # all but those drawn as their own partner


def test_mixup_of_nonsense_raises():
    with pytest.raises(UsageError, match="p must lie"):
        augment.mixup(p=1.5)
