"""Building blocks of the mobile CNNs, in formulations that are fast where they run.

XLA:CPU has no kernel for grouped convolutions (0.5 GFLOP/s whatever the shape) and transposes the gradients of 4-D 1x1
convolutions in memory. So a 1x1 convolution is a 2-D matrix product everywhere, and a depthwise convolution is a sum of
shifted products on CPU, the plain convolution elsewhere. Elementwise work is bound by memory: normalisation and
activation are one function, whose gradient needs nothing but the map that came in. Maps are (B, H, W, C).

Layers compute in the type of the map, with parameters and statistics in float32 at least.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from asdjax.core import UsageError, by_device
from asdjax.losses import full_precision

EPS = 1e-5  # of BatchNorm, as PyTorch's

# He et al. 2015 with fan_out = k * k * c_out, for depthwise kernels too: the choice of the MobileFaceNet recipes.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Initializer = nn.initializers.Initializer
Activation = Callable[[jax.Array, Any], jax.Array]  # (x (..., C), slope (C,) or ()) -> (..., C)
Border = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after the rows, and the columns


def in_type(x: jax.Array, dtype: str) -> jax.Array:
    """x as a network of this `dtype` takes it: bfloat16, or for 'float32' as it is.

    Raises:
        UsageError: unknown dtype.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"backbone.dtype is {dtype!r}; there is: float32, bfloat16")
    return x.astype(jnp.bfloat16) if dtype == "bfloat16" else x


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as one 2-D matrix product.

    Args:
        x: (..., C).
        kernel: (C, C').

    Returns:
        (..., C').
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "symmetric") -> jax.Array:
    """Depthwise convolution.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, 1, C), k odd.
        stride: of both axes.
        padding: of `border`.

    Returns:
        (B, (H - 1) // stride + 1, (W - 1) // stride + 1, C).

    Raises:
        UsageError: unknown padding.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, w: depthwise_shifted(x, w, stride, padding),
        default=lambda x, w: conv_grouped(x, w, stride, padding),
    )


def conv_grouped(x: jax.Array, kernel: jax.Array, stride: int, padding: str = "symmetric") -> jax.Array:
    """`conv`, or `depthwise` where the kernel is (k, k, 1, C) for C > 1 channels, as XLA's convolution."""
    pad = border(x, kernel, stride, padding)
    numbers, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=numbers, feature_group_count=groups
    )


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "symmetric") -> jax.Array:
    """Dense convolution.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, C'), k odd.
        stride: of both axes.
        padding: of `border`.

    Returns:
        (B, (H - 1) // stride + 1, (W - 1) // stride + 1, C').

    Raises:
        UsageError: unknown padding.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, w: conv_product(x, w, stride, padding),
        default=lambda x, w: conv_grouped(x, w, stride, padding),
    )


def conv_product(x: jax.Array, kernel: jax.Array, stride: int, padding: str = "symmetric") -> jax.Array:
    """`conv` as one matrix product over the k * k shifted maps side by side.

    For the few channels of a stem. Whether XLA:CPU finds its fast kernel for the kernel gradient of a convolution hangs
    on the layout around it: within a loop it does not, and that one gradient then is a third of the step.
    """
    x = _pad(x, border(x, kernel, stride, padding))
    shifted = jnp.concatenate([tap for _, _, tap in _taps(x, kernel, stride)], axis=-1)
    return pointwise(shifted, kernel.reshape(-1, kernel.shape[-1]))


def depthwise_shifted(x: jax.Array, kernel: jax.Array, stride: int, padding: str = "symmetric") -> jax.Array:
    """`depthwise` as shifted multiply-adds, with gradients of the same kind."""
    return _shifted(x, kernel, stride, border(x, kernel, stride, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(x: jax.Array, kernel: jax.Array, stride: int, pad: Border) -> jax.Array:
    return _multiply_add(_pad(x, pad), kernel, stride)


def _shifted_fwd(x, kernel, stride, pad):
    x = _pad(x, pad)  # kept with its border: what made x is then written once, straight into the padded map
    return _multiply_add(x, kernel, stride), (x, kernel)


def _shifted_bwd(stride, pad, residuals, g):
    x, kernel = residuals
    return _input_gradient(x, kernel, stride, pad, g), _kernel_gradient(x, kernel, stride, g)


_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def border(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> Border:
    """Zeros before and after the rows and the columns of a map.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, ...), k odd.
        stride: of both axes.
        padding: 'symmetric', k // 2 on every side, as PyTorch pads; or 'same', no more than the kernel needs and the
            odd one at the end, as Keras pads: at stride 2 an even axis gets one zero, after it.

    Raises:
        UsageError: unknown padding.
    """
    sizes = tuple(zip(x.shape[1:3], kernel.shape[:2], strict=True))
    if padding == "symmetric":
        return tuple((k // 2, k // 2) for _, k in sizes)
    if padding == "same":
        totals = (max((n - 1) // stride * stride + k - n, 0) for n, k in sizes)
        return tuple((total // 2, total - total // 2) for total in totals)
    raise UsageError(f"padding is {padding!r}; there is: symmetric, same")


def _pad(x: jax.Array, pad: Border) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pad, (0, 0)))


def _taps(x: jax.Array, kernel: jax.Array, stride: int) -> Iterator[tuple[int, int, jax.Array]]:
    """(i, j, the part of the padded map that kernel[i, j] multiplies)."""
    kh, kw = kernel.shape[:2]
    _, h, w, _ = x.shape
    for i in range(kh):
        for j in range(kw):
            yield i, j, x[:, i : h - kh + i + 1 : stride, j : w - kw + j + 1 : stride]


def _multiply_add(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    # one sum expression: XLA:CPU fuses it into a single vectorised loop
    return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for i, j, tap in _taps(x, kernel, stride)))


def _input_gradient(x: jax.Array, kernel: jax.Array, stride: int, pad: Border, g: jax.Array) -> jax.Array:
    """The flipped kernel over the output gradient, with stride - 1 zeros between its rows and columns."""
    pads = [
        (k - 1 - before, n - 1 - after - (out - 1) * stride, stride - 1)
        for (before, after), k, n, out in zip(pad, kernel.shape[:2], x.shape[1:3], g.shape[1:3], strict=True)
    ]
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    return _multiply_add(g, kernel[::-1, ::-1], 1)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, stride: int, g: jax.Array) -> jax.Array:
    def one(pair):
        x, g = (a[None] for a in pair)
        taps = (full_precision(tap) * full_precision(g) for _, _, tap in _taps(x, kernel, stride))
        return jnp.stack([tap.sum((0, 1, 2)) for tap in taps])

    # image by image the k * k products stay in the cache; over the whole batch at once they go through memory
    each = by_device(lambda x, g: lax.map(one, (x, g)))(x, g)
    return each.sum(0).reshape(kernel.shape).astype(kernel.dtype)


def linear(x: jax.Array, slope: tuple) -> jax.Array:
    """No activation."""
    return x


def relu(x: jax.Array, slope: tuple) -> jax.Array:
    """max(x, 0), without gradient at 0, as in PyTorch and Keras."""
    return jax.nn.relu(x)


def relu6(x: jax.Array, slope: tuple) -> jax.Array:
    """x clipped to [0, 6], without gradient at the ends, as in PyTorch; jnp.minimum would share it out among ties."""
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


def prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    """x where positive, slope (C,) * x elsewhere (He et al. 2015)."""
    return jnp.where(x > 0, x, slope * x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def batch_norm(
    act: Activation, x: jax.Array, scale: jax.Array, bias: jax.Array, slope, eps: float = EPS
) -> tuple[jax.Array, ...]:
    """act((x - mean) / sqrt(var + eps) * scale + bias) by the statistics of the batch.

    Autodiff would keep three maps for the way back and sum over four; this keeps x alone.

    Args:
        act: linear, relu, relu6 or prelu.
        x: (..., C).
        scale, bias: (C,).
        slope: (C,) of prelu, else ().
        eps: added to the variance.

    Returns:
        (..., C), mean (C,) and variance (C,); the last two are given no gradient.
    """
    return _batch_norm_fwd(act, x, scale, bias, slope, eps)[0]


def _batch_norm_fwd(act, x, scale, bias, slope, eps):
    wide, axes = full_precision(x), tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.maximum(0, jnp.square(wide).mean(axes) - jnp.square(mean))  # neither sum waits for the other
    rstd = lax.rsqrt(var + eps)
    y = act((wide - mean) * (rstd * scale) + bias, slope).astype(x.dtype)
    return (y, mean, var), (x, mean, rstd, scale, bias, slope)


def _batch_norm_bwd(act, eps, residuals, g):
    x, mean, rstd, scale, bias, slope = residuals
    wide, g, axes = full_precision(x), full_precision(g[0]), tuple(range(x.ndim - 1))
    gain = rstd * scale
    u = (wide - mean) * gain + bias
    # XLA:CPU sums a product of two maps without writing it down, but writes down every other summand: so du is the one
    # map that is summed, against x rather than against the normalised x, and the slope's sum is g times one map
    (du,) = jax.vjp(lambda u: act(u, slope), u)[1](g)
    dslope = (jnp.minimum(u, 0) * g).sum(axes) if act is prelu else slope
    dbias = du.sum(axes)
    dscale = rstd * ((du * wide).sum(axes) - mean * dbias)
    n = x.size // x.shape[-1]
    dx = gain * du - (wide - mean) * (gain * rstd * dscale / n) - gain * dbias / n
    return dx.astype(x.dtype), dscale, dbias, dslope


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's defaults (momentum 0.1 there is 0.9 here) and the activation after it.

    The running variance is that of the batch divided by n, as in Flax and Keras 3; PyTorch divides by n - 1.

    Attributes:
        act: linear, relu, relu6, or prelu with one slope per channel from 0.25.
        eps: added to the variance.
        momentum: what the running statistics keep of their last value.
    """

    act: Activation = linear
    eps: float = EPS
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(..., C) -> (..., C): by the batch where `train`, else by the running statistics."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        slope = self.param("slope", nn.initializers.constant(0.25), shape) if self.act is prelu else ()
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            gain = lax.rsqrt(var.value + self.eps) * scale
            return self.act((full_precision(x) - mean.value) * gain + bias, slope).astype(x.dtype)
        y, batch_mean, batch_var = batch_norm(self.act, x, scale, bias, slope, self.eps)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


class Pointwise(nn.Module):
    """1x1 convolution without bias: (..., C) -> (..., features)."""

    features: int
    kernel_init: Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return pointwise(x, kernel.astype(x.dtype))


class Depthwise(nn.Module):
    """Depthwise 3x3 convolution without bias: (B, H, W, C) -> (B, H', W', C)."""

    stride: int = 1
    size: int = 3
    padding: str = "symmetric"
    kernel_init: Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, 1, x.shape[-1]))
        return depthwise(x, kernel.astype(x.dtype), self.stride, self.padding)


class Conv3x3(nn.Module):
    """Dense 3x3 convolution without bias, padded by one on every side: (B, H, W, C) -> (B, H', W', features)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, x.shape[-1], self.features))
        return conv(x, kernel.astype(x.dtype), self.stride)


class Bottleneck(nn.Module):
    """Inverted residual (Sandler et al. 2018, 'MobileNetV2', section 3.3): expand, depthwise 3x3, project linearly.

    Attributes:
        t: expansion; at 1 there is no expanding convolution.
        c: output channels.
        s: stride of the depthwise convolution. The input is added where s is 1 and it has c channels.
        act: activation after the first two.
    """

    t: int
    c: int
    s: int
    act: Activation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.t != 1:
            y = BatchNorm(self.act)(Pointwise(self.t * x.shape[-1])(y), train)
        y = BatchNorm(self.act)(Depthwise(self.s)(y), train)
        y = BatchNorm()(Pointwise(self.c)(y), train)
        return x + y if self.s == 1 and x.shape[-1] == self.c else y
