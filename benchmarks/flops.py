"""FLOPs of a network by its layers; XLA's own count takes a grouped convolution for several times what it is."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn


def forward_flops(backbone: nn.Module, frames: int, bins: int) -> int:
    """2 x the multiply-adds of the convolutions and products for one unit; a training step takes 3 x this.

    Every place of a layer's output costs its whole kernel, be it dense, depthwise or pointwise. Products of two maps,
    as in attention, are not counted.

    Args:
        backbone: a network whose layers with a 'kernel' are such.
        frames, bins: L and F of its input.
    """

    def run():
        return backbone.init_with_output(
            jax.random.key(0), jnp.zeros((1, frames, bins)), train=False, capture_intermediates=True, mutable=True
        )

    _, variables = jax.eval_shape(run)
    seen, total = variables["intermediates"], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *modules, name = (key.key for key in path)
        if name == "kernel":
            module = seen
            for key in modules:
                module = module[key]
            out = module["__call__"][0].shape
            total += 2 * math.prod(out[:-1]) * leaf.size
    return total
