"""Every formulation of a convolution gives the numbers and gradients of the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.core import UsageError
from asdjax.models import convolutions, layers

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

    y, dx, dkernel = value_and_gradients(convolutions.conv_grouped)
    np.testing.assert_allclose(y, reference, rtol=0, atol=1e-5 * np.abs(reference).max())
    for found, expected in zip(value_and_gradients(convolutions.depthwise), (y, dx, dkernel), strict=True):
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
                [
                    xla,
                    *map(padded, (convolutions.depthwise_shifted, convolutions.conv_grouped, convolutions.depthwise)),
                ],
                depth,
            ),
            "dense": (
                [xla, *map(padded, (convolutions.conv_product, convolutions.conv_grouped, convolutions.conv))],
                dense,
            ),
        }
        return {name: [value_and_gradients(form, kernel) for form in of] for name, (of, kernel) in forms.items()}

    for name, (expected, *found) in run().items():
        for formulation in found:
            for a, b in zip(formulation, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()), err_msg=name)


@pytest.mark.parametrize("padding, border", [("symmetric", ((1, 1), (1, 1))), ("same", ((0, 1), (1, 1)))])
def test_border_by_hand(padding, border):
    """Stride 2 of a 3x3 kernel over 6 rows ends at row 5, the zero after the last; over 5 columns at column 5 too."""
    assert convolutions.border(jnp.zeros((1, 6, 5, 1)), jnp.zeros((3, 3, 1, 1)), 2, padding) == border


def test_unknown_padding_is_refused():
    with pytest.raises(UsageError, match="'valid'; there is: symmetric, same"):
        convolutions.depthwise(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), padding="valid")


@pytest.mark.parametrize("form", [convolutions.conv_grouped, convolutions.depthwise_shifted])
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
    np.testing.assert_allclose(convolutions.pointwise(x, kernel), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride, channels", [(2, 1), (1, 3)])
def test_conv_as_a_product_agrees_with_the_convolution(stride, channels):
    x, kernel = normal(2, 9, 6, channels), normal(3, 3, channels, 4)
    weights = normal(2, -(-9 // stride), -(-6 // stride), 4)

    def value_and_gradients(form):
        y, vjp = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
        return y, *vjp(weights)

    found, expected = value_and_gradients(convolutions.conv), value_and_gradients(convolutions.conv_grouped)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))
