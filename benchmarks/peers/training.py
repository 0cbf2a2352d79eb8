"""Training of the networks in PyTorch: frontends, ArcFace, mixup, Adam, and batches from the bank by a DataLoader."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from librosa import filters
from torch import nn
from torch.nn import functional

from benchmarks.peers.mobilefacenet import MobileFaceNet
from benchmarks.peers.mobilenetv2 import MobileNetV2


def network(spec: Mapping[str, Any], frames: int, bins: int) -> nn.Module:
    """The peer of the backbone in a config, for units (B, L, F) of this size."""
    sizes = {k: spec[k] for k in ("rows", "stem", "features", "embedding")}
    if spec["name"] == "MobileFaceNet":
        return MobileFaceNet(**sizes, bins=bins, frames=frames).to(memory_format=torch.channels_last)
    return MobileNetV2(**sizes).to(memory_format=torch.channels_last)


class Frontend(nn.Module):
    """The peer of the frontend in a config, log_mel or the log-power spectrogram: wave (B, T) -> decibels (B, L, F)."""

    def __init__(self, spec: Mapping[str, Any]):
        super().__init__()
        self.spec = dict(spec)
        self.register_buffer("window", torch.hann_window(spec["win"]))
        if spec["name"] == "log_mel":
            mel = filters.mel(sr=spec["sample_rate"], n_fft=spec["win"], n_mels=spec["n_mels"])
            self.register_buffer("mel", torch.from_numpy(mel).T.contiguous())

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        x = torch.stft(
            wave,
            spec["win"],
            spec["hop"],
            window=self.window,
            pad_mode=spec.get("pad", "constant"),
            return_complex=True,
        )
        x = torch.view_as_real(x).square().sum(-1).mT
        x = x @ self.mel if spec["name"] == "log_mel" else x[..., :-1]
        return 10 * torch.log10(x.clamp(min=np.finfo(float).eps))


class ArcFace(nn.Module):
    """Angular margin (mode 'th_mm') and the cross-entropy per example, linear in a soft label."""

    def __init__(self, n_classes: int, embedding: int, s: float = 30.0, margin: float = 0.5):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_classes, embedding)))
        self.s, self.margin = s, margin

    def forward(self, embedding: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """embedding (B, D), label (B, C) -> loss (B,)."""
        cosine = functional.linear(functional.normalize(embedding), functional.normalize(self.weight))
        cosine = cosine.clamp(-1 + 1e-7, 1 - 1e-7)
        turned = cosine * math.cos(self.margin) - (1 - cosine.square()).sqrt() * math.sin(self.margin)
        past = cosine <= -math.cos(self.margin)
        turned = self.s * torch.where(past, cosine - self.margin * math.sin(self.margin), turned)
        # class c has its margin only in the term where it is the target
        own = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
        others = (self.s * cosine)[:, None].masked_fill(own, -math.inf).logsumexp(-1)
        return (label * functional.softplus(others - turned)).sum(-1)


def mixup(wave: torch.Tensor, label: torch.Tensor, p: float, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each example blended with another of the batch by its own lam ~ Beta(alpha, alpha), with probability p."""
    n = len(wave)
    partner = torch.randperm(n, device=wave.device)
    lam = torch.distributions.Beta(alpha, alpha).sample((n,)).to(wave.device)
    lam = torch.where(torch.rand(n, device=wave.device) < p, lam, 1.0)[:, None]
    return lam * wave + (1 - lam) * wave[partner], lam * label + (1 - lam) * label[partner]


def crop(x: torch.Tensor, width: int) -> torch.Tensor:
    """One window of `width` frames from every clip, from anywhere in it: (B, L, F) -> (B, width, F)."""
    first = torch.randint(x.shape[1] - width + 1, (len(x), 1), device=x.device)
    frames = first + torch.arange(width, device=x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], frames]


class Bank(torch.utils.data.Dataset):
    """Clips of an int16 bank (N, T) in a .npy file, as float waves, with their one-hot labels (N, C)."""

    def __init__(self, path: Path, label: np.ndarray):
        self.path, self.label = path, torch.from_numpy(label)

    @functools.cached_property
    def wave(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")  # in each worker: pickled, a memory map becomes a copy

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.wave[row].astype(np.float32) / 32768), self.label[row]


def batches(bank: Bank, batch_size: int, device: torch.device, workers: int = 2):
    """Batches without end (wave (B, T), label (B, C)) on the device, read by worker processes."""
    # one long epoch: at the end of each the workers would stall, and a bank as small as a benchmark's has short ones
    rows = torch.utils.data.RandomSampler(bank, replacement=True, num_samples=10**7)
    loader = torch.utils.data.DataLoader(
        bank,
        batch_size,
        sampler=rows,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,  # the fork of a process with threads may hang
        pin_memory=device.type == "cuda",
    )
    for wave, label in loader:
        yield wave.to(device, non_blocking=True), label.to(device, non_blocking=True)


def make_step(net: nn.Module, head: nn.Module, lr: float, dtype: torch.dtype = torch.float32) -> Callable:
    """One Adam step on units: (x (B, L, F), label (B, C)) -> loss (). `dtype` is what the network computes in."""
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)

    def step(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            embedding = net(x)
        loss = head(embedding.float(), label).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
