"""MobileFaceNet (Chen et al. 2018, 'MobileFaceNets: Efficient CNNs for accurate real-time face verification')."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from asdjax.core import UsageError
from asdjax.losses import full_precision
from asdjax.models.layers import (
    KERNEL_INIT,
    BatchNorm,
    Bottleneck,
    Conv3x3,
    Depthwise,
    Pointwise,
    in_type,
    prelu,
)

# Rows of bottlenecks (t expansion, c channels, n repeats, s stride of the first of them).
ORIGINAL = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))  # also Bai 2022, Table 1


class MobileFaceNet(nn.Module):
    """Units of a spectrogram -> embeddings, with a learnt weight for every place of the last map instead of a pool.

    Attributes:
        rows: (t, c, n, s) of the bottleneck rows.
        stem: channels of the first two convolutions.
        features: channels of the last map.
        embedding: D.
        gdconv: 'full', a kernel over the whole last map; or 'literal16', Morita's printed 16x1 kernel, slid over a
            taller map and averaged.
        dtype: 'float32' or 'bfloat16', what all but the layers after the last map compute in.
    """

    rows: tuple[tuple[int, int, int, int], ...] = ORIGINAL
    stem: int = 64
    features: int = 512
    embedding: int = 128
    gdconv: str = "full"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Embeds units.

        Args:
            x: (B, L, F) features.
            train: normalise by the batch (of 2 at least: the last maps are 1x1), else by the running statistics.

        Returns:
            (B, D), float32 at least.

        Raises:
            UsageError: unknown dtype, unknown gdconv, or a map too small for it.
        """
        x = in_type(x, self.dtype).swapaxes(1, 2)[..., None]  # (B, F, L, 1)
        x = BatchNorm(prelu)(Conv3x3(self.stem, stride=2)(x), train)
        x = BatchNorm(prelu)(Depthwise()(x), train)
        for r, (t, c, n, s) in enumerate(self.rows):
            for i in range(n):
                x = Bottleneck(t, c, s if i == 0 else 1, prelu, name=f"row{r}_{i}")(x, train)
        x = BatchNorm(prelu)(Pointwise(self.features)(x), train)
        x = BatchNorm()(GlobalDepthwise(self.gdconv)(full_precision(x)), train).mean((1, 2))
        return BatchNorm()(Pointwise(self.embedding)(x), train)


class GlobalDepthwise(nn.Module):
    """Depthwise convolution without padding, kernel = the whole map or 16x1: (B, H, W, C) -> (B, H', W', C)."""

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, h, w, c = x.shape
        if self.kind == "full":
            kernel = self.param("kernel", KERNEL_INIT, (h, w, 1, c))
            return jnp.einsum("bhwc,hwoc->boc", x, kernel)[:, None]
        if self.kind != "literal16":
            raise UsageError(f"gdconv is {self.kind!r}; there is: full, literal16")
        if h < 16:
            raise UsageError(f"gdconv='literal16' needs a last map of at least 16 rows, not {h}x{w}; use 'full'")
        kernel = self.param("kernel", KERNEL_INIT, (16, 1, 1, c))
        return sum(x[:, i : h - 15 + i] * kernel[i, 0, 0] for i in range(16))
