"""Building blocks of the mobile CNNs, in formulations that are fast where they run.

XLA:CPU has no kernel for grouped convolutions (0.5 GFLOP/s whatever the shape) and transposes the gradients of 4-D 1x1
convolutions in memory. So a 1x1 convolution is a 2-D matrix product everywhere, and a depthwise convolution is a sum of
shifted products on CPU, the plain convolution elsewhere. Maps are (B, H, W, C).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# He et al. 2015 with fan_out = k * k * c_out, for depthwise kernels too: the choice of the MobileFaceNet recipes.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as one 2-D matrix product.

    Args:
        x: (..., C).
        kernel: (C, C').

    Returns:
        (..., C').
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Depthwise convolution with k // 2 zeros on every side, as PyTorch pads ('SAME' is one-sided at stride 2).

    Args:
        x: (B, H, W, C).
        kernel: (k, k, 1, C), k odd.
        stride: of both axes.

    Returns:
        (B, (H - 1) // stride + 1, (W - 1) // stride + 1, C).
    """
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, w: depthwise_shifted(x, w, stride), default=lambda x, w: conv_grouped(x, w, stride)
    )


def conv_grouped(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv`, or `depthwise` where the kernel is (k, k, 1, C) for C > 1 channels, as XLA's convolution."""
    pad = [(k // 2, k // 2) for k in kernel.shape[:2]]
    numbers, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=numbers, feature_group_count=groups
    )


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Dense convolution with k // 2 zeros on every side.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, C'), k odd.
        stride: of both axes.

    Returns:
        (B, (H - 1) // stride + 1, (W - 1) // stride + 1, C').
    """
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, w: conv_product(x, w, stride), default=lambda x, w: conv_grouped(x, w, stride)
    )


def conv_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv` as one matrix product over the k * k shifted maps side by side.

    For the few channels of a stem. Whether XLA:CPU finds its fast kernel for the kernel gradient of a convolution hangs
    on the layout around it: within a loop it does not, and that one gradient then is a third of the step.
    """
    shifted = jnp.concatenate([tap for _, _, tap in _taps(_pad(x, kernel), kernel, stride)], axis=-1)
    return pointwise(shifted, kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`depthwise` as shifted multiply-adds, with gradients of the same kind."""
    return _multiply_add(_pad(x, kernel), kernel, stride)


def _shifted_fwd(x, kernel, stride):
    return depthwise_shifted(x, kernel, stride), (x, kernel)


def _shifted_bwd(stride, residuals, g):
    x, kernel = residuals
    return _input_gradient(x, kernel, stride, g), _kernel_gradient(x, kernel, stride, g)


depthwise_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def _pad(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((k // 2, k // 2) for k in kernel.shape[:2]), (0, 0)))


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


def _input_gradient(x: jax.Array, kernel: jax.Array, stride: int, g: jax.Array) -> jax.Array:
    """The flipped kernel over the output gradient, with stride - 1 zeros between its rows and columns."""
    pads = [
        (k // 2, n + k // 2 - 1 - (out - 1) * stride, stride - 1)
        for k, n, out in zip(kernel.shape[:2], x.shape[1:3], g.shape[1:3], strict=True)
    ]
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    return _multiply_add(g, kernel[::-1, ::-1], 1)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, stride: int, g: jax.Array) -> jax.Array:
    def one(pair):
        x, g = (a[None] for a in pair)
        return jnp.stack([jnp.sum(tap * g, (0, 1, 2)) for _, _, tap in _taps(_pad(x, kernel), kernel, stride)])

    # image by image the k * k products stay in the cache; over the whole batch at once they go through memory
    return lax.map(one, (x, g)).sum(0).reshape(kernel.shape).astype(kernel.dtype)


def batch_norm(train: bool) -> nn.BatchNorm:
    """BatchNorm with PyTorch's defaults: eps 1e-5, momentum 0.1 there is 0.9 here."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)


class Pointwise(nn.Module):
    """1x1 convolution without bias: (..., C) -> (..., features)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return pointwise(x, self.param("kernel", KERNEL_INIT, (x.shape[-1], self.features)))


class Depthwise(nn.Module):
    """Depthwise 3x3 convolution without bias: (B, H, W, C) -> (B, H', W', C)."""

    stride: int = 1
    size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise(x, self.param("kernel", KERNEL_INIT, (self.size, self.size, 1, x.shape[-1])), self.stride)


class Conv3x3(nn.Module):
    """Dense 3x3 convolution without bias, padded by one on every side: (B, H, W, C) -> (B, H', W', features)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x, self.param("kernel", KERNEL_INIT, (3, 3, x.shape[-1], self.features)), self.stride)


class PReLU(nn.Module):
    """x where positive, slope * x elsewhere, one slope per channel from 0.25 (He et al. 2015)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, slope * x)


class ReLU6(nn.Module):
    """x clipped to [0, 6]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu6(x)


class Bottleneck(nn.Module):
    """Inverted residual (Sandler et al. 2018, 'MobileNetV2', section 3.3): expand, depthwise 3x3, project linearly.

    Attributes:
        t: expansion; at 1 there is no expanding convolution.
        c: output channels.
        s: stride of the depthwise convolution. The input is added where s is 1 and it has c channels.
        act: makes the activation, a module anew each time since PReLU owns slopes.
    """

    t: int
    c: int
    s: int
    act: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.t != 1:
            y = self.act()(batch_norm(train)(Pointwise(self.t * x.shape[-1])(y)))
        y = self.act()(batch_norm(train)(Depthwise(self.s)(y)))
        y = batch_norm(train)(Pointwise(self.c)(y))
        return x + y if self.s == 1 and x.shape[-1] == self.c else y
