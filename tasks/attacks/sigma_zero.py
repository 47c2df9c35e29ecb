"""sigma-zero: the fewest features that change the class."""

import math

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.geometry import distance, inside, limits, moved, per_sample
from tasks.attacks.search import margins, slope
from tasks.attacks.threat import ThreatModel

SMOOTH = 1e-3  # of a squared change: there it counts as half a feature (sigma)
THRESHOLD = 0.3  # to begin with, of the changes that are set to zero (tau)


def sigma_zero(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: Generator,  # noqa: ARG001
    steps: int = 100,
) -> Tensor:
    """Cina et al., 2025, https://arxiv.org/abs/2402.01879: x [B, ...], y [B] -> x_adv [B, ...].

    The sparsest change found that fools, brought into the ball. Draws nothing from rng.
    """
    return inside(x, sparsest(model, x, y, threat=threat, steps=steps)[1], threat)


def sparsest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """(distance [B], x_adv [B, ...]): the fewest changes found that fool; infinite, and the last point, where none did.

    Descends on the margin plus a smooth count of the changed features, with gradients scaled to 1 in L-inf, and sets
    changes below a threshold that adapts to zero.
    """
    low, high = limits(x, threat.model_copy(update={"norm": "unbounded"}))
    delta, cut = torch.zeros_like(x), torch.full((len(x),), THRESHOLD, dtype=x.dtype, device=x.device)
    best, fewest = x.clone(), torch.full_like(cut, float("inf"))
    features = x[0].numel()
    for i in range(steps):
        rate = (1 + math.cos(math.pi * i / steps)) / 2
        leaf = delta.detach().requires_grad_()
        x_adv = moved(x, leaf, threat)
        margin = margins(model(x_adv).float(), y)
        smooth = (leaf.square() / (leaf.square() + SMOOTH)).flatten(1).sum(1) / features
        grad = slope((margin.clamp_min(0) + smooth).sum(), leaf)
        wrong = margin.detach() < 0
        count = distance(x, x_adv.detach(), threat)
        better = wrong & (count < fewest)
        fewest = torch.where(better, count, fewest)
        best = torch.where(per_sample(better, like=x), x_adv.detach(), best)
        grad = grad / per_sample(grad.flatten(1).abs().amax(1).clamp_min(1e-12), like=grad)
        delta = (delta - rate * grad).clamp(low, high)
        cut = (cut + torch.where(wrong, 0.01 * rate, -0.01 * rate).to(cut)).clamp(0, 1)
        delta = delta.masked_fill(delta.abs() < per_sample(cut, like=delta), 0.0)
    return fewest, torch.where(per_sample(fewest.isfinite(), like=x), best, moved(x, delta, threat))
