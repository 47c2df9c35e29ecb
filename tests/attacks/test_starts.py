"""Where a restart begins: each kind of start, seen as the first inputs that the model is asked about."""

import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel
from tasks.attacks.arms import STARTS, restarts
from tasks.attacks.geometry import distance, inside
from tasks.attacks.search import Search

SIZES = {"linf": 0.01, "l2": 0.1, "l1": 0.3, "l0": 1, "l0-pixels": 1}


class Heard(nn.Module):
    """Class 1 where the mean of the first half is above that of the second; keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(x.detach().clone())
        first, second = x.flatten(1).chunk(2, dim=1)
        lead = first.mean(1) - second.mean(1)
        return torch.stack([-lead, lead], dim=1)


def searched(x: torch.Tensor, norm: str, eps: float | None = None) -> Search:
    """A search over x, every sample of which the model knows."""
    model = Heard()
    threat = ThreatModel(norm=norm, eps=SIZES[norm] if eps is None else eps)
    return Search(model, x, model(x).argmax(1), threat=threat, rng=torch.Generator().manual_seed(3))


def begun(search: Search, rows: list[int], start: str) -> torch.Tensor:
    """The perturbations that the model is asked about first."""
    search.model.asked.clear()
    restarts(search, torch.tensor(rows), starts=start, steps=1)
    return search.model.asked[0] - search.x[rows]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("norm", SIZES)
def test_every_start_is_within_ball_and_box(norm, start):
    x = torch.rand(40, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    search = searched(x, norm)
    search.nearest = inside(x, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(4)), search.threat)
    search.fooled[:20] = True  # they lend
    for _ in range(3):
        rows = (~search.fooled).nonzero().flatten().tolist()
        assert len(rows) > 4
        delta = begun(search, rows, start)
        assert (distance(x[rows], x[rows] + delta, search.threat) <= search.threat.eps + 1e-5).all()
        assert ((x[rows] + delta >= 0) & (x[rows] + delta <= 1)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_borrowed_is_what_fooled_the_nearest_sample_of_the_class_then_the_next(norm):
    #            0: to be tried   1: near, fell   2: farther, fell   3: nearest, of the other class   4: near, stands
    x = torch.tensor([[0.3, 0.5], [0.32, 0.5], [0.36, 0.5], [0.3, 0.29], [0.31, 0.5]])
    search = searched(x, norm, eps=0.4)
    lent = torch.tensor([[0.0, 0.0], [0.2, -0.05], [0.1, -0.15], [-0.1, 0.1], [0.05, 0.05]])
    search.nearest, search.fooled = x + lent, torch.tensor([False, True, True, True, False])
    assert search.y.tolist() == [0, 0, 0, 1, 0]
    found = []
    for _ in range(3):
        found.append(begun(search, [0], "borrowed")[0])
        search.fooled[0] = False
    assert torch.allclose(torch.stack(found[:2]), lent[1:3], atol=1e-6)
    assert not any(torch.allclose(found[2], one, atol=1e-3) for one in lent)  # a third there is none: a pattern


def test_borrowed_is_nothing_from_a_sample_that_the_model_had_wrong():
    x = torch.tensor([[0.3, 0.5], [0.51, 0.5]])
    search = searched(x, "linf")
    assert search.y.tolist() == [0, 1]
    search.y, search.fooled = torch.tensor([0, 0]), torch.tensor([False, True])
    assert begun(search, [0], "borrowed").abs().sum() > 0  # a pattern: to lend no change would be no start


def test_thinned_keeps_about_half_of_what_the_nearest_point_changes():
    x = torch.full((30, 400), 0.5)
    x[:, :200] -= 0.3  # too far for any of them to fall
    search = searched(x, "linf")
    delta = 0.02 * torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) + 0.01
    found_twice = []
    for _ in range(2):
        search.nearest = x + delta
        found_twice.append(begun(search, list(range(30)), "thinned"))
    first, second = found_twice
    for found in found_twice:
        kept = found.abs() > 1e-6
        assert torch.allclose(found[kept], delta[kept], atol=1e-6)
        assert 0.46 < kept.float().mean() < 0.54
    assert ((first.abs() > 1e-6) != (second.abs() > 1e-6)).float().mean() > 0.4  # another half each time
