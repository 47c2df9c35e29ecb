"""Where one feature may change: its whole line is looked at."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import SUITES, ThreatModel
from tasks.attacks.search import Search
from tasks.attacks.sweep import sweep
from tasks.metrics import measure

ONE = (False, True, False)
X = torch.tensor([[0.3, 0.5, 0.9], [0.1, 0.05, 0.2], [0.6, 1.0, 0.0]])


class Hollow(nn.Module):
    """The second class only where the second feature is within 0.01 of 0.7; slopes lead away from there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach())
        away = (x[:, 1] - 0.7).abs()
        return torch.stack([away * 0, torch.where(away.detach() < 0.01, 1.0, away - 2)], 1)


def threat(norm: str, **how) -> ThreatModel:
    return ThreatModel(norm=norm, eps={"l0": 2, "unbounded": 1}.get(norm, 0.3), mask=ONE, **how)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0", "unbounded"])
def test_the_points_are_evenly_spaced_from_one_end_of_the_budget_to_the_other(norm):
    model, y = nn.Sequential(), torch.zeros(3, dtype=torch.long)
    asked: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach()))
    model.register_forward_hook(lambda *_: torch.tensor([[1.0, 0.0]]).expand(3, 2))
    whole = norm in ("l0", "unbounded")
    search = Search(model, X, y, threat=threat(norm), rng=torch.Generator())
    asked.clear()
    sweep(search, torch.arange(3), points=5)
    seen = torch.stack(asked, 1)
    assert seen.shape == (3, 5, 3)
    assert torch.equal(seen[:, :, ::2], X[:, None, ::2].expand(3, 5, 2))
    ends = [(0.0, 1.0)] * 3 if whole else [(0.2, 0.8), (0.0, 0.35), (0.7, 1.0)]
    for line, (low, high) in zip(seen[:, :, 1], ends, strict=True):
        assert torch.allclose(line, torch.linspace(low, high, 5), atol=1e-6)


def test_a_scale_stretches_the_line():
    model = Hollow()
    search = Search(model, X[:1], torch.tensor([0]), threat=threat("linf", scale=(1, 0.5, 1)), rng=torch.Generator())
    model.asked.clear()
    sweep(search, torch.arange(1), points=3)
    assert torch.allclose(torch.cat(model.asked)[:, 1], torch.tensor([0.35, 0.5, 0.65]))


@pytest.mark.parametrize("suite", ["standard", "deep"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_what_no_slope_leads_to_is_found_where_one_feature_may_change(norm, suite):
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = torch.linspace(0.42, 0.65, 20)
    found = measure(Hollow(), x, torch.zeros(20, dtype=torch.long), threat=threat(norm), suite=suite)
    assert found.fooled.all()
    assert {a.name for a in found.attacks if a.fooled.any()} == {"sweep"}


@pytest.mark.parametrize("suite", ["quick", "standard", "deep"])
def test_it_runs_only_where_a_mask_leaves_one_feature(suite):
    def rows(mask):
        return [a.name for a in SUITES[suite].under(ThreatModel(norm="l2", eps=0.3, mask=mask))]

    assert "sweep" in rows(ONE)
    assert "sweep" not in rows((True, True, False))
    assert "sweep" not in rows(None)
    assert [name for name in rows(ONE) if name != "sweep"] == rows(None)


def test_of_more_features_each_changes_by_itself():
    model = Hollow()
    x, y = X[:1], torch.tensor([0])
    search = Search(model, x, y, threat=ThreatModel(eps=0.1, mask=(True, False, True)), rng=torch.Generator())
    model.asked.clear()
    sweep(search, torch.arange(1), points=2)
    expected = torch.tensor([[0.2, 0.5, 0.9], [0.4, 0.5, 0.9], [0.3, 0.5, 0.8], [0.3, 0.5, 1.0]])
    assert torch.allclose(torch.cat(model.asked), expected)
