"""Building blocks of the networks against Flax, hand arithmetic and their plain formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asdjax.models import layers

RNG = np.random.default_rng(0)

# numbers are what counts here, and unoptimised programs compile in two thirds of the time
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def test_conv3x3_pads_both_sides():
    """A kernel with one 1 in its middle keeps the even rows and columns; 'SAME' would keep the odd ones."""
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = normal(1, 6, 4, 1)
    y = layers.Conv3x3(1, stride=2).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y, x[:, ::2, ::2])


def test_activations_by_hand():
    x = jnp.array([[-2.0, -2.0], [3.0, 0.0], [7.0, -0.0]])
    np.testing.assert_array_equal(layers.linear(x, ()), x)
    np.testing.assert_array_equal(layers.prelu(x, jnp.array([0.25, -1.0])), [[-0.5, 2.0], [3.0, 0.0], [7.0, 0.0]])
    np.testing.assert_array_equal(layers.relu6(x, ()), [[0.0, 0.0], [3.0, 0.0], [6.0, 0.0]])
    np.testing.assert_array_equal(layers.relu(x, ()), [[0.0, 0.0], [3.0, 0.0], [7.0, 0.0]])


@pytest.mark.parametrize("act, ends", [(layers.relu, [0.0]), (layers.relu6, [0.0, 6.0])])
def test_rectifiers_have_no_gradient_at_their_ends_and_hide_no_nan(act, ends):
    gradient = jax.vmap(jax.grad(lambda x: act(x, ())))
    np.testing.assert_array_equal(gradient(jnp.array([*ends, -1.0])), 0)
    np.testing.assert_array_equal(gradient(jnp.array([1e-6, 5.9])), 1)
    assert jnp.isnan(act(jnp.array(jnp.nan), ()))


def test_batch_norm_by_hand():
    """Batch 1, 3, 5, 7: mean 4, variance 5; running statistics move a tenth of the way from 0 and 1."""
    x = jnp.array([[1.0], [3.0], [5.0], [7.0]])
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x, True)
    y, stats = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y[:, 0], np.array([-3, -1, 1, 3]) / np.sqrt(5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(stats["batch_stats"]["mean"], [0.4], rtol=1e-6)
    np.testing.assert_allclose(stats["batch_stats"]["var"], [0.9 + 0.1 * 5], rtol=1e-6)
    y = module.apply(variables, x, False)
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    y = layers.BatchNorm(layers.prelu).init_with_output(jax.random.key(0), -x, False)[0]
    np.testing.assert_allclose(y, -0.25 * x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_batch_norm_with_constants_of_its_own():
    """Against Flax: by the batch, its running statistics after two calls, and by those."""
    ours = layers.BatchNorm(layers.relu, eps=1e-3, momentum=0.99)
    theirs = nn.BatchNorm(epsilon=1e-3, momentum=0.99)
    x = jnp.float32(RNG.normal(size=(8, 3)) * [1, 0.01, 3])  # eps is ten times the variance of the second
    variables = expected = theirs.init(jax.random.key(0), x, False)
    for _ in range(2):
        y, stats = ours.apply(variables, x, True, mutable=["batch_stats"])
        z, expected_stats = theirs.apply(expected, x, False, mutable=["batch_stats"])
        np.testing.assert_allclose(y, nn.relu(z), rtol=0, atol=1e-5)
        variables, expected = {**variables, **stats}, {**expected, **expected_stats}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), variables, expected)
    z = theirs.apply(expected, x, True)
    np.testing.assert_allclose(ours.apply(variables, x, False), nn.relu(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-5, 1e-1])
@pytest.mark.parametrize("act", [layers.linear, layers.relu, layers.relu6, layers.prelu])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (8, 6)])
def test_batch_norm_and_its_gradients_are_those_of_flax(act, shape, eps):
    """Values and gradients of the plain formula by autodiff, in float64, and of float32 with a mean far from zero."""
    c = shape[-1]
    x, weights = RNG.normal(size=shape) * 3 + RNG.normal(size=c) * 10, RNG.normal(size=shape)
    scale, bias, slope = 2 + RNG.normal(size=(3, c))
    slope = slope if act is layers.prelu else ()

    def plain(x, scale, bias, slope):
        module = nn.BatchNorm(use_running_average=False, epsilon=eps, dtype=x.dtype, param_dtype=x.dtype)
        y, _ = module.apply({"params": {"scale": scale, "bias": bias}, "batch_stats": {}}, x, mutable=True)
        return act(y, slope)

    def ours(x, scale, bias, slope):
        return layers.batch_norm(act, x, scale, bias, slope, eps)[0]

    def value_and_gradients(form, *args):
        y, vjp = jax.vjp(form, *args)
        return jax.tree.leaves((y, vjp(jnp.asarray(weights, y.dtype))))

    args = (x, scale, bias, slope)
    with jax.enable_x64(True):
        expected = value_and_gradients(plain, *jax.tree.map(jnp.asarray, args))
        for a, b in zip(value_and_gradients(ours, *jax.tree.map(jnp.asarray, args)), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())
    single = value_and_gradients(ours, *jax.tree.map(jnp.float32, args))
    for a, b in zip(single, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_batch_norm_gives_the_statistics_of_numpy():
    x = RNG.normal(size=(5, 4, 3, 2)) + 3
    _, mean, var = layers.batch_norm(layers.linear, jnp.float32(x), jnp.ones(2), jnp.zeros(2), ())
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "module, fan_out",
    [(layers.Conv3x3(400), 9 * 400), (layers.Depthwise(), 9 * 300), (layers.Pointwise(400), 400)],
    ids=lambda m: type(m).__name__,
)
def test_kernels_start_with_variance_2_by_fan_out(module, fan_out):
    params = quick_jit(lambda key: module.init(key, jnp.zeros((1, 1, 1, 300))))(jax.random.key(0))["params"]
    (kernel,) = jax.tree.leaves(params)
    n = kernel.size
    assert abs(float(kernel.std()) / np.sqrt(2 / fan_out) - 1) < 4 / np.sqrt(2 * n)  # four standard errors
    assert abs(float(kernel.mean())) < 4 * np.sqrt(2 / fan_out / n)
    # a truncated normal would end at 2 standard deviations
    assert float(jnp.abs(kernel).max()) > 2.5 * np.sqrt(2 / fan_out)


@pytest.mark.parametrize(
    "t, c, s, residual, kernels",
    [(2, 4, 1, True, 3), (2, 4, 2, False, 3), (2, 6, 1, False, 3), (1, 4, 1, True, 2)],
)
def test_bottleneck_adds_its_input_where_shapes_agree(t, c, s, residual, kernels):
    """With a last BatchNorm that gives 0, what remains is the input, or nothing."""
    x = normal(2, 6, 4, 4)
    block = layers.Bottleneck(t, c, s, layers.relu6)
    variables = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    assert sum("kernel" in module for module in variables["params"].values()) == kernels
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), variables)
    y = quick_jit(lambda zeros, x: block.apply(zeros, x, False))(zeros, x)
    np.testing.assert_array_equal(y, x if residual else jnp.zeros((2, 6 // s, 4 // s, c)))
