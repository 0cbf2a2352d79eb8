"""MobileNetV2 as `keras.applications` builds it: the network of the official baselines of 2021 and 2022.

It differs from `mobilenetv2` in where zeros are padded, in BatchNorm's constants, in how channels are rounded, in how
kernels start, and in having no embedding after the pool.
"""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

from asdjax.models.convolutions import conv
from asdjax.models.layers import BatchNorm, Depthwise, Pointwise, relu6
from asdjax.models.mobilenetv2 import ORIGINAL

KERNEL_INIT = nn.initializers.glorot_uniform()  # Keras' default

Norm = functools.partial(BatchNorm, eps=1e-3, momentum=0.999)


def rounded(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8; the next one where that would lose more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class KerasMobileNetV2(nn.Module):
    """Units of a spectrogram -> pooled features. Modules bear the names of Keras' layers.

    Attributes:
        alpha: width; 0.5 in the official baselines.
    """

    alpha: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Embeds units.

        Args:
            x: (B, L, F) features; 64 frames of 128 mels in the official baselines.
            train: normalise by the batch, else by the running statistics.

        Returns:
            (B, 1280), or more where alpha is above 1.
        """
        x = Norm(relu6, name="bn_Conv1")(EqualChannels(rounded(32 * self.alpha), name="Conv1")(x), train)
        strides = [(t, c, s if i == 0 else 1) for t, c, n, s in ORIGINAL for i in range(n)]
        for b, (t, c, s) in enumerate(strides):
            name = f"block_{b}" if b else "expanded_conv"
            x = InvertedResidual(t, rounded(int(c * self.alpha)), s, name=name)(x, train)
        x = Pointwise(rounded(1280 * max(1, self.alpha)), KERNEL_INIT, name="Conv_1")(x)
        return Norm(relu6, name="Conv_1_bn")(x, train).mean((1, 2))


class EqualChannels(nn.Module):
    """3x3 convolution of stride 2 over three channels that are all the same: (B, H, W) -> (B, H', W', features).

    The baselines copy the spectrogram into the three colours of an image. Kernels over equal maps add up.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, 3, self.features))
        return conv(x[..., None], kernel.sum(2, keepdims=True), stride=2, padding="same")


class InvertedResidual(nn.Module):
    """Inverted residual: expand, depthwise 3x3, project linearly.

    Attributes:
        t: expansion; at 1 there is no expanding convolution.
        c: output channels.
        s: stride of the depthwise convolution. The input is added where s is 1 and it has c channels.
    """

    t: int
    c: int
    s: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.t != 1:
            y = Pointwise(self.t * x.shape[-1], KERNEL_INIT, name="expand")(y)
            y = Norm(relu6, name="expand_BN")(y, train)
        y = Depthwise(self.s, padding="same", kernel_init=KERNEL_INIT, name="depthwise")(y)
        y = Norm(relu6, name="depthwise_BN")(y, train)
        y = Norm(name="project_BN")(Pointwise(self.c, KERNEL_INIT, name="project")(y), train)
        return x + y if self.s == 1 and x.shape[-1] == self.c else y
