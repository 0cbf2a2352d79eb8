"""The autoencoder of the official baselines in PyTorch, trained as its users do and as fast as that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def network(widths: Sequence[int], inputs: int) -> nn.Sequential:
    """Linear layers, each but the last followed by batch normalisation and ReLU: vectors (B, inputs) -> the same."""
    layers: list[nn.Module] = []
    for before, width in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Linear(before, width), nn.BatchNorm1d(width, momentum=0.01, eps=1e-3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], inputs))


def make_step(net: nn.Module, lr: float = 1e-3, fused: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """One Adam step on the mean squared error: vectors (B, D) -> loss (). `fused`: all parameters in one kernel."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=fused or None)

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(net(x), x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def loaded(vectors: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Batches without end by a shuffling DataLoader over a TensorDataset: vectors (n, D) -> (B, D)."""
    dataset = torch.utils.data.TensorDataset(vectors)
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, num_workers=0, drop_last=True)
    while True:
        for (batch,) in loader:
            yield batch


def indexed(vectors: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """The same batches by one permutation an epoch and the tensor's own indexing."""
    whole = len(vectors) // batch_size
    while True:
        for rows in torch.randperm(len(vectors))[: whole * batch_size].split(batch_size):
            yield vectors[rows]


def fill(net: nn.Sequential, variables: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Puts variables of asdjax's network, by layer (Dense_0, BatchNorm_0, ...), into this one."""
    linear = (module for module in net if isinstance(module, nn.Linear))
    norms = (module for module in net if isinstance(module, nn.BatchNorm1d))
    names = dict(scale="weight", bias="bias", mean="running_mean", var="running_var")
    with torch.no_grad():
        for i, module in enumerate(linear):
            module.weight.copy_(torch.tensor(np.asarray(variables[f"Dense_{i}"]["kernel"]).T.copy()))
            module.bias.copy_(torch.tensor(np.asarray(variables[f"Dense_{i}"]["bias"])))
        for i, module in enumerate(norms):
            for ours, theirs in names.items():
                getattr(module, theirs).copy_(torch.tensor(np.asarray(variables[f"BatchNorm_{i}"][ours])))
