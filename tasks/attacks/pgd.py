"""Projected gradient descent."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tasks.attacks.geometry import inside, sample, uphill
from tasks.attacks.threat import ThreatModel


def pgd(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, steps: int = 40) -> Tensor:
    """Madry et al., 2018, https://arxiv.org/abs/1706.06083: x [B, ...], y [B] -> x_adv [B, ...].

    The model maps x to logits [B, C]. Starts at random in the ball; a step is 2.5 / steps of the radius,
    enough to cross the ball. Returns the last iterate.
    """
    x_adv = inside(x, x + sample(x, threat, rng), threat)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")  # a mean would scale by 1 / B
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = inside(x, x_adv.detach() + 2.5 / steps * threat.eps * uphill(grad, threat), threat)
    return x_adv.detach()
