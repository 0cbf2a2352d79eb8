"""The dual-path transformer: attention over the frames of a unit, then over its bins, block after block."""

from __future__ import annotations

import jax
from flax import linen as nn

from asdjax.core import UsageError
from asdjax.losses import full_precision
from asdjax.models.attention import attention, dense, layer_norm
from asdjax.models.autoencoder import KERNEL_INIT, bias_init
from asdjax.models.layers import BatchNorm, Initializer, maximum_over_frames

# Glorot's uniform over queries, keys and values together, as PyTorch has it: smaller than over each of the three.
QKV_INIT = nn.initializers.xavier_uniform()


class DualPathTransformer(nn.Module):
    """Units -> embedding and reconstruction (Bai et al. 2022, section 3.3; the authors' SSDPT code for what is silent).

    Each block is a transformer layer over frames, whose vectors are the F bins, and one over bins, whose vectors are
    the L frames: so L and F are sizes of the weights. No position is encoded. Without a class layer the network has
    288,256 parameters at 64 x 128. Weights and biases start as those of PyTorch.

    Attributes:
        blocks: how many.
        heads: of the attention; it divides L and F.
        feedforward: width of the hidden layer after each attention.
        dtype: of the matrix products, 'float32' or 'bfloat16'; normalisation and softmax are never in bfloat16.
    """

    blocks: int = 3
    heads: int = 8
    feedforward: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Embeds and reconstructs units.

        Args:
            x: (B, L, F).
            train: normalise the bins by the batch, else by the running statistics.
            mask: (B, L, F), times which the normalised units go on; None: they go on as they are.

        Returns:
            embedding (B, F), the maximum of the reconstruction over the frames; reconstruction (B, L, F); the
            normalised units (B, L, F), before the mask. All float32 at least.

        Raises:
            UsageError: heads that do not divide L and F, or an unknown dtype.
        """
        frames, bins = x.shape[1:]
        if frames % self.heads or bins % self.heads:
            raise UsageError(
                f"DualPathTransformer: backbone.heads={self.heads} must divide the {frames} frames of a unit "
                f"(cut.width) and its {bins} bins"
            )
        normalised = BatchNorm(name="norm")(full_precision(x), train)
        y = normalised if mask is None else normalised * mask
        for i in range(self.blocks):
            y = EncoderLayer(self.heads, self.feedforward, self.dtype, name=f"over_frames_{i}")(y)
            y = y.swapaxes(1, 2)
            y = EncoderLayer(self.heads, self.feedforward, self.dtype, name=f"over_bins_{i}")(y)
            y = y.swapaxes(1, 2)
        return maximum_over_frames(y), y, normalised


class EncoderLayer(nn.Module):
    """A transformer layer that normalises after each sum (Vaswani et al. 2017, section 3.1): (B, L, D) -> (B, L, D)."""

    heads: int
    feedforward: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        qkv = self.dense("qkv", 3 * width, x, QKV_INIT, nn.initializers.zeros)
        x = x + self.dense("out", width, attention(qkv, self.heads), KERNEL_INIT, nn.initializers.zeros)
        x = layer_norm("attention_norm", x)
        y = jax.nn.relu(self.dense("expand", self.feedforward, x, KERNEL_INIT, bias_init(width)))
        x = x + self.dense("project", width, y, KERNEL_INIT, bias_init(self.feedforward))
        return layer_norm("norm", x)

    def dense(self, name: str, features: int, x: jax.Array, kernel_init: Initializer, bias_init) -> jax.Array:
        return dense(name, features, x, self.dtype, kernel_init, bias_init)
