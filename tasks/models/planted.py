"""Models with a known fault: each makes robustness look better than it is, or a number mean nothing.

They exist so that the signs of soundness can be tested on what they must catch (`redoubt selftest`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEEP = 2000.0


class Saturated(nn.Module):
    """Logits times 2000: cross-entropy has no slope left."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        logits: Tensor = STEEP * self.net(x)
        return logits


class Quantised(nn.Module):
    """The input rounded to 5 levels: no slope at all."""

    def __init__(self, net: nn.Module, levels: int = 5) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] in 0..1 -> logits [B, C]."""
        logits: Tensor = self.net((x * (self.levels - 1)).round() / (self.levels - 1))
        return logits


class Detached(nn.Module):
    """The input smoothed outside of autograd, as by a library that is not torch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """X [B, C, H, W] -> logits [B, classes]."""
        with torch.no_grad():
            smooth = 0.8 * x + 0.2 * F.avg_pool2d(x, 3, stride=1, padding=1)
        logits: Tensor = self.net(smooth)
        return logits


class Noisy(nn.Module):
    """Noise of standard deviation 0.2 on the input, anew in each pass."""

    def __init__(self, net: nn.Module, sigma: float = 0.2) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        logits: Tensor = self.net(x + self.sigma * torch.randn_like(x))
        return logits


class Steps(nn.Module):
    """clip(z, 0, 1), built of two rectifiers and sharpened by `slope`, at which every one of them is shut or full."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, z: Tensor) -> Tensor:
        """Z [...] -> the same shape, in 0..1."""
        z = 0.5 + self.slope * z
        return F.relu(z) - F.relu(z - 1)


class InTraining(nn.Module):
    """Batch statistics in every pass, whatever mode it is put into: an answer depends on its company."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        for module in self.net.modules():
            module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        logits: Tensor = self.net(x)
        return logits


class ReadsTheSeed(nn.Module):
    """Noise that follows from torch's global seed: one seed's answers are not another's, though each is constant."""

    def __init__(self, net: nn.Module, sigma: float = 0.2) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        rng = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        noise = torch.randn(x.shape[1:], generator=rng).to(x)
        logits: Tensor = self.net(x + self.sigma * noise)
        return logits


class _Lies(torch.autograd.Function):
    """The identity, with noise for a slope."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return torch.randn_like(grads[0])


class LyingSlope(nn.Module):
    """The net's own answers, with a backward pass that has nothing to do with them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        logits: Tensor = self.net(_Lies.apply(x))  # type: ignore[no-untyped-call]  # torch's own
        return logits


def step_mlp(slope: float = 1.0) -> nn.Module:
    """Logits [B, 10] of images [B, 1, 8, 8], through hidden units that are steps at a large slope."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), Steps(slope), nn.Linear(256, 10))


def batchnorm_mlp() -> nn.Module:
    """Logits [B, 10] of images [B, 1, 8, 8], with batch normalisation and dropout."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "saturated logits": Saturated,
    "quantised input": Quantised,
    "detached preprocessing": Detached,
    "slope that lies": LyingSlope,
    "input noise": Noisy,
    "reads the seed": ReadsTheSeed,
}
