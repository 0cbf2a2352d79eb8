"""MobileNetV2 as PANNs pre-trains it on AudioSet (Kong et al. 2020, 'PANNs'), and Zeng et al. (2023) fine-tune it.

It differs from `mobilenetv2` in normalising the mel bins first, in averaging maps where others skip places, in which
rows halve them, in the pool over time, and in how kernels start. Maps are (B, L, F, C).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from asdjax.core import UsageError
from asdjax.losses import full_precision
from asdjax.models.convolutions import conv, depthwise
from asdjax.models.layers import BatchNorm, Pointwise, in_type, linear, maximum_over_frames, relu6

# (t expansion, c channels, n repeats, s stride of the first): PANNs' code, and Table 1 of Zeng 2023.
ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 2),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)

KERNEL_INIT = nn.initializers.xavier_uniform()  # PANNs' init_layer


class PannsMobileNetV2(nn.Module):
    """Units of a log-mel spectrogram -> embeddings.

    Attributes:
        rows: (t, c, n, s) of the inverted residuals.
        stem: channels of the first convolution.
        features: channels of the last map: 1280 in PANNs, 128 in Zeng's fine-tuning, where they are the embedding.
        downsample: 'avgpool' (PANNs): convolve at every place, then average 2 x 2; 'strided': skip places instead.
        head_act: 'relu6' (PANNs), or 'linear': no activation after the last convolution, so that no channel of the
            embedding is dead or full.
        fc: width of a fully connected layer with ReLU after the pool: 1024 in PANNs; 0: none.
        dtype: 'float32' or 'bfloat16', what the convolutions compute in.
    """

    rows: tuple[tuple[int, int, int, int], ...] = ROWS
    stem: int = 32
    features: int = 128
    downsample: str = "avgpool"
    head_act: str = "relu6"
    fc: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Embeds units.

        Args:
            x: (B, L, F) log-mels; L and F at least 32 with PANNs' rows.
            train: normalise by the batch, else by the running statistics.

        Returns:
            (B, features), or (B, fc) where there is that layer; float32 at least.

        Raises:
            UsageError: an unknown word, a stride other than 1 and 2, or units too small to be halved so often.
        """
        check(self, x)
        x = BatchNorm(name="bn0")(full_precision(x), train)  # decibels would lose their digits in bfloat16
        x = in_type(x, self.dtype)[..., None]
        x = Conv3x3(conv, self.stem, 2, self.downsample, name="stem_conv")(x)
        x = BatchNorm(relu6, name="stem_norm")(x, train)
        for r, (t, c, n, s) in enumerate(self.rows):
            for i in range(n):
                stride = s if i == 0 else 1
                x = InvertedResidual(t, c, stride, self.downsample, name=f"row{r}_{i}")(x, train)
        x = Pointwise(self.features, KERNEL_INIT, name="features_conv")(x)
        x = BatchNorm(relu6 if self.head_act == "relu6" else linear, name="features_norm")(x, train)
        x = full_precision(x).mean(2)  # (B, L', features)
        x = maximum_over_frames(x) + x.mean(1)
        return jax.nn.relu(nn.Dense(self.fc, kernel_init=KERNEL_INIT, name="fc1")(x)) if self.fc else x


def check(net: PannsMobileNetV2, x: jax.Array) -> None:
    """Raises UsageError where the network cannot be made for units x (B, L, F)."""
    for name, known in (("downsample", ("avgpool", "strided")), ("head_act", ("relu6", "linear"))):
        if getattr(net, name) not in known:
            raise UsageError(f"backbone.{name} is {getattr(net, name)!r}; there is: {', '.join(known)}")
    strides = [2, *(s for *_, s in net.rows)]
    if not {*strides} <= {1, 2}:
        raise UsageError(f"PannsMobileNetV2: strides of backbone.rows are {strides[1:]}; there is: 1, 2")
    least = 2 ** strides.count(2) if net.downsample == "avgpool" else 1
    if min(x.shape[1:]) < least:
        frames, bins = x.shape[1:]
        raise UsageError(
            f"PannsMobileNetV2: units have {frames} frames of {bins} bins, expected {least} of each at least"
        )


class InvertedResidual(nn.Module):
    """Inverted residual: expand, depthwise 3x3, project linearly.

    Attributes:
        t: expansion; at 1 there is no expanding convolution.
        c: output channels.
        s: stride, 1 or 2. The input is added where it is 1 and the input has c channels.
        downsample: how maps are halved, see `Conv3x3`.
    """

    t: int
    c: int
    s: int
    downsample: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.t != 1:
            y = Pointwise(self.t * x.shape[-1], KERNEL_INIT, name="expand")(y)
            y = BatchNorm(relu6, name="expand_norm")(y, train)
        y = Conv3x3(depthwise, y.shape[-1], self.s, self.downsample, name="depthwise")(y)
        y = BatchNorm(relu6, name="depthwise_norm")(y, train)
        y = BatchNorm(name="project_norm")(Pointwise(self.c, KERNEL_INIT, name="project")(y), train)
        return x + y if self.s == 1 and x.shape[-1] == self.c else y


class Conv3x3(nn.Module):
    """3x3 convolution without bias, padded by one on every side.

    Attributes:
        form: convolutions.conv of a map of one channel, or convolutions.depthwise.
        features: output channels; of a depthwise convolution those of the map.
        stride: 1 or 2.
        downsample: what a stride of 2 means: 'strided', or 'avgpool': stride 1, then averages of 2 x 2 places.
    """

    form: Callable[..., jax.Array]
    features: int
    stride: int
    downsample: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, 1, self.features))
        if self.stride == 2 and self.downsample == "avgpool":
            return averaged(self.form, x, kernel)
        return self.form(x, kernel.astype(x.dtype), self.stride)


def averaged(form: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`form` with a kernel (3, 3, 1, C) at stride 1, then averages of 2 x 2 places: (B, L, F, .) -> (B, L//2, F//2, C).

    The two in one: a 4 x 4 kernel at stride 2, with 16 products for a place instead of 36, and no large map between.
    """
    frames, bins = x.shape[1:3]
    wide = jnp.pad(full_precision(kernel), ((1, 1), (1, 1), (0, 0), (0, 0)))
    wide = wide[1:] + wide[:-1]
    wide = (wide[:, 1:] + wide[:, :-1]) / 4
    # 'same' puts one zero on every side of an even axis; the last place of an odd one has no partner, and is dropped
    x = jnp.pad(x, ((0, 0), (0, frames % 2), (0, bins % 2), (0, 0)))
    return form(x, wide.astype(x.dtype), 2, "same")[:, : frames // 2, : bins // 2]
