"""A budget of queries is hard: a model that counts its answers, sample by sample."""

import pytest
import torch
from torch import nn

from tasks.attacks import ATTACKS, ThreatModel
from tasks.attacks.search import Search
from tasks.attacks.square import square

COUNT = 5  # samples, told apart by a last feature that no attack may change
THREATS = [
    ThreatModel(norm=norm, eps=1 if norm == "l0" else 0.01, mask=(*[True] * 6, False)) for norm in ("linf", "l2", "l0")
]


class Counting(nn.Module):
    """Asked for x [B, 7], notes of which sample each row is."""

    def __init__(self, firm: float = 1.0) -> None:
        super().__init__()
        self.asked, self.firm = torch.zeros(COUNT, dtype=torch.long), firm

    def forward(self, x):
        self.asked += torch.bincount((x[:, -1] * COUNT).round().long(), minlength=COUNT)
        lead = self.firm + 0.1 * x[:, :6].sum(1)
        return torch.stack([lead, -lead], 1)


def samples():
    x = torch.rand(COUNT, 7, generator=torch.Generator().manual_seed(0))
    x[:, -1] = torch.arange(COUNT) / COUNT
    return x, torch.zeros(COUNT, dtype=torch.long)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("queries", [1, 17, 100])
@pytest.mark.parametrize("name", ["hopskipjump", "square"])
def test_no_sample_is_asked_about_more_often_than_allowed(name, queries, threat):
    model, (x, y) = Counting(), samples()
    ATTACKS[name](model, x, y, threat=threat, rng=torch.Generator().manual_seed(0), queries=queries)
    assert model.asked.max() <= queries
    assert model.asked.min() >= 1


@pytest.mark.parametrize("queries", [1, 17, 100])
def test_hopskipjump_keeps_to_its_budget_where_it_walks_along_the_boundary(queries):
    model, (x, y) = Counting(firm=-0.25), samples()
    y = (model(x).argmax(1)).clone()
    model.asked.zero_()
    ATTACKS["hopskipjump"](model, x, y, threat=THREATS[1], rng=torch.Generator().manual_seed(0), queries=queries)
    assert 1 <= model.asked.min() <= model.asked.max() <= queries


@pytest.mark.parametrize("queries", [1, 17, 100])
def test_square_keeps_to_its_budget_over_many_turns_and_uncertain_company(queries):
    model, (x, y) = Counting(), samples()
    rng = torch.Generator().manual_seed(0)
    search = Search(model, x, y, threat=THREATS[0], rng=rng)
    for turn in range(60):
        rows = torch.randperm(COUNT, generator=rng)[: 1 + turn % COUNT]
        square(search, rows, queries=queries, burst=7)
    assert (model.asked <= queries).all()
    assert model.asked.min() >= min(queries, 70)


def test_square_asks_all_that_it_may_of_what_stands():
    model, (x, y) = Counting(), samples()
    ATTACKS["square"](model, x, y, threat=THREATS[0], rng=torch.Generator().manual_seed(0), queries=100)
    assert (model.asked == 100).all()


@pytest.mark.parametrize("count", [1, 3])
def test_square_asks_something_else_with_each_row_of_a_pass(count):
    """Of so many features that chance picks no window twice, nor one that is already as it would be."""

    class Distinct(nn.Module):
        def forward(self, x):
            assert len(x.unique(dim=0)) == len(x), f"{len(x)} rows hold {len(x.unique(dim=0))} points"
            return torch.stack([(x * torch.tensor([1.0, -1.0]).repeat(500)).sum(1) + 10, torch.zeros(len(x))], 1)

    x, y = torch.rand(count, 1000, generator=torch.Generator().manual_seed(0)), torch.zeros(count, dtype=torch.long)
    threat = ThreatModel(norm="linf", eps=0.01)
    ATTACKS["square"](Distinct(), x, y, threat=threat, rng=torch.Generator().manual_seed(0), queries=100)
