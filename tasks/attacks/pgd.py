"""Projected gradient descent."""

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tasks.attacks.geometry import ascend, limits, moved, sample
from tasks.attacks.search import slope
from tasks.attacks.threat import ThreatModel


def pgd(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, steps: int = 40) -> Tensor:
    """Madry et al., 2018, https://arxiv.org/abs/1706.06083: x [B, ...], y [B] -> x_adv [B, ...].

    The model maps x to logits [B, C]. Starts at random in the ball; a step is 2.5 / steps of the radius,
    enough to cross the ball; in L1 and L0, whose steps aim at corners, the i-th goes 2 / (i + 2) of the way. Returns
    the last iterate.
    """
    within, x_adv = limits(x, threat), moved(x, sample(x, threat, rng), threat)
    sparse = threat.norm.startswith(("l1", "l0"))
    for i in range(steps):
        leaf = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(model(leaf).float(), y, reduction="sum")  # a mean would scale by 1 / B
        grad = slope(loss, leaf)
        x_adv = moved(x, ascend(x_adv - x, grad, threat, within, 2 / (i + 2) if sparse else 2.5 / steps), threat)
    return x_adv.detach()
