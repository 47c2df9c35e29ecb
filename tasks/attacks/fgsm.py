"""The one-step attack."""

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tasks.attacks.geometry import farthest, limits, moved
from tasks.attacks.search import slope
from tasks.attacks.threat import ThreatModel


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator) -> Tensor:  # noqa: ARG001
    """Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572: x [B, ...], y [B] -> x_adv [B, ...].

    One full step from x: to the point of ball and box that is farthest along the gradient of the cross-entropy.
    Draws nothing from rng.
    """
    leaf = x.detach().clone().requires_grad_()
    grad = slope(F.cross_entropy(model(leaf).float(), y, reduction="sum"), leaf)
    return moved(x, farthest(grad, threat, limits(x, threat)), threat).detach()
