"""Nets whose robustness is known or learnt in a second, and what holds for whatever is found on them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import distance
from tasks.data import digits
from tasks.metrics import Outcomes
from tasks.models import TrainingConfig, fit

LINF, L2, L1 = (  # where about half of the digits stand
    ThreatModel(norm=norm, eps=eps) for norm, eps in (("linf", 0.15), ("l2", 0.6), ("l1", 1.6))
)
FEATURES = 6
SMALL = ThreatModel(norm="linf", eps=0.05)  # for the linear models
WON = ThreatModel(norm="linf", eps=0.1)  # for Winners


class Through(nn.Module):
    """A model behind a function of its input, before one of its logits."""

    def __init__(self, model: nn.Module, before: Callable = lambda x: x, after: Callable = lambda z: z) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def trained(model: nn.Module, defence, *, eps: float, epochs: int) -> nn.Module:
    threat = ThreatModel(norm="linf", eps=eps)
    config = TrainingConfig(model="its", threat=threat, epochs=epochs, lr=5e-3, device="cpu", precision="fp32")
    fit(model, digits("train"), digits("select"), defence, config)
    return model.requires_grad_(False)


def shown(count: int) -> tuple[Tensor, Tensor]:
    x, y = digits("test")
    return x[:count], y[:count]


def few(split: str, classes: int) -> tuple[Tensor, Tensor]:
    """The digits below that number."""
    x, y = digits(split)
    return x[y < classes], y[y < classes]


def linear(classes: int, features: int = FEATURES) -> nn.Linear:
    """Every boundary meets in the middle of the box."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(features, classes).requires_grad_(False)
    model.bias.copy_(-0.5 * model.weight.sum(1))
    return model


def amid(model: nn.Module, count: int = 200) -> tuple[Tensor, Tensor]:
    """Rows 0.3..0.7, so far from the box that no ball here meets it, and their classes."""
    x = 0.5 + 0.1 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    return x, model(x).argmax(1)


def boundary_distance(model: nn.Linear, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The smallest perturbation that changes the class, [B]: the gap over the slope's dual norm."""
    slope = (model.weight - model.weight[y].unsqueeze(1)) * torch.tensor(threat.mask or (True,) * FEATURES)
    logits = model(x)
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[threat.norm]
    away = (logits.gather(1, y.unsqueeze(1)) - logits) / slope.norm(p=dual, dim=2).clamp_min(1e-12)
    return away.scatter(1, y.unsqueeze(1), float("inf")).amin(1)


def passes(found: Outcomes) -> int:
    return found.forward_samples + found.backward_samples


def assert_honest(model: nn.Module, x: Tensor, y: Tensor, found: Outcomes) -> None:
    """What counts as fooled is misclassified, inside ball and box; what stands is as it was."""
    threat, (low, high) = found.threat, found.threat.bounds
    assert found.problems == ()
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.fooled)
    assert distance(x, found.x_adv, threat).max() <= threat.eps * (1 + 1e-4)
    assert low <= found.x_adv.min() <= found.x_adv.max() <= high
    assert torch.equal(found.x_adv[~found.fooled], x[~found.fooled])


class Winners(nn.Module):
    """Only the highest tenth of the features pass (k-WTA: Xiao et al., 2020, https://arxiv.org/abs/1905.10510)."""

    def forward(self, x):
        return x * (x >= x.topk(x.shape[1] // 10, dim=1).values[:, -1:])
