"""A step of the escalation goes in cells, and touches of each cell what is the cell's."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.attacks import ThreatModel
from tasks.attacks.search import Search, margins
from tasks.metrics import escalation, measure
from tasks.metrics.isolation import untouched

BLOCK, FEATURES = 10, 6


class Moved(TorchDispatchMode):
    """How many numbers were brought into another precision or onto another device at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.numbers = max(self.numbers, result.numel())
        return result


def test_of_the_nearest_points_each_cell_is_brought_its_own(monkeypatch):
    monkeypatch.setattr(escalation, "BLOCK", BLOCK)
    rng = torch.Generator().manual_seed(0)
    model = nn.Linear(FEATURES, 2)
    nn.init.normal_(model.weight, generator=rng)
    x = torch.rand(5 * BLOCK, FEATURES, generator=rng)
    outcomes = measure(model, x, model(x).argmax(1), threat=ThreatModel(eps=0.001), suite=["fgsm"])
    starts: list[torch.Tensor] = []
    x, y = x.double(), model.double()(x.double()).argmax(1)
    with untouched(model) as meter, Moved() as moved:
        escalation._escalated(
            "nothing", lambda search, rows: starts.append(search.nearest.clone()), meter, meter, x, y, outcomes
        )
    standing = ~outcomes.fooled
    assert torch.equal(torch.cat(starts).float(), outcomes.nearest[standing])
    assert standing.sum() > 4 * BLOCK
    assert 0 < moved.numbers <= BLOCK * FEATURES


@pytest.mark.parametrize("rejected", [True, False])
def test_what_the_judge_rejects_leaves_a_sample_where_it_stood(monkeypatch, rejected):
    rng = torch.Generator().manual_seed(0)
    model = nn.Linear(FEATURES, 2).requires_grad_(False)
    nn.init.normal_(model.weight, generator=rng)
    x = torch.rand(20, FEATURES, generator=rng)
    y, threat = model(x).argmax(1), ThreatModel(eps=0.9)
    outcomes = measure(model, x, y, threat=threat, suite=["noise"])
    outcomes = replace(outcomes, fooled=torch.zeros_like(outcomes.fooled), nearest=x, margin=margins(model(x), y))
    if rejected:
        monkeypatch.setattr(escalation, "judged", lambda meter, x: (meter(x), y))
    with untouched(model) as meter:
        after, step = escalation._escalated("restarts", escalation._restarts, meter, meter, x, y, outcomes)
    assert bool(after.fooled.any()) is not rejected
    assert step.fooled == after.fooled.sum()
    torch.testing.assert_close(after.margin, margins(model(after.nearest), y))
    assert torch.equal(after.margin < 0, after.fooled)


@pytest.mark.parametrize(("fall", "rounds", "left"), [(0, 1, 6), (1, 3, 3), (3, 2, 0), (6, 1, 0)])
def test_restarts_go_on_while_they_gain_on_what_is_left(fall, rounds, left, monkeypatch):
    x = torch.rand(6, FEATURES, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(FEATURES, 2)
    search = Search(model, x, model(x).argmax(1), threat=ThreatModel(eps=0.1), rng=torch.Generator())
    given: list[tuple[str, int]] = []

    def fell(search, rows, *, starts, steps):
        given.append((starts, len(rows)))
        search.fooled[rows[:fall]] = True

    monkeypatch.setattr(escalation.arms, "restarts", fell)
    escalation._restarts(search, search.standing())
    assert given == [(starts, 6 - number * fall) for number, starts in enumerate(escalation.ROUNDS[:rounds])]
    assert len(search.standing()) == left
