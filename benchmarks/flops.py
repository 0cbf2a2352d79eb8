"""FLOPs of a network by its layers; XLA's own count takes a grouped convolution for several times what it is."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from asdjax.models import panns


def forward_flops(backbone: nn.Module, frames: int, bins: int) -> int:
    """2 x the multiply-adds of the convolutions and products for one unit; a training step takes 3 x this.

    They are those of our formulation, which may have fewer than a layer-by-layer one: see panns.averaged, and the last
    block of vit.ViT. Every place of a layer's output costs its whole kernel, be it dense, depthwise or pointwise. To
    these come the products of two maps, as in attention.

    Args:
        backbone: a network whose layers with a 'kernel' are such.
        frames, bins: L and F of its input.
    """
    x, layers = jnp.zeros((1, frames, bins)), {}

    def note(module: nn.Module, method: str) -> bool:
        layers[module.path] = module
        return method == "__call__"

    def run():
        return backbone.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=note, mutable=True)

    _, variables = jax.eval_shape(run)
    seen, total = variables.pop("intermediates"), 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *modules, name = (key.key for key in path)
        if name == "kernel":
            module = seen
            for key in modules:
                module = module[key]
            out = module["__call__"][0].shape
            total += 2 * math.prod(out[:-1]) * products_by_place(layers[tuple(modules)], leaf)
    traced = jax.make_jaxpr(lambda x, variables: backbone.apply(variables, x, train=False))(x, variables).jaxpr
    return total + products_of_maps(traced, set(traced.invars[:1]))[0]


def products_by_place(layer: nn.Module, kernel: jax.ShapeDtypeStruct) -> int:
    """Multiply-adds of a layer for one place of its output."""
    if isinstance(layer, panns.Conv3x3) and (layer.stride, layer.downsample) == (2, "avgpool"):
        return kernel.size * 16 // 9  # 4 x 4 in the place of 3 x 3
    return kernel.size


def products_of_maps(jaxpr: core.Jaxpr, maps: set[core.Var]) -> tuple[int, set[core.Var]]:
    """FLOPs of the matrix products whose factors both depend on `maps`, and all variables that do.

    Of functions within, every operand is matched from the last (a branch has no index, which comes first); of branches,
    which are the forms of one computation for each platform, the last counts.
    """
    total, maps = 0, set(maps)
    for equation in jaxpr.eqns:
        own = [isinstance(v, core.Var) and v in maps for v in equation.invars]
        if not any(own):
            continue
        maps |= set(equation.outvars)
        if equation.primitive.name == "dot_general" and all(own):
            ((contracted, _), _), factor = equation.params["dimension_numbers"], equation.invars[0].aval.shape
            depth = math.prod(factor[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        for inner in list(core.jaxprs_in_params(equation.params))[-1:]:
            pairs = zip(reversed(inner.invars), reversed(own), strict=False)
            total += products_of_maps(inner, {v for v, is_map in pairs if is_map})[0]
    return total, maps
