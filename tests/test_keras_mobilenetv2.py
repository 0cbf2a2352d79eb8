"""MobileNetV2 of the official baselines: numbers, gradients and moving statistics of Keras with the same weights."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from asdjax import core, models
from asdjax.models import convolutions, keras_mobilenetv2

GOLDEN = json.loads((Path(__file__).parent / "golden" / "keras_mobilenetv2.json").read_text())
NET = models.KerasMobileNetV2()
RTOL = 2e-10  # in float64; the golden file has eleven digits
KINDS = {
    "kernel": ("params", "kernel"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}

# numbers are what counts here, and unoptimised programs compile in two thirds of the time
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def u(i, k):
    """The rule that the golden file fills weights by; on [-1, 1)."""
    z = 43758.5453 * np.sin(12.9898 * i + 78.233 * k)
    return 2 * (z - np.floor(z)) - 1


def fill(k, name, shape):
    """The k-th weight of Keras by the rules of the golden file."""
    x = u(np.arange(np.prod(shape)), k).reshape(shape)
    match name.split("/")[1]:
        case "kernel":
            return np.sqrt(1.2 / np.prod(shape[:-2] if "depthwise" in name else shape[:-1])) * x
        case "gamma":
            return 2 + 0.5 * x
        case "beta":
            return 1 + x
        case "bias":
            return 0.3 * x
        case "moving_mean":
            return 0.1 * x
        case "moving_variance":
            return 1 + 0.3 * x


def path(name):
    """Keras' 'block_1_expand_BN/gamma' -> where our variables have it: params, block_1, expand_BN, scale."""
    layer, kind = name.split("/")
    collection, leaf = KINDS[kind]
    block = re.fullmatch(r"(expanded_conv|block_\d+)_(.+)", layer)
    return collection, *(block.groups() if block else (layer,)), leaf


def variables():
    """Ours, in float64, of Keras' weights by our own shapes: all orders of axes are the same in memory."""
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(lambda: NET.init(jax.random.key(0), jnp.zeros((1, 64, 128)), False))
    )
    filled = {name: fill(k, name, shape) for k, (name, shape) in enumerate(GOLDEN["weights"])}
    kernel, bias = filled.pop("predictions/kernel"), filled.pop("predictions/bias")
    ours = {path(name): weight.reshape(shapes[path(name)].shape) for name, weight in filled.items()}
    assert set(ours) == set(shapes)
    return traverse_util.unflatten_dict(ours), (kernel, bias)


def units():
    b, t, f = np.indices((4, 64, 128))
    return 3 * np.sin(0.1 * (b + 1) * t + 0.07 * (b + 2) * f) + u(np.arange(b.size), 1000).reshape(b.shape)


@functools.cache
def found():
    """All that the golden file holds, as ours computes it in one program, in float64."""

    def function(variables, dense, x):
        kernel, bias = dense
        pooled, seen = NET.apply(variables, x, False, capture_intermediates=True, mutable=["intermediates"])
        stages = {name: seen["intermediates"][name]["__call__"][0] for name in GOLDEN["eval"]["stages"]}

        def loss(params):
            y, stats = NET.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            logits = y @ kernel + bias
            return -jnp.diag(jax.nn.log_softmax(logits)).mean(), (jax.nn.softmax(logits), stats)

        (value, (by_batch, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {
            "eval": {"stages": stages, "pooled": pooled, "softmax": jax.nn.softmax(pooled @ kernel + bias)},
            "train": {"softmax": by_batch, "loss": value, "variables": {"params": gradient, **stats}},
        }

    with jax.enable_x64(True):
        out = quick_jit(function)(*jax.tree.map(jnp.asarray, (*variables(), units())))
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float64")}
    return jax.tree.map(np.asarray, out)


def summary(x):
    """Norm and one more sum, which the order of the elements changes."""
    return np.linalg.norm(x), x.ravel() @ u(np.arange(x.size), 2000)


def test_outputs_by_running_statistics():
    ours, golden = found()["eval"], GOLDEN["eval"]
    for name, stage in golden["stages"].items():
        y = ours["stages"][name]
        assert list(y.shape[1:]) == stage["shape"], name
        np.testing.assert_allclose(summary(y), stage["summary"], rtol=0, atol=RTOL * stage["summary"][0], err_msg=name)
        np.testing.assert_allclose([y.mean(), y.std()], [stage["mean"], stage["std"]], rtol=RTOL, err_msg=name)
    row = np.array(golden["pooled_row0"])
    np.testing.assert_allclose(ours["pooled"][0], row, rtol=0, atol=RTOL * row.max())
    np.testing.assert_allclose(summary(ours["pooled"]), golden["pooled"], rtol=0, atol=RTOL * golden["pooled"][0])
    np.testing.assert_allclose(ours["softmax"], golden["softmax"], rtol=0, atol=RTOL)


def test_outputs_by_batch_statistics():
    ours, golden = found()["train"], GOLDEN["train"]
    np.testing.assert_allclose(ours["softmax"], golden["softmax"], rtol=0, atol=RTOL)
    np.testing.assert_allclose(ours["loss"], golden["loss"], rtol=RTOL)


@pytest.mark.parametrize("which", ["gradients", "moving"])
def test_gradients_and_moving_statistics(which):
    """One training step. A bias before a 1x1 convolution and BatchNorm has no gradient: rounding is all there is."""
    ours = traverse_util.flatten_dict(found()["train"]["variables"])
    golden = {path(name): x for name, x in GOLDEN["train"][which].items() if not name.startswith("predictions")}
    assert set(golden) == {name for name in ours if (name[0] == "params") == (which == "gradients")}
    for name, expected in golden.items():
        atol = RTOL * max(expected[0], 0.1)
        np.testing.assert_allclose(summary(ours[name]), expected, rtol=0, atol=atol, err_msg=str(name))


def test_float32_keeps_five_digits():
    weights, x = jax.tree.map(jnp.float32, (variables()[0], units()[:1]))
    pooled = quick_jit(lambda v, x: NET.apply(v, x, False))(weights, x)
    row = np.array(GOLDEN["eval"]["pooled_row0"])
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled[0], row, rtol=0, atol=1e-5 * row.max())


def test_symmetric_padding_is_another_network(monkeypatch):
    """What the comparison is worth: the other padding moves features by as much as they are large."""
    border = convolutions.border
    monkeypatch.setattr(
        convolutions, "border", lambda x, kernel, stride, padding: border(x, kernel, stride, "symmetric")
    )
    weights, x = jax.tree.map(jnp.float32, (variables()[0], units()[:1]))
    pooled = quick_jit(lambda v, x: NET.apply(v, x, False))(weights, x)
    row = np.array(GOLDEN["eval"]["pooled_row0"])
    assert np.abs(pooled[0] - row).max() > 0.1 * row.max()


@pytest.mark.parametrize("alpha", GOLDEN["counts"])
def test_parameters_of_every_width(alpha):
    """Keras counts moving statistics and the class layer, here of 6 classes."""
    net = core.build(models, {"name": "KerasMobileNetV2", "alpha": float(alpha)})
    x = jnp.zeros((1, 64, 128))
    pooled, tree = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), x, False))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count + 6 * (pooled.shape[1] + 1) == GOLDEN["counts"][alpha]


def test_kernels_start_as_those_of_keras():
    """Uniform up to sqrt(6 / (fan in + fan out)), with Keras' fans."""
    params = quick_jit(lambda: NET.init(jax.random.key(0, impl="rbg"), jnp.zeros((1, 64, 128)), False)["params"])()
    params = traverse_util.flatten_dict(params)
    fans = {path(name)[1:]: sum(fans) for name, fans in GOLDEN["fans"].items() if not name.startswith("predictions")}
    assert {name for name in params if name[-1] == "kernel"} == set(fans)
    for name, total in fans.items():
        kernel = np.asarray(params[name], np.float64) / np.sqrt(6 / total)
        assert np.abs(kernel).max() < 1 + 1e-6, name  # float32
        # standard deviation sqrt(1/3), and that of the square sqrt(4/45): five standard errors
        assert abs((kernel**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / kernel.size), name
        assert abs(kernel.mean()) < 5 * np.sqrt(1 / 3 / kernel.size), name


def test_channels_are_rounded_by_hand():
    """8 at least; 11 -> 8 would lose more than a tenth, so 16; 12 -> 16, half-way up; 140 -> 144; 131 -> 128."""
    assert [keras_mobilenetv2.rounded(c) for c in (1, 8, 11, 12, 16, 131, 140)] == [8, 8, 16, 16, 16, 128, 144]


def test_lowers_for_tpu():
    x = jax.ShapeDtypeStruct((2, 64, 128), jnp.float32)
    tree = jax.eval_shape(functools.partial(NET.init, train=False), jax.random.key(0), x)
    program = jax.export.export(jax.jit(lambda v, x: NET.apply(v, x, False)), platforms=["tpu"])(tree, x)
    assert program.platforms == ("tpu",)
    assert "stablehlo.convolution" in program.mlir_module()
    assert program.out_avals[0].shape == (2, 1280)
