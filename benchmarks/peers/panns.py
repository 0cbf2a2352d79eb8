"""MobileNetV2 of PANNs in PyTorch, layer by layer the network of asdjax.models.panns.

Parameters have the names that they have in published checkpoints: bn0, features.0 to features.18, fc1, fc_audioset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class MobileNetV2(nn.Module):
    """(B, L, F) -> (B, features), (B, fc) or, with classes, logits (B, C); `embedding` stops before the classes."""

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        stem: int = 32,
        features: int = 128,
        downsample: str = "avgpool",
        head_act: str = "relu6",
        fc: int = 0,
        classes: int = 0,
        bins: int = 64,
    ):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(bins)
        blocks = [nn.Sequential(*convolution(1, stem, 2, downsample), nn.ReLU6())]
        c_in = stem
        for t, c, n, s in rows:
            for i in range(n):
                blocks.append(InvertedResidual(c_in, t, c, s if i == 0 else 1, downsample))
                c_in = c
        act = [nn.ReLU6()] if head_act == "relu6" else []
        last = nn.Sequential(nn.Conv2d(c_in, features, 1, bias=False), nn.BatchNorm2d(features), *act)
        self.features = nn.Sequential(*blocks, last)
        if fc:
            self.fc1 = nn.Linear(features, fc)
        if classes:
            self.fc_audioset = nn.Linear(fc or features, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embedding(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn0(x.transpose(1, 2)[..., None])  # (B, F, L, 1): the bins are its channels
        x = x.transpose(1, 3).contiguous(memory_format=torch.channels_last)  # (B, 1, L, F)
        x = self.features(x).mean(3)
        x = x.max(2).values + x.mean(2)
        return self.fc1(x).relu() if hasattr(self, "fc1") else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        return self.fc_audioset(x) if hasattr(self, "fc_audioset") else x


def convolution(c_in: int, c_out: int, stride: int, downsample: str, groups: int = 1) -> list[nn.Module]:
    """3x3 convolution and BatchNorm. PANNs averages where others stride, and has a pool of 1 x 1 where neither does."""
    strided = stride if downsample == "strided" else 1
    conv = nn.Conv2d(c_in, c_out, 3, strided, 1, groups=groups, bias=False)
    return [conv, nn.AvgPool2d(stride // strided), nn.BatchNorm2d(c_out)]


class InvertedResidual(nn.Module):
    """Expand t-fold (not at t = 1), depthwise 3x3 with stride s, project."""

    def __init__(self, c_in: int, t: int, c: int, s: int, downsample: str):
        super().__init__()
        wide = t * c_in
        expand = [nn.Conv2d(c_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()] if t != 1 else []
        depthwise = convolution(wide, wide, s, downsample, groups=wide)
        project = [nn.Conv2d(wide, c, 1, bias=False), nn.BatchNorm2d(c)]
        self.conv = nn.Sequential(*expand, *depthwise, nn.ReLU6(), *project)
        self.residual = s == 1 and c_in == c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)
