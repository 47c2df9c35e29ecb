"""How a descent goes: from a ball that is larger at first into the budget, exact where it is linear, and cut short."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.arms import classes, margin, restarts
from tasks.attacks.geometry import distance
from tasks.attacks.search import Search

FEATURES, COUNT = 30, 90
EPS = {"linf": 0.003, "l2": 0.0135, "l1": 0.032}  # at which about half of the samples fall
WIDER = {"l2": 3.0, "l1": 6.0}  # where a first descent begins, in eps
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class Heard(nn.Module):
    """Two classes, linear, the boundary through the middle of the box; keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.randn(FEATURES, generator=torch.Generator().manual_seed(0))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        lead = (x - 0.5) @ self.slope
        return torch.stack([-lead, lead], dim=1)


def searched(norm: str, share: float = 1.0) -> tuple[Search, Tensor]:
    """A search over samples far from the box, eps being so much of EPS, and how far each is from the boundary: [N]."""
    model, threat = Heard(), ThreatModel(norm=norm, eps=share * EPS[norm])
    x = 0.5 + 0.02 * torch.randn(COUNT, FEATURES, generator=torch.Generator().manual_seed(1))
    away = ((x - 0.5) @ model.slope).abs() / model.slope.norm(p=DUAL[norm])
    search = Search(model, x, model(x).argmax(1), threat=threat, rng=torch.Generator().manual_seed(3))
    model.asked.clear()
    return search, away


@pytest.mark.parametrize("arm", [margin, classes])
@pytest.mark.parametrize("norm", EPS)
def test_a_single_step_ends_within_the_budget_and_is_exact_on_a_linear_model(norm, arm):
    search, away = searched(norm)
    eps = search.threat.eps
    assert 20 < (away < eps).sum() < 70
    arm(search, torch.arange(COUNT), steps=1)
    assert search.fooled[away < 0.999 * eps].all()
    assert not search.fooled[away > 1.001 * eps].any()


@pytest.mark.parametrize("norm", EPS)
def test_the_ball_is_larger_at_first_in_l2_and_l1_and_soon_is_eps(norm):
    search, away = searched(norm, share=0.01)
    rows = (away > 10 * search.threat.eps).nonzero().flatten()  # whom no step fells
    assert len(rows) > 40
    margin(search, rows, steps=12)
    assert len(search.model.asked) == 13
    far = torch.stack([distance(search.x[rows], x, search.threat) for x in search.model.asked]) / search.threat.eps
    assert far[1].amax() == pytest.approx(WIDER.get(norm, 1.0), rel=0.01)
    assert far[4:].amax() <= 1.001
    assert not search.fooled.any()


@pytest.mark.parametrize("norm", EPS)
def test_a_sample_s_restarts_take_turns_among_balls(norm):
    search, away = searched(norm, share=0.01)
    rows = (away > 20 * search.threat.eps).nonzero().flatten()
    assert len(rows) > 30
    first = []
    for _ in range(3):
        search.model.asked.clear()
        restarts(search, rows, starts="nearest", steps=12)
        x = search.model.asked[1]
        first.append((distance(search.x[rows], x, search.threat).amax() / search.threat.eps).item())
    wanted = {"linf": [1.0, 1.0, 1.0], "l2": [3.0, 2.0, 3.0], "l1": [6.0, 12.0, 3.0]}[norm]
    assert first == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("arm", [margin, restarts, classes])
def test_after_the_cut_the_better_third_goes_on(arm):
    search, away = searched("linf", share=0.01)
    rows = (away > 2 * search.threat.eps).nonzero().flatten()
    how = {"starts": "nearest"} if arm is restarts else {}
    arm(search, rows, steps=10, cut=6, **how)
    counts = [len(x) for x in search.model.asked]
    assert counts[:7] == [len(rows)] * 7
    third = round(len(rows) / 3)
    assert all(abs(count - third) <= 1 for count in counts[7:])
    assert len(counts) == 11
    nearest = search.x[rows[away[rows].argsort()[: counts[-1]]]]
    gone_on = search.model.asked[-1]
    assert torch.cdist(gone_on, nearest).amin(1).amax() < 0.01  # those that were the nearest to falling
