"""What transformers are made of: attention, layer normalisation, and matrix products over the vectors of a sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from asdjax.losses import full_precision
from asdjax.models.layers import EPS, Initializer, in_type


def dense(
    name: str, features: int, x: jax.Array, dtype: str, kernel_init: Initializer, bias_init: Initializer | None
) -> jax.Array:
    """One 2-D matrix product, the form in which it is fast everywhere, of x (..., D) -> (..., features) in `dtype`.

    Called within a compact method. Without `bias_init` there is no bias.
    """
    flat = in_type(x.reshape(-1, x.shape[-1]), dtype)
    layer = nn.Dense(
        features,
        use_bias=bias_init is not None,
        dtype=flat.dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or nn.initializers.zeros,
        name=name,
    )
    return layer(flat).reshape(*x.shape[:-1], features)


def layer_norm(name: str, x: jax.Array) -> jax.Array:
    """Normalises each vector of x (..., D), in float32 at least."""
    return nn.LayerNorm(epsilon=EPS, use_fast_variance=False, name=name)(full_precision(x))


def attention(qkv: jax.Array, heads: int, queries: int | None = None) -> jax.Array:
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, section 3.2), without the output product.

    Args:
        qkv: (B, L, 3 * D), queries, keys and values; of each, one head's D / heads values stand after another's.
        heads: dividing D.
        queries: Q, how many of the first places attend; None: all of them, L.

    Returns:
        (B, Q, D), float32 at least.
    """
    batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    size = width // heads
    # heads before places: on CPU a product over both, batched in the middle, takes twice the time
    q, k, v = qkv.reshape(batch, length, 3, heads, size).transpose(2, 0, 3, 1, 4)
    scores = full_precision(jnp.einsum("bhld,bhmd->bhlm", q[:, :, :queries] * size**-0.5, k))
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    # The softmax's division waits until the values are summed: one pass less over (B, heads, L, L), by far the largest.
    y = jnp.einsum("bhlm,bhmd->bhld", weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)
    return y.swapaxes(1, 2).reshape(batch, -1, width)
