"""Convolutions in formulations that are fast where they run.

XLA:CPU has no kernel for grouped convolutions (0.5 GFLOP/s whatever the shape) and transposes the gradients of 4-D 1x1
convolutions in memory. So a 1x1 convolution is a 2-D matrix product everywhere, and a depthwise convolution is a sum of
shifted products on CPU, the plain convolution elsewhere. Maps are (B, H, W, C).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from asdjax.core import UsageError, by_device
from asdjax.losses import full_precision

Border = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after the rows, and the columns


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
