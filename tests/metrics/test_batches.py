"""However many samples there are: no more pass through a model at once than its inputs' size allows."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import AttackConfig, ThreatModel
from tasks.attacks.search import at_once
from tasks.metrics import examine, measure
from tasks.metrics.curve import security_curve

LARGE = (1, 64, 66)  # of which 64 pass at once
THREATS = [ThreatModel(norm=norm, eps=eps) for norm, eps in (("linf", 0.02), ("l2", 1.0), ("l1", 40.0), ("l0", 40))]


class Counting(nn.Module):
    """Brightness against where the threshold lies; knows the largest batch that it was given."""

    def __init__(self, rounded: bool) -> None:
        super().__init__()
        self.rounded, self.largest = rounded, 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        x = (x * 16).round() / 16 if self.rounded else x
        bright = x.mean((1, 2, 3)) - 0.5
        return torch.stack([bright, -bright, 0.2 * bright - 0.2], 1)


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    shift = torch.rand(80, 1, 1, 1, generator=rng) * 0.2 - 0.1
    x = (torch.rand(80, *LARGE, generator=rng) + shift).clamp(0, 1)
    return x, (x.mean((1, 2, 3)) < 0.5).long()


def own(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: torch.Generator) -> Tensor:
    """An attack of a user's own: one look at all that it is given."""
    model(x)
    return x


@pytest.mark.parametrize(
    ("threat", "rounded"),
    [*((threat, False) for threat in THREATS), (ThreatModel(norm="linf", eps=0.001), True)],
    ids=str,
)
def test_measuring_the_curve_the_signs_and_the_escalation_give_a_model_no_more_at_once(samples, threat, rounded):
    (x, y), model = samples, Counting(rounded)
    outcomes = measure(model, x, y, threat=threat, suite="quick")
    assert outcomes.problems == ()
    outcomes, curve = security_curve(model, x, y, outcomes=outcomes)
    _, _, soundness = examine(model, x, y, outcomes=outcomes, curve=curve)
    assert bool(soundness.steps) == rounded
    assert model.largest == at_once(x) == 64


@pytest.mark.parametrize("name", ["pgd", "fgsm", "apgd-ce", "noise", "hopskipjump", "sigma-zero", f"{__name__}:own"])
def test_attacks_by_name_are_given_no_more_at_once(samples, name):
    (x, y), model = samples, Counting(rounded=False)
    short = (
        {"steps": 3} if name in ("pgd", "apgd-ce", "sigma-zero") else {"queries": 50} if name == "hopskipjump" else {}
    )
    threat = THREATS[3] if name == "sigma-zero" else THREATS[0]
    found = measure(model, x, y, threat=threat, suite=[AttackConfig(name=name, params=short)])
    assert found.attacks[0].error is None
    assert found.attacks[0].tried.sum() == len(x)
    assert found.attacks[0].forward_samples >= len(x)
    assert model.largest <= 64
