"""Training of the networks in PyTorch: frontends, heads, mixup, optimizers, and batches by a DataLoader."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from librosa import filters
from torch import nn
from torch.nn import functional

from benchmarks.peers import panns
from benchmarks.peers.dual_path import DualPathTransformer
from benchmarks.peers.mobilefacenet import MobileFaceNet
from benchmarks.peers.mobilenetv2 import MobileNetV2
from benchmarks.peers.vit import ViT

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of units (B, L, F) and label (B, C): (B,)


def network(spec: Mapping[str, Any], frames: int, bins: int) -> nn.Module:
    """The peer of the backbone in a config, for units (B, L, F) of this size."""
    if spec["name"] == "DualPathTransformer":
        sizes = {k: spec[k] for k in ("blocks", "heads", "feedforward") if k in spec}
        return DualPathTransformer(frames, bins, **sizes)
    if spec["name"] in ("PannsMobileNetV2", "ViT"):
        own = {k: v for k, v in spec.items() if k not in ("name", "dtype")}
        if spec["name"] == "ViT":
            return ViT(frames, bins, **own)
        return panns.MobileNetV2(**own, bins=bins).to(memory_format=torch.channels_last)
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


class Linear(nn.Module):
    """A linear classifier with the cross-entropy, which gamma > 0 makes the focal loss; linear in a soft label."""

    def __init__(self, n_classes: int, embedding: int, gamma: float = 0.0):
        super().__init__()
        self.linear, self.gamma = nn.Linear(embedding, n_classes), gamma

    def forward(self, embedding: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """embedding (B, D), label (B, C) -> loss (B,)."""
        log_p = self.linear(embedding).log_softmax(-1)
        weight = (1 - log_p.exp()) ** self.gamma if self.gamma else 1.0
        return -(label * weight * log_p).sum(-1)


def embedding_size(spec: Mapping[str, Any], bins: int) -> int:
    """D of the backbone in a config."""
    match spec["name"]:
        case "DualPathTransformer":
            return bins
        case "ViT":
            return spec["width"]
        case "PannsMobileNetV2":
            return spec["fc"] or spec["features"]
    return spec["embedding"]


def classifier(config: Mapping[str, Any], frames: int, bins: int, n_classes: int) -> tuple[nn.Module, nn.Module]:
    """The peers of a config's backbone and head."""
    spec, top = config["backbone"], config["head"]
    embedding = embedding_size(spec, bins)
    if top["name"] == "ArcFace":
        return network(spec, frames, bins), ArcFace(n_classes, embedding, top["s"], top["margin"])
    gamma = top.get("gamma", 2.0) if top.get("loss") == "focal" else 0.0
    return network(spec, frames, bins), Linear(n_classes, embedding, gamma)


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


def make_loss(system: Mapping[str, Any], net: nn.Module, top: nn.Module, dtype: torch.dtype = torch.float32) -> Loss:
    """The loss that a config's system has for the network and its head. `dtype` is what the network computes in."""
    if system["name"] == "dual_path":
        return dual_path(net, top, **{k: v for k, v in system.items() if k != "name"})

    def loss(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            embedding = net(x)
        return top(embedding.float(), label)

    return loss


def dual_path(
    net: DualPathTransformer,
    top: nn.Module,
    *,
    masks: int = 3,
    mask_size: int = 5,
    target: str = "normalised",
    reconstruction_weight: float = 1.0,
    classification_weight: float = 1.0,
) -> Loss:
    """The loss of asdjax.systems.dual_path, with its arguments: of the head, and of the reconstruction."""

    def loss(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        mask = patch_mask(x.shape, masks, mask_size, x.device) if masks else None
        embedding, reconstruction, normalised = net(x, mask)
        original = x if target == "raw" else normalised.detach()
        error = (reconstruction - original).square().mean((1, 2))
        return classification_weight * top(embedding, label) + reconstruction_weight * error

    return loss


def patch_mask(shape: torch.Size, masks: int, size: int, device: torch.device) -> torch.Tensor:
    """Units (B, L, F) of 1 with patches of 2.2e-16 in each: size x size from anywhere, cut off at the border."""
    hidden = torch.zeros(shape, dtype=torch.bool, device=device)
    for _ in range(masks):
        inside = []
        for places in shape[1:]:
            past = torch.arange(places, device=device) - torch.randint(places, (shape[0], 1), device=device)
            inside.append((past >= 0) & (past < size))
        hidden |= inside[0][:, :, None] & inside[1][:, None]
    return torch.where(hidden, 2.2e-16, 1.0)


def make_step(
    loss: Loss, parameters: Iterable[nn.Parameter], optim: Mapping[str, Any]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """One step of a config's Adam or AdamW at its first learning rate: (x (B, L, F), label (B, C)) -> loss ()."""
    parameters = list(parameters)
    if optim["name"] == "adamw":
        optimizer = torch.optim.AdamW(parameters, optim["lr"], weight_decay=optim["weight_decay"], fused=True)
    else:
        optimizer = torch.optim.Adam(parameters, optim["lr"], fused=True)
    clip = optim.get("clip", 0.0)

    def step(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        mean = loss(x, label).mean()
        optimizer.zero_grad(set_to_none=True)
        mean.backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return mean.detach()

    return step
