"""Heads against the golden ArcFace gradients, mixed losses and hand arithmetic."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import core, heads

GOLDEN = json.loads((Path(__file__).parent / "golden" / "arcface.json").read_text())
MIXUP = GOLDEN["mixup"]
CASES = [pytest.param(case, id=f"{case['mode']}-{case['s']}-{case['m']}") for case in GOLDEN["cases"]]


def arcface(case, **more):
    return heads.ArcFace(6, s=case["s"], margin=case["m"], mode=case["mode"], **more)


# numbers are what counts here, and unoptimised programs compile in two thirds of the time
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

HEADS = pytest.mark.parametrize(
    "head",
    [heads.ArcFace(6), heads.Linear(6), heads.Linear(6, loss="focal"), heads.Linear(6, loss="bce")],
    ids=["ArcFace", "Linear", "focal", "bce"],
)


@functools.cache
def start(head, width):
    """Fresh variables of a head over embeddings of a width."""
    return quick_jit(lambda key: head.init(key, jnp.zeros((1, width)), None, train=False))(jax.random.key(0))


def mean_loss(head, label):
    """(embedding, weight) -> mean loss, differentiable in both."""

    def function(x, weight):
        return head.apply({"params": {"kernel": weight}}, x, {"class": label}, train=True)[0].mean()

    return jax.value_and_grad(function, (0, 1))


def golden_inputs():
    return jnp.array(GOLDEN["x"]), jnp.array(GOLDEN["W"]), jnp.eye(6)[jnp.array(GOLDEN["y"])]


@pytest.mark.parametrize("case", CASES)
def test_arcface_losses_and_gradients(case):
    with jax.enable_x64(True):
        x, weight, label = golden_inputs()
        # uncompiled: all cases share their operations
        loss, (dx, dweight) = mean_loss(arcface(case), label)(x, weight)
    assert float(loss) == pytest.approx(case["loss_mean"], abs=1e-6)
    np.testing.assert_allclose(dx, case["grad_x"], rtol=0, atol=1e-6)
    assert float(np.linalg.norm(dweight)) == pytest.approx(case["grad_W_fro"], abs=1e-6)


@pytest.mark.parametrize("case", CASES[:3])
def test_arcface_losses_and_gradients_in_float32(case):
    x, weight, label = golden_inputs()
    loss, (dx, dweight) = quick_jit(mean_loss(arcface(case), label))(x, weight)
    assert float(loss) == pytest.approx(case["loss_mean"], rel=1e-5)
    np.testing.assert_allclose(dx, case["grad_x"], rtol=0, atol=2e-5 * np.abs(case["grad_x"]).max())
    assert float(np.linalg.norm(dweight)) == pytest.approx(case["grad_W_fro"], rel=2e-5)


@pytest.mark.parametrize("case", [c for c in CASES if "grad_x_straight_through" in c.values[0]])
def test_arcface_straight_through_gradient(case):
    with jax.enable_x64(True):
        x, weight, label = golden_inputs()
        loss, (dx, _) = mean_loss(arcface(case, gradient="straight_through"), label)(x, weight)
    assert float(loss) == pytest.approx(case["loss_mean"], abs=1e-6)
    np.testing.assert_allclose(dx, case["grad_x_straight_through"], rtol=0, atol=1e-6)


def test_arcface_logits_have_no_margin():
    head = heads.ArcFace(6, s=30.0)
    variables = {"params": {"kernel": jnp.array(GOLDEN["W"])}}
    _, logits = head.apply(variables, jnp.array(GOLDEN["x"]), {"class": jnp.eye(6)}, train=True)
    np.testing.assert_allclose(logits, 30 * np.array(GOLDEN["cosine"]), rtol=0, atol=1e-5 * 30)
    loss, at_test = head.apply(variables, jnp.array(GOLDEN["x"]), None, train=False)
    np.testing.assert_array_equal(at_test, logits)
    np.testing.assert_array_equal(loss, np.zeros(6))


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-8), (False, 1e-5)])
def test_arcface_of_mixed_labels(x64, tolerance):
    golden, y = MIXUP["arcface"], np.array(MIXUP["y"])
    label = MIXUP["lam"] * np.eye(3)[y] + (1 - MIXUP["lam"]) * np.eye(3)[y[MIXUP["perm"]]]
    with jax.enable_x64(x64):
        head = heads.ArcFace(3, s=golden["s"], margin=golden["m"])
        loss, _ = quick_jit(mean_loss(head, jnp.array(label)))(jnp.array(golden["emb"]), jnp.array(golden["W"]))
    assert float(loss) == pytest.approx(golden["loss"], rel=tolerance)


@HEADS
def test_soft_labels_mix_the_losses_of_hard_ones(head):
    x = jnp.array(GOLDEN["x"])
    variables = start(head, 4)
    y = np.array(GOLDEN["y"])
    hard_a, hard_b = np.eye(6)[y], np.eye(6)[(y + 1) % 6]
    labels = (hard_a, hard_b, 0.2 * hard_a + 0.8 * hard_b)
    a, b, both = (head.apply(variables, x, {"class": jnp.asarray(label)}, train=True)[0] for label in labels)
    np.testing.assert_allclose(both, 0.2 * a + 0.8 * b, rtol=2e-6)


@HEADS
def test_no_label_costs_nothing_and_teaches_nothing(head):
    x = jnp.array(GOLDEN["x"])
    variables = start(head, 4)
    label = jnp.eye(6).at[0].set(0.0)

    def loss(variables, x):
        each, _ = head.apply(variables, x, {"class": label}, train=True)
        return each[0], each

    (value, each), gradients = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)
    assert value == 0 and (each[1:] > 0).all()
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))


@HEADS
def test_a_head_padded_to_more_classes_costs_what_it_costs_alone(head):
    """Its variables are padded with zeros, as chunks.stack does."""
    larger = head.clone(n_classes=9)
    shapes = jax.eval_shape(lambda: larger.init(jax.random.key(0), jnp.zeros((1, 4)), None, train=False))
    with jax.enable_x64(True):  # matrix products of other sizes round differently
        alone = jax.tree.map(lambda v: v.astype(jnp.float64), start(head, 4))
        padded = jax.tree.map(
            lambda v, to: jnp.pad(v, [(0, m - n) for n, m in zip(v.shape, to.shape, strict=True)]), alone, shapes
        )
        x, label = jnp.array(GOLDEN["x"]), np.eye(9)[GOLDEN["y"]]
        loss, logits = head.apply(alone, x, {"class": jnp.array(label[:, :6])}, train=True)
        found, all_logits = larger.apply(padded, x, {"class": jnp.array(label)}, train=True)
    np.testing.assert_allclose(all_logits[:, :6], logits, rtol=0, atol=1e-12)
    assert (np.asarray(all_logits)[:, 6:] == heads.NEVER).all()
    np.testing.assert_allclose(found, loss, rtol=1e-12)


def test_linear_with_bce():
    """The golden logits, through a matrix that changes nothing."""
    golden = json.loads((Path(__file__).parent / "golden" / "bce.json").read_text())
    variables = {"params": {"Dense_0": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}}
    label, head = {"class": jnp.array(golden["inputs"]["Y"])}, heads.Linear(3, loss="bce")
    loss, _ = head.apply(variables, jnp.array(golden["inputs"]["logits_multi"]), label, train=True)
    assert float(loss.mean()) == pytest.approx(golden["outputs"]["multi_hot_mean"], rel=1e-6)


@pytest.mark.parametrize("x64", [True, False])
def test_arcface_of_an_embedding_on_its_class(x64):
    """The square root of ArcFace has no gradient there."""
    edge = GOLDEN["edge_cases"]["identical_vector"]
    with jax.enable_x64(x64):
        head = heads.ArcFace(2, s=edge["s"], margin=edge["m"])
        loss, gradients = quick_jit(mean_loss(head, jnp.array([[1.0, 0.0]])))(
            jnp.array(edge["x"]), jnp.array(edge["W"])
        )
    assert 0 < float(loss) < 1e-11
    assert all(np.isfinite(g).all() for g in gradients)


def test_arcface_of_a_zero_embedding_is_finite():
    head, label = heads.ArcFace(6), jnp.eye(6)
    loss, gradients = quick_jit(mean_loss(head, label))(jnp.zeros((6, 4)), jnp.array(GOLDEN["W"]))
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)


def test_many_aligned_pairs_stay_finite():
    """In float32 the cosine of equal vectors exceeds 1 by rounding in a seventh of the cases."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 128)), jnp.float32)
    loss, gradients = quick_jit(mean_loss(heads.ArcFace(64), jnp.eye(64)))(x, 3 * x)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)


@HEADS
def test_heads_compute_bfloat16_in_float32(head):
    x = jnp.array(GOLDEN["x"], jnp.bfloat16)
    variables = start(head, 4)
    label = {"class": jnp.eye(6)}
    found = head.apply(variables, x, label, train=True)
    assert all(leaf.dtype == jnp.float32 for leaf in (*found, *jax.tree.leaves(variables)))
    for a, b in zip(found, head.apply(variables, x.astype(jnp.float32), label, train=True), strict=True):
        np.testing.assert_array_equal(a, b)


def test_linear_by_hand():
    """Logits 2 * 1 + 1 = 3 and 0 + 2: the loss of the first class is log(1 + 1 / e)."""
    variables = {"params": {"Dense_0": {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.array([1.0, 2.0])}}}
    loss, logits = heads.Linear(2).apply(variables, jnp.array([[2.0]]), {"class": jnp.array([[1.0, 0.0]])}, train=True)
    np.testing.assert_array_equal(logits, [[3.0, 2.0]])
    np.testing.assert_allclose(loss, [math.log(1 + math.exp(-1))], rtol=1e-6)


@pytest.mark.parametrize("gamma", [2.0, 5.0])
def test_linear_with_focal_loss(gamma):
    """The golden logits, through a matrix that changes nothing."""
    golden = json.loads((Path(__file__).parent / "golden" / "focal.json").read_text())
    variables = {"params": {"Dense_0": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}}}
    head, label = heads.Linear(6, loss="focal", gamma=gamma), {"class": jnp.eye(6)[jnp.array(golden["y"])]}
    loss, logits = head.apply(variables, jnp.array(golden["logits"]), label, train=True)
    np.testing.assert_array_equal(logits, jnp.array(golden["logits"]))
    assert float(loss.mean()) == pytest.approx(golden["gamma"][str(int(gamma))]["mean"], rel=1e-5)


def test_parameters():
    """The classifiers of Bai 2022, Table 1: 128 x 6 + 6 and 128 x 6; Xavier's bound is sqrt(6 / (128 + 6))."""
    linear, margin = start(heads.Linear(6), 128), start(heads.ArcFace(6), 128)
    assert [sum(a.size for a in jax.tree.leaves(v["params"])) for v in (linear, margin)] == [774, 768]
    (weight,) = jax.tree.leaves(margin["params"])
    bound = math.sqrt(6 / 134)
    assert weight.shape == (6, 128)
    assert 0.95 * bound < float(jnp.abs(weight).max()) <= bound


def test_built_by_name():
    head = core.build(heads, {"name": "ArcFace", "s": 16.0}, n_classes=4)
    assert head == heads.ArcFace(4, s=16.0)
    for wrong in (heads.Linear(4, loss="hinge"), heads.ArcFace(1)):
        with pytest.raises(core.UsageError, match=r"there is: softmax, focal, bce\n|2 at least"):
            wrong.init(jax.random.key(0), jnp.zeros((1, 3)), None, train=False)


def test_a_linear_head_starts_as_asked():
    """Glorot's bound of 300 inputs and 6 classes, as Keras; Flax's own is normal, cut at two deviations."""
    kernel = start(heads.Linear(6, kernel_init="glorot_uniform"), 300)["params"]["Dense_0"]["kernel"]
    assert 0.97 < np.abs(kernel).max() / (6 / 306) ** 0.5 <= 1
    with pytest.raises(core.UsageError, match="there is: lecun_normal, glorot_uniform"):
        heads.Linear(6, kernel_init="zeros").init(jax.random.key(0), jnp.zeros((1, 3)), None, train=False)
