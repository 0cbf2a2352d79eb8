"""MobileNetV2 (Sandler et al. 2018, 'MobileNetV2: inverted residuals and linear bottlenecks'), width 1."""

from __future__ import annotations

import jax
from flax import linen as nn

from asdjax.losses import full_precision
from asdjax.models.layers import KERNEL_INIT, BatchNorm, Bottleneck, Conv3x3, Pointwise, in_type, relu6

# (t expansion, c channels, n repeats, s stride of the first): Table 2 of the paper, Table 1 of Morita 2021.
ORIGINAL = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Units of a spectrogram -> embeddings, as Morita et al. (2021, Table 1) use it.

    Their 16x1 average pool on a 32x1 map followed by a linear layer equals global pooling, which is done here.

    Attributes:
        rows: (t, c, n, s) of the bottleneck rows.
        stem: channels of the first convolution.
        features: channels of the last map.
        embedding: D.
        dtype: 'float32' or 'bfloat16', what all but the pool and the layer after it compute in.
    """

    rows: tuple[tuple[int, int, int, int], ...] = ORIGINAL
    stem: int = 32
    features: int = 1280
    embedding: int = 128
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Embeds units.

        Args:
            x: (B, L, F) features.
            train: normalise by the batch, else by the running statistics.

        Returns:
            (B, D), float32 at least.

        Raises:
            UsageError: unknown dtype.
        """
        x = in_type(x, self.dtype).swapaxes(1, 2)[..., None]  # (B, F, L, 1)
        x = BatchNorm(relu6)(Conv3x3(self.stem, stride=2)(x), train)
        for r, (t, c, n, s) in enumerate(self.rows):
            for i in range(n):
                x = Bottleneck(t, c, s if i == 0 else 1, relu6, name=f"row{r}_{i}")(x, train)
        x = BatchNorm(relu6)(Pointwise(self.features)(x), train)
        return nn.Dense(self.embedding, kernel_init=KERNEL_INIT)(full_precision(x).mean((1, 2)))
