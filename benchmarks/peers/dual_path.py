"""The dual-path transformer in PyTorch, layer by layer the network of asdjax.models.dual_path."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


class DualPathTransformer(nn.Module):
    """(B, L, F) -> embedding (B, F), reconstruction (B, L, F), normalised input (B, L, F).

    The sizes of the weights hang on `frames` and `bins` (L and F).
    """

    def __init__(self, frames: int, bins: int, blocks: int = 3, heads: int = 8, feedforward: int = 32):
        super().__init__()

        def layers(width: int) -> nn.ModuleList:
            own = dict(nhead=heads, dim_feedforward=feedforward, dropout=0.0, batch_first=True)
            return nn.ModuleList([nn.TransformerEncoderLayer(width, **own) for _ in range(blocks)])

        self.norm = nn.BatchNorm1d(bins)
        self.over_frames, self.over_bins = layers(bins), layers(frames)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normalised = self.norm(x.mT).mT
        y = normalised if mask is None else normalised * mask
        for frames, bins in zip(self.over_frames, self.over_bins, strict=True):
            y = bins(frames(y).mT).mT
        return y.amax(1), y, normalised


def fill(net: DualPathTransformer, params: Mapping, stats: Mapping) -> None:
    """Puts parameters and batch statistics of asdjax's network into this one."""
    with torch.no_grad():
        for theirs, ours in weights(net, {**params, "norm": {**params["norm"], **stats["norm"]}}):
            theirs.copy_(torch.tensor(np.asarray(ours)))


def weights(net: DualPathTransformer, tree: Mapping) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Every weight of the peer beside the leaf that it is in a tree of our parameters, or of their gradients."""
    names = dict(scale="weight", bias="bias", mean="running_mean", var="running_var")
    found = [(getattr(net.norm, names[k]), leaf) for k, leaf in tree["norm"].items()]
    for kind in ("over_frames", "over_bins"):
        for i, layer in enumerate(getattr(net, kind)):
            own = tree[f"{kind}_{i}"]
            attention = layer.self_attn
            found += [(attention.in_proj_weight, own["qkv"]["kernel"].T), (attention.in_proj_bias, own["qkv"]["bias"])]
            for module, name in (
                (attention.out_proj, "out"),
                (layer.linear1, "expand"),
                (layer.linear2, "project"),
            ):
                found += [(module.weight, own[name]["kernel"].T), (module.bias, own[name]["bias"])]
            for module, name in ((layer.norm1, "attention_norm"), (layer.norm2, "norm")):
                found += [(module.weight, own[name]["scale"]), (module.bias, own[name]["bias"])]
    return found
