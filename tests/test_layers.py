"""Building blocks of the mobile CNNs: every formulation gives the numbers and gradients of the plain convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asdjax.core import UsageError
from asdjax.models import layers

RNG = np.random.default_rng(0)

# numbers are what counts here, and unoptimised programs compile in two thirds of the time
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def convolved(x, kernel, stride):
    """(B, H, W, C), (k, k, 1, C) by the definition, in numpy float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    k = kernel.shape[0]
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijc->bhwc", windows, kernel[:, :, 0])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, size", [((9, 7), 3), ((8, 6), 3), ((6, 1), 3), ((7, 8), 5)])
def test_depthwise_formulations_agree(shape, size, stride):
    x, kernel = normal(2, *shape, 3), normal(size, size, 1, 3)
    reference = convolved(x, kernel, stride)
    weights = normal(*reference.shape)

    def value_and_gradients(form):
        def function(x, kernel, weights):
            y, vjp = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
            return y, *vjp(weights)

        return quick_jit(function)(x, kernel, weights)

    y, dx, dkernel = value_and_gradients(layers.conv_grouped)
    np.testing.assert_allclose(y, reference, rtol=0, atol=1e-5 * np.abs(reference).max())
    for found, expected in zip(value_and_gradients(layers.depthwise), (y, dx, dkernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, size", [((9, 7), 3), ((8, 6), 3), ((5, 1), 3), ((7, 8), 5), ((2, 3), 5)])
def test_same_padding_is_that_of_xla(shape, size, stride):
    """Values and gradients of lax's own 'SAME', of depthwise and of dense convolutions, in every formulation."""
    x, depth, dense = normal(2, *shape, 3), normal(size, size, 1, 3), normal(size, size, 3, 4)
    weights = normal(2, *(-(-n // stride) for n in shape), 4)

    def xla(x, kernel, stride):
        numbers, groups = ("NHWC", "HWIO", "NHWC"), 3 // kernel.shape[2]
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    def padded(form):
        return functools.partial(form, padding="same")

    def value_and_gradients(form, kernel):
        y, vjp = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
        return y, *vjp(weights[..., : y.shape[-1]])

    @quick_jit
    def run():
        forms = {
            "depthwise": (
                [xla, *map(padded, (layers.depthwise_shifted, layers.conv_grouped, layers.depthwise))],
                depth,
            ),
            "dense": ([xla, *map(padded, (layers.conv_product, layers.conv_grouped, layers.conv))], dense),
        }
        return {name: [value_and_gradients(form, kernel) for form in of] for name, (of, kernel) in forms.items()}

    for name, (expected, *found) in run().items():
        for formulation in found:
            for a, b in zip(formulation, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()), err_msg=name)


@pytest.mark.parametrize("padding, border", [("symmetric", ((1, 1), (1, 1))), ("same", ((0, 1), (1, 1)))])
def test_border_by_hand(padding, border):
    """Stride 2 of a 3x3 kernel over 6 rows ends at row 5, the zero after the last; over 5 columns at column 5 too."""
    assert layers.border(jnp.zeros((1, 6, 5, 1)), jnp.zeros((3, 3, 1, 1)), 2, padding) == border


def test_unknown_padding_is_refused():
    with pytest.raises(UsageError, match="'valid'; there is: symmetric, same"):
        layers.depthwise(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), padding="valid")


@pytest.mark.parametrize("form", [layers.conv_grouped, layers.depthwise_shifted])
def test_weights_that_only_see_padding_get_no_gradient(form):
    """On a map of width 1 the outer columns of a 3x3 kernel lie on zeros: true zeros in training, not a fault."""
    gradient = quick_jit(jax.grad(lambda kernel, x: jnp.sum(form(x, kernel, 1) ** 2)))
    gradient = gradient(normal(3, 3, 1, 4), normal(2, 8, 1, 4))
    assert not gradient[:, 0].any() and not gradient[:, 2].any()
    assert gradient[:, 1].all()


@pytest.mark.parametrize("platform, grouped", [("tpu", True), ("cuda", True), ("cpu", False)])
def test_depthwise_lowers_for(platform, grouped):
    def loss(params, x):
        return jnp.sum(layers.Depthwise(stride=2).apply(params, x) ** 2)

    x = jax.ShapeDtypeStruct((2, 8, 6, 4), jnp.float32)
    params = jax.eval_shape(layers.Depthwise().init, jax.random.key(0), x)
    program = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=[platform])(params, x)
    assert ("stablehlo.convolution" in program.mlir_module()) == grouped


def test_pointwise_is_a_1x1_convolution():
    x, kernel = normal(2, 5, 3, 4), normal(4, 6)
    expected = np.einsum("bhwc,cd->bhwd", np.asarray(x, np.float64), np.asarray(kernel, np.float64))
    np.testing.assert_allclose(layers.pointwise(x, kernel), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride, channels", [(2, 1), (1, 3)])
def test_conv_as_a_product_agrees_with_the_convolution(stride, channels):
    x, kernel = normal(2, 9, 6, channels), normal(3, 3, channels, 4)
    weights = normal(2, -(-9 // stride), -(-6 // stride), 4)

    def value_and_gradients(form):
        y, vjp = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
        return y, *vjp(weights)

    found, expected = value_and_gradients(layers.conv), value_and_gradients(layers.conv_grouped)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


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
