"""MobileNetV2 in PyTorch, layer by layer the network of asdjax.models.mobilenetv2."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers.mobilefacenet import bottlenecks, conv_bn


class MobileNetV2(nn.Module):
    """(B, L, F) -> (B, D)."""

    def __init__(self, rows, stem: int, features: int, embedding: int):
        super().__init__()
        blocks, c = bottlenecks(stem, rows, lambda channels: nn.ReLU6())
        self.body = nn.Sequential(*conv_bn(1, stem, 3, 2), nn.ReLU6(), *blocks, *conv_bn(c, features, 1), nn.ReLU6())
        self.embedding = nn.Linear(features, embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)[:, None].contiguous(memory_format=torch.channels_last)
        return self.embedding(self.body(x).mean((2, 3)))
