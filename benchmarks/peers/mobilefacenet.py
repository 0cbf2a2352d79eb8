"""MobileFaceNet in PyTorch, layer by layer the network of asdjax.models.mobilefacenet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def conv_bn(c_in: int, c_out: int, kernel, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias and BatchNorm; an integer kernel is padded by half, one given as (h, w) is not."""
    padding = kernel // 2 if isinstance(kernel, int) else 0
    return [nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out)]


class Bottleneck(nn.Module):
    """Inverted residual: expand t-fold (not at t = 1), depthwise 3x3 with stride s, project; act makes activations."""

    def __init__(self, c_in: int, t: int, c: int, s: int, act: Callable[[int], nn.Module]):
        super().__init__()
        wide = t * c_in
        expand = [*conv_bn(c_in, wide, 1), act(wide)] if t != 1 else []
        self.body = nn.Sequential(*expand, *conv_bn(wide, wide, 3, s, groups=wide), act(wide), *conv_bn(wide, c, 1))
        self.residual = s == 1 and c_in == c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def bottlenecks(c_in: int, rows, act: Callable[[int], nn.Module]) -> tuple[list[nn.Module], int]:
    """The rows (t, c, n, s) of bottlenecks, and the channels that they end with."""
    blocks = []
    for t, c, n, s in rows:
        for i in range(n):
            blocks.append(Bottleneck(c_in, t, c, s if i == 0 else 1, act))
            c_in = c
    return blocks, c_in


class MobileFaceNet(nn.Module):
    """(B, L, F) -> (B, D). The last kernel has the size of the last map, hence `bins` and `frames` (F and L)."""

    def __init__(self, rows, stem: int, features: int, embedding: int, bins: int, frames: int):
        super().__init__()
        for stride in (2, *(s for *_, s in rows)):
            bins, frames = (bins - 1) // stride + 1, (frames - 1) // stride + 1
        blocks, c = bottlenecks(stem, rows, nn.PReLU)
        self.body = nn.Sequential(
            *conv_bn(1, stem, 3, 2),
            nn.PReLU(stem),
            *conv_bn(stem, stem, 3, groups=stem),
            nn.PReLU(stem),
            *blocks,
            *conv_bn(c, features, 1),
            nn.PReLU(features),
            *conv_bn(features, features, (bins, frames), groups=features),
            *conv_bn(features, embedding, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.transpose(1, 2)[:, None].contiguous(memory_format=torch.channels_last)).flatten(1)
