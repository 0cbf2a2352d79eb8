"""Building blocks of the networks, in formulations that are fast where they run.

Elementwise work is bound by memory: normalisation and activation are one function, whose gradient needs nothing but the
map that came in. Maps are (B, H, W, C).

Layers compute in the type of the map, with parameters and statistics in float32 at least.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from asdjax.core import UsageError
from asdjax.losses import full_precision
from asdjax.models.convolutions import conv, depthwise, pointwise

EPS = 1e-5  # of BatchNorm, as PyTorch's

# He et al. 2015 with fan_out = k * k * c_out, for depthwise kernels too: the choice of the MobileFaceNet recipes.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Initializer = nn.initializers.Initializer
Activation = Callable[[jax.Array, Any], jax.Array]  # (x (..., C), slope (C,) or ()) -> (..., C)


def in_type(x: jax.Array, dtype: str) -> jax.Array:
    """x as a network of this `dtype` takes it: bfloat16, or for 'float32' as it is.

    Raises:
        UsageError: unknown dtype.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"backbone.dtype is {dtype!r}; there is: float32, bfloat16")
    return x.astype(jnp.bfloat16) if dtype == "bfloat16" else x


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


def maximum_over_frames(x: jax.Array) -> jax.Array:
    """x (B, L, F) -> (B, F), with the gradient going to the first of the largest."""
    # The gradient of x.max(1) compares x with its maximum. XLA may compute x anew for that, rounded otherwise: then no
    # entry is the largest, and the gradient is 0 / 0 (seen on CPU).
    largest = jax.nn.one_hot(x.argmax(1), x.shape[1], dtype=x.dtype, axis=1)
    return (x * largest).sum(1)
