"""The vision transformer in PyTorch, layer by layer the network of asdjax.models.vit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """(B, N, D) -> (B, N, D), normalised before attention and perceptron."""

    def __init__(self, width: int, heads: int, dim_head: int, mlp: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * dim_head, bias=bias)
        self.out = nn.Linear(heads * dim_head, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.mlp(self.mlp_norm(x))


class ViT(nn.Module):
    """(B, L, F) -> (B, D). `frames` and `bins` (L and F) are sizes of the positions."""

    def __init__(
        self,
        frames: int,
        bins: int,
        patch: int = 16,
        width: int = 128,
        depth: int = 1,
        heads: int = 8,
        dim_head: int = 16,
        mlp: int = 512,
        style: str = "paper",
        pool: str = "cls",
        time_fit: str = "crop",
        input_bn: bool = True,
    ):
        super().__init__()
        self.patch, self.time_fit, self.lucidrains = patch, time_fit, style == "lucidrains"
        long = -(-frames // patch) if time_fit == "pad" else frames // patch
        self.norm = nn.BatchNorm1d(bins) if input_bn else None
        self.vectors = nn.Linear(patch * patch, width)
        if self.lucidrains:
            self.patch_norm, self.vector_norm = nn.LayerNorm(patch * patch), nn.LayerNorm(width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "cls" else None
        places = long * (bins // patch) + (pool == "cls")
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(1, places, width), std=0.02))
        self.blocks = nn.Sequential(
            *[Block(width, heads, dim_head, mlp, bias=not self.lucidrains) for _ in range(depth)]
        )
        self.final_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm is not None:
            x = self.norm(x.mT).mT
        rest = x.shape[1] % self.patch
        if rest and self.time_fit == "pad":
            x = functional.pad(x, (0, 0, 0, self.patch - rest))
        elif rest:
            x = x.narrow(1, rest // 2, x.shape[1] - rest)
        x = x.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch).flatten(1, 2).flatten(2)
        x = self.vector_norm(self.vectors(self.patch_norm(x))) if self.lucidrains else self.vectors(x)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        x = self.final_norm(self.blocks(x + self.positions))
        return x.mean(1) if self.class_token is None else x[:, 0]


def fill(net: ViT, params: Mapping, stats: Mapping) -> None:
    """Puts parameters and batch statistics of asdjax's network into this one."""
    norm = {"norm": {**params["norm"], **stats["norm"]}} if "norm" in params else {}
    with torch.no_grad():
        for theirs, ours in weights(net, {**params, **norm}):
            theirs.copy_(torch.tensor(np.asarray(ours)).reshape(theirs.shape))


def weights(net: ViT, tree: Mapping) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Every weight of the peer beside the leaf that it is in a tree of our parameters, or of their gradients."""
    pairs = [(net.positions, tree["positions"])]
    pairs += [(net.class_token, tree["class_token"])] if net.class_token is not None else []
    layers = [(net.vectors, tree["patch"]), (net.final_norm, tree["final_norm"])]
    layers += [(net.norm, tree["norm"])] if net.norm is not None else []
    if net.lucidrains:
        layers += [(net.patch_norm, tree["patch_norm"]), (net.vector_norm, tree["vector_norm"])]
    for i, block in enumerate(net.blocks):
        own = tree[f"block_{i}"]
        layers += [(getattr(block, name), own[name]) for name in ("attention_norm", "mlp_norm", "qkv", "out")]
        layers += [(block.mlp[0], own["expand"]), (block.mlp[2], own["project"])]
    names = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")
    for layer, own in layers:
        pairs += [(getattr(layer, names[k]), leaf.T if k == "kernel" else leaf) for k, leaf in own.items()]
    return pairs
