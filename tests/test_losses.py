"""Losses against numbers of reference implementations (golden/*.json), hand arithmetic and the definitions."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import losses
from asdjax.core import UsageError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "arcface.json").read_text())
MIXUP = GOLDEN["mixup"]
FOCAL = json.loads((Path(__file__).parent / "golden" / "focal.json").read_text())
BCE = json.loads((Path(__file__).parent / "golden" / "bce.json").read_text())
CASES = [pytest.param(case, id=f"{case['mode']}-{case['s']}-{case['m']}") for case in GOLDEN["cases"]]


def settings(case):
    return {"s": case["s"], "margin": case["m"], "mode": case["mode"]}


def mixed_label():
    """lam on y, 1 - lam on the label of the partner: (B, C)."""
    y = np.array(MIXUP["y"])
    return MIXUP["lam"] * np.eye(3)[y] + (1 - MIXUP["lam"]) * np.eye(3)[y[MIXUP["perm"]]]


def test_softmax_by_hand():
    """Odds 1 : 3 give p = 1/4 and 3/4."""
    logits = jnp.array([[0.0, math.log(3.0)]] * 4)
    label = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    expected = [math.log(4), math.log(4 / 3), (math.log(4) + math.log(4 / 3)) / 2, 0]
    np.testing.assert_allclose(losses.softmax(logits, label), expected, rtol=1e-6)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-8), (False, 1e-5)])
def test_softmax_of_mixed_labels(x64, tolerance):
    with jax.enable_x64(x64):
        found = losses.softmax(jnp.array(MIXUP["logits"]), jnp.array(mixed_label())).mean()
    assert float(found) == pytest.approx(MIXUP["ce_mixed"], rel=tolerance)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-8), (False, 1e-5)])
@pytest.mark.parametrize("gamma", ["0", "0.5", "1", "2", "5"])
def test_focal(gamma, x64, tolerance):
    golden = FOCAL["gamma"][gamma]
    with jax.enable_x64(x64):
        found = losses.focal(jnp.array(FOCAL["logits"]), jnp.eye(6)[jnp.array(FOCAL["y"])], gamma=float(gamma))
        mean = found.mean()
    assert found.dtype == (jnp.float64 if x64 else jnp.float32)
    assert float(mean) == pytest.approx(golden["mean"], rel=tolerance)
    scale = 1 if x64 else np.max(golden["per_sample"])
    np.testing.assert_allclose(found, golden["per_sample"], rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-8), (False, 1e-5)])
def test_focal_of_mixed_labels(x64, tolerance):
    golden = FOCAL["mixup_gamma2"]
    label = golden["lam"] * np.eye(6)[FOCAL["y"]] + (1 - golden["lam"]) * np.eye(6)[golden["y_b"]]
    with jax.enable_x64(x64):
        found = losses.focal(jnp.array(FOCAL["logits"]), jnp.array(label)).mean()
    assert float(found) == pytest.approx(golden["loss"], rel=tolerance)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_keeps_its_digits_near_0_and_1(gamma):
    """Of two classes `ahead` apart in float32: p = 1 / (1 + exp(-ahead)), against float64."""
    ahead = np.array([-80.0, -25.0, -9.0, 0.0, 9.0, 17.0, 25.0])
    found = losses.focal(
        jnp.stack([jnp.asarray(ahead, jnp.float32), jnp.zeros(7)], 1), jnp.array([[1.0, 0.0]] * 7), gamma=gamma
    )
    expected = (1 / (1 + np.exp(ahead))) ** gamma * np.log1p(np.exp(-ahead))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_gradients_of_focal(gamma):
    """Against central differences of the formula, with hard and soft labels."""
    rng = np.random.default_rng(0)
    logits, label = 3 * rng.standard_normal((5, 4)), rng.dirichlet(np.ones(4), 5)
    label[:2] = np.eye(4)[:2]

    def by_formula(z):
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        return -(label * (1 - p) ** gamma * np.log(p)).sum()

    h, steps = 1e-5, np.eye(20).reshape(20, 5, 4)
    expected = [(by_formula(logits + h * step) - by_formula(logits - h * step)) / (2 * h) for step in steps]
    with jax.enable_x64(True):
        found = jax.grad(lambda z: losses.focal(z, jnp.asarray(label), gamma=gamma).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(np.ravel(found), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0])
def test_gradients_of_focal_are_finite_everywhere(gamma):
    """Sure and right, sure and wrong, a class that there is not (heads.NEVER), ties; and no label."""
    logits = jnp.array([[1e4, 0, 0], [0, 1e4, 0], [200, 0, -1e9], [0, 1, -1e9], [5, 5, 5], [1e38, -1e38, 0], [1, 2, 3]])
    label = jnp.array([[1.0, 0, 0]] * 6 + [[0, 0, 0]])
    each, back = jax.vjp(lambda z: losses.focal(z, label, gamma=gamma), logits)
    (slope,) = back(jnp.ones(7))
    assert np.isfinite(each).all() and np.isfinite(slope).all()
    assert each[0] == 0 and not slope[0].any()  # p is 1
    np.testing.assert_array_equal(slope[1], [-1, 1, 0])  # p is 0: the cross-entropy
    assert each[6] == 0 and not slope[6].any()
    assert not slope[2:4, 2].any()


@pytest.mark.parametrize("gamma", [-0.5, math.nan, math.inf])
def test_focal_refuses(gamma):
    with pytest.raises(UsageError, match=r"gamma is .* expected a finite number, at least 0"):
        losses.focal(jnp.zeros((1, 2)), jnp.eye(2)[:1], gamma=gamma)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-14), (False, 1e-6)])
def test_bce(x64, tolerance):
    """PyTorch's numbers; of the examples one by one the formula in float64."""
    given, golden = BCE["inputs"], BCE["outputs"]
    z, y = np.array(given["logits_multi"]), np.array(given["Y"])
    p = 1 / (1 + np.exp(-z))
    with jax.enable_x64(x64):
        found = np.asarray(losses.bce(jnp.array(z), jnp.array(y)))
        one_class = losses.bce(jnp.array(given["logit"])[None], jnp.array(given["t"])[None])
    assert found.dtype == (jnp.float64 if x64 else jnp.float32)
    np.testing.assert_allclose(found.mean(), golden["multi_hot_mean"], rtol=tolerance)
    np.testing.assert_allclose(found, -np.log(np.where(y == 1, p, 1 - p)).mean(1), rtol=tolerance)
    np.testing.assert_allclose(one_class, [golden["bce"]], rtol=tolerance)


def test_bce_is_affine_in_the_label_and_costs_nothing_without_one():
    rng = np.random.default_rng(0)
    z, (a, b) = 3 * rng.standard_normal((5, 4)), (rng.random((2, 5, 4)) < 0.6).astype(float)
    a[:, 0], b[:, 1] = 1, 1
    with jax.enable_x64(True):
        mixed, of_a, of_b = (losses.bce(jnp.asarray(z), jnp.asarray(y)) for y in (0.3 * a + 0.7 * b, a, b))
        np.testing.assert_allclose(mixed, 0.3 * of_a + 0.7 * of_b, rtol=1e-13)
    a[2] = 0
    each, back = jax.vjp(lambda z: losses.bce(z, jnp.asarray(a)), jnp.asarray(z))
    (slope,) = back(jnp.ones(5))
    assert each[2] == 0 and not slope[2].any() and (np.delete(each, 2) > 0).all() and np.delete(slope, 2, 0).all()


def test_bce_of_large_logits():
    """Right: nothing, or what float32 has of exp(-30); wrong: the logit; a class that there is not: nothing."""
    z = jnp.array([[1e4, -1e4], [1e4, -1e4], [30.0, -1e9], [1e4, -1e9]])
    y = jnp.array([[1.0, 0], [0, 1], [1, 0], [0.25, 0]])
    each, back = jax.vjp(lambda z: losses.bce(z, y), z)
    (slope,) = back(jnp.ones(4))
    np.testing.assert_allclose(each, [0, 1e4, math.exp(-30) / 2, 0.75e4 / 2], rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0], [0.5, -0.5], [-math.exp(-30) / 2, 0], [0.375, 0]], rtol=1e-6)


def test_bce_of_known_classes_alone():
    """Of three logits of which the second counts for nothing: log 2 and -log(1/4)."""
    z, y = jnp.array([[0.0, 5.0, math.log(3.0)]]), jnp.array([[1.0, 0, 0]])
    found = losses.bce(z, y, known=jnp.array([1.0, 0, 1]))
    np.testing.assert_allclose(found, [(math.log(2) + math.log(4)) / 2], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("x64", [True, False])
def test_arcface_logits_and_losses(case, x64):
    with jax.enable_x64(x64):
        onehot = jnp.eye(6)[jnp.array(GOLDEN["y"])]
        logits = losses.arcface(jnp.array(GOLDEN["cosine"]), onehot, **settings(case))
        found = losses.softmax(logits, onehot)
        mean = found.mean()
    assert logits.dtype == (jnp.float64 if x64 else jnp.float32)
    for name, value in (("logits", logits), ("loss_per_sample", found), ("loss_mean", mean)):
        reference = np.array(case[name])
        # the cosines are stored with nine decimals, which s multiplies
        tolerance = 1e-6 if x64 else 1e-5 * np.abs(reference).max()
        np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("gradient", ["analytic", "straight_through"])
@pytest.mark.parametrize("mode", ["th_mm", "easy", "plain"])
def test_arcface_is_finite_at_aligned_and_opposite_vectors(mode, gradient):
    cosine = jnp.array([[1.0, -1.0], [-1.0, 1.0], [1.0 + 2e-7, -1.0 - 2e-7]], jnp.float32)
    onehot = jnp.array([[1.0, 0.0]] * 3)

    def mean(cosine):
        return losses.softmax(losses.arcface(cosine, onehot, mode=mode, gradient=gradient), onehot).mean()

    value, slope = jax.value_and_grad(mean)(cosine)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_arcface_straight_through_has_slope_s():
    cosine = jnp.linspace(-0.99, 0.99, 7)[:, None]
    one = jnp.ones((7, 1))
    by_autodiff = jax.grad(lambda c: losses.arcface(c, one, s=30.0, gradient="straight_through").sum())(cosine)
    np.testing.assert_allclose(by_autodiff, 30.0, rtol=1e-6)
    values = [losses.arcface(cosine, one, s=30.0, gradient=g) for g in ("straight_through", "analytic")]
    np.testing.assert_array_equal(*values)


def test_arcface_computes_bfloat16_in_float32():
    cosine = jnp.array([[0.25, -0.5]], jnp.bfloat16)  # exact in bfloat16
    logits = losses.arcface(cosine, jnp.array([[1.0, 0.0]], jnp.bfloat16), s=1.0, margin=0.5)
    expected = [math.cos(math.acos(0.25) + 0.5), -0.5]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[0], expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"mode": "hard"}, {"gradient": "none"}])
def test_arcface_refuses(wrong):
    with pytest.raises(UsageError, match="there is"):
        losses.arcface(jnp.zeros((1, 2)), jnp.eye(2)[:1], **wrong)


@pytest.mark.parametrize("case", CASES)
def test_margin_softmax_is_linear_in_the_label(case):
    """Every one-hot label gives the golden loss, a mix of two gives the mix of the two losses."""
    cosine, y = np.array(GOLDEN["cosine"]), np.array(GOLDEN["y"])
    with jax.enable_x64(True):
        logits = losses.arcface(cosine, jnp.zeros((6, 6)), **settings(case))
        turned = losses.arcface(cosine, jnp.ones((6, 6)), **settings(case))

        def other(label):  # the definition: one set of logits for each class that may be the target
            sets = [losses.arcface(cosine, jnp.eye(6)[jnp.full(6, c)], **settings(case)) for c in range(6)]
            each = [losses.softmax(z, jnp.eye(6)[jnp.full(6, c)]) for c, z in enumerate(sets)]
            return sum(label[:, c] * each[c] for c in range(6))

        onehot = np.eye(6)[y]
        soft = 0.3 * onehot + 0.7 * np.eye(6)[(y + 2) % 6]
        np.testing.assert_allclose(
            losses.margin_softmax(logits, turned, onehot), case["loss_per_sample"], rtol=0, atol=1e-6
        )
        np.testing.assert_allclose(losses.margin_softmax(logits, turned, soft), other(soft), rtol=0, atol=1e-10)
        np.testing.assert_array_equal(losses.margin_softmax(logits, turned, np.zeros((6, 6))), np.zeros(6))


def test_logsumexp_of_others_keeps_its_digits():
    """A class 60 above the rest, ties at the top, and equal classes, in float32 against float64 by the definition."""
    x = np.array([[60.0, 0.0, 1.0, -2.0], [5.0, 5.0, -30.0, 4.9], [2.0, 2.0, 2.0, 2.0], [-50.0, 0.0, -60.0, 50.0]])
    rest = ~np.eye(4, dtype=bool)
    expected = np.stack([np.log(np.exp(x[:, rest[c]]).sum(1)) for c in range(4)], 1)

    @jax.jit
    def value_and_jacobian(x):
        return losses.logsumexp_of_others(x), jax.jacrev(lambda x: losses.logsumexp_of_others(x).sum(0))(x)

    found, slope = value_and_jacobian(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    for c in range(4):
        np.testing.assert_allclose(slope[c], np.exp(x - expected[:, c : c + 1]) * rest[c], atol=2e-6)
