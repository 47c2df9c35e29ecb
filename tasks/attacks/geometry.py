"""The moves that every Lp attack is made of: start somewhere, step uphill, stay inside, measure.

Shapes: B = batch, ... = any input shape.
"""

import torch
from torch import Generator, Tensor

from tasks.attacks.threat import ThreatModel

TINY = 1e-12


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [B] so that it broadcasts against [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def l2(x: Tensor) -> Tensor:
    """Euclidean length of every sample, [B, 1, ...], never zero."""
    return per_sample(x.flatten(1).norm(dim=1).clamp_min(TINY), like=x)


def distance(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """How far each sample moved, in the threat's norm: [B]."""
    delta = (x_adv - x).flatten(1)
    return delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)


def project(delta: Tensor, threat: ThreatModel) -> Tensor:
    """The nearest perturbation inside the ball; one that is inside already is returned as it is."""
    if threat.norm == "linf":
        return delta.clamp(-threat.eps, threat.eps)
    return delta * (threat.eps / l2(delta)).clamp_max(1.0)


def inside(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """x_adv brought into the ball around x and into the box. L2 clips first: scaling towards x stays in the box."""
    x_adv = x_adv.clamp(*threat.bounds)
    return (x + project(x_adv - x, threat)).clamp(*threat.bounds)


def uphill(grad: Tensor, threat: ThreatModel) -> Tensor:
    """The unit step, in the threat's own norm, that raises a linearised loss the most."""
    return grad.sign() if threat.norm == "linf" else grad / l2(grad)


def sample(x: Tensor, threat: ThreatModel, rng: Generator) -> Tensor:
    """A random perturbation with the shape of x, from inside the ball (L2: radius uniform in 0..eps)."""
    if threat.norm == "linf":
        return threat.eps * torch.empty_like(x).uniform_(-1, 1, generator=rng)
    radius = per_sample(torch.rand(len(x), generator=rng, device=x.device, dtype=x.dtype), like=x)
    direction = torch.empty_like(x).normal_(generator=rng)
    return threat.eps * radius * direction / l2(direction)
