"""The vision transformer over patches of a unit, as shallow as one block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from asdjax.core import UsageError
from asdjax.losses import full_precision
from asdjax.models.attention import attention, dense, layer_norm
from asdjax.models.layers import BatchNorm

KERNEL_INIT = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros
MLP_BIAS_INIT = nn.initializers.normal(1e-6)
CHOICES = {"style": ("paper", "lucidrains"), "pool": ("cls", "mean"), "time_fit": ("crop", "pad")}


class ViT(nn.Module):
    """Units -> embedding (Zeng et al. 2023, section 2.2; Dosovitskiy et al. 2021, section 3.1, for what is silent).

    Patches of patch x patch values become vectors with learned positions, which blocks of attention and a
    multilayer perceptron, each behind a normalisation, make into others. With a linear classifier of 14 classes the
    network has 242,702 parameters at 301 x 64, or 242,446 by the mean; BatchNorm over the bins adds 128 to each, of its
    64 scales and 64 biases. Positions make the frames of a unit a size of the weights. Weights start as those of
    Dosovitskiy et al.

    Attributes:
        patch: frames and bins of a patch; it divides the bins.
        width: D.
        depth: blocks.
        heads: of the attention.
        dim_head: values of one head's queries, keys and values each.
        mlp: width of the hidden layer.
        style: 'paper', or 'lucidrains', the layout of the code of that name: normalisations before and after the
            product that makes vectors of patches, no bias of queries, keys and values.
        pool: 'cls', the embedding is a learned vector that goes with those of the patches; 'mean', it is their mean.
        time_fit: of frames that are no multiple of `patch`: 'crop' takes the central ones, 'pad' adds zeros behind.
        input_bn: normalise the bins first, as the convolutional networks of the report do.
        dtype: of the matrix products, 'float32' or 'bfloat16'; all else is never in bfloat16.
    """

    patch: int = 16
    width: int = 128
    depth: int = 1
    heads: int = 8
    dim_head: int = 16
    mlp: int = 512
    style: str = "paper"
    pool: str = "cls"
    time_fit: str = "crop"
    input_bn: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Embeds units.

        Args:
            x: (B, L, F).
            train: normalise the bins by the batch, else by the running statistics.

        Returns:
            (B, D), float32 at least.

        Raises:
            UsageError: less than a patch of frames, bins that it does not divide, or an unknown word or dtype.
        """
        self.check(*x.shape[1:])
        x = full_precision(x)
        if self.input_bn:
            x = BatchNorm(name="norm")(x, train)
        y = self.vectors(patches(fit(x, self.patch, self.time_fit), self.patch))
        for i in range(self.depth):
            # of the last block's vectors only that of the class is read
            alone = self.pool == "cls" and i == self.depth - 1
            own = (self.heads, self.dim_head, self.mlp, self.style == "paper", alone, self.dtype)
            y = Block(*own, name=f"block_{i}")(y)
        y = layer_norm("final_norm", y)
        return y[:, 0] if self.pool == "cls" else y.mean(1)

    def check(self, frames: int, bins: int) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"ViT: {name} is {getattr(self, name)!r}; there is: {', '.join(choices)}")
        if frames < self.patch:
            raise UsageError(
                f"ViT: a unit has {frames} frames (cut.width), less than one patch (backbone.patch={self.patch})"
            )
        if bins % self.patch:
            raise UsageError(f"ViT: backbone.patch={self.patch} must divide the {bins} bins of the frontend")

    def vectors(self, x: jax.Array) -> jax.Array:
        """Patches (B, N, P) -> vectors with positions (B, N, D), with that of the class before them for 'cls'."""
        lucidrains = self.style == "lucidrains"
        x = layer_norm("patch_norm", x) if lucidrains else x
        y = full_precision(dense("patch", self.width, x, self.dtype, KERNEL_INIT, ZEROS))
        y = layer_norm("vector_norm", y) if lucidrains else y
        if self.pool == "cls":
            first = self.param("class_token", ZEROS, (self.width,))
            y = jnp.concatenate([jnp.broadcast_to(first, (len(y), 1, self.width)).astype(y.dtype), y], axis=1)
        return y + self.param("positions", nn.initializers.normal(0.02), y.shape[1:])


class Block(nn.Module):
    """A transformer block that normalises before attention and perceptron: (B, N, D) -> (B, N, D).

    Attributes:
        heads, dim_head, mlp, dtype: see ViT.
        bias: of queries, keys and values.
        alone: only the first vector goes on, (B, 1, D); the others are its keys and values.
    """

    heads: int
    dim_head: int
    mlp: int
    bias: bool
    alone: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, inner = x.shape[-1], self.heads * self.dim_head
        bias_init = ZEROS if self.bias else None
        qkv = dense("qkv", 3 * inner, layer_norm("attention_norm", x), self.dtype, qkv_init, bias_init)
        y = attention(qkv, self.heads, queries=1 if self.alone else None)
        x = x[:, :1] if self.alone else x
        x = x + dense("out", width, y, self.dtype, KERNEL_INIT, ZEROS)
        y = dense("expand", self.mlp, layer_norm("mlp_norm", x), self.dtype, KERNEL_INIT, MLP_BIAS_INIT)
        y = jax.nn.gelu(full_precision(y), approximate=False)
        return x + dense("project", width, y, self.dtype, KERNEL_INIT, MLP_BIAS_INIT)


def qkv_init(key: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    """Glorot's uniform for each of queries, keys and values: larger than for the three as one matrix."""
    each = (shape[0], shape[1] // 3)
    return jnp.concatenate([KERNEL_INIT(k, each, dtype) for k in jax.random.split(key, 3)], axis=1)


def fit(x: jax.Array, patch: int, how: str) -> jax.Array:
    """x (B, L, F) of a whole number of patches: the central frames ('crop'), or with zeros behind ('pad')."""
    rest = x.shape[1] % patch
    if how == "pad":
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % patch), (0, 0)))
    return x[:, rest // 2 : x.shape[1] - (rest - rest // 2)]


def patches(x: jax.Array, size: int) -> jax.Array:
    """x (B, L, F) -> (B, L / size * F / size, size * size): patches, frame after frame."""
    batch, frames, bins = x.shape
    x = x.reshape(batch, frames // size, size, bins // size, size).swapaxes(2, 3)
    return x.reshape(batch, -1, size * size)
