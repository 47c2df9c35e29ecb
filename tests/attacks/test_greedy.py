"""The greedy sparse attack and the suite against every single-feature change there is."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tasks.attacks import ATTACKS, ThreatModel, search
from tasks.metrics import measure


def network(classes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
        model = nn.Sequential(*layers).requires_grad_(False)
        model[4].bias -= 0.7 * model(torch.rand(500, 20)).mean(0)  # else one class wins everywhere
        return model.eval()


def falls_to_one_feature(model: nn.Module, x: torch.Tensor, y: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Whether some unit, all its features at a bound each, changes the class: bool [N]. units [U, F] flags."""
    fell = torch.zeros(len(x), dtype=torch.bool)
    for bound in (0.0, 1.0):
        for unit in units:
            moved = torch.where(unit, torch.full_like(x, bound), x)
            fell |= model(moved).argmax(1) != y
    return fell


@pytest.mark.parametrize("classes", [2, 4])
def test_one_change_is_searched_exhaustively(classes):
    model, x = network(classes), torch.rand(150, 20, generator=torch.Generator().manual_seed(0))
    threat = ThreatModel(norm="l0", eps=1)
    with torch.no_grad():
        y = model(x).argmax(1)
        truth = falls_to_one_feature(model, x, y, torch.eye(20, dtype=torch.bool))
        x_adv = ATTACKS["greedy"](model, x, y, threat=threat, rng=torch.Generator())
        alone = model(x_adv).argmax(1) != y
    assert 20 < truth.sum() < 140  # the question was not trivial
    assert torch.equal(alone, truth)
    assert not (measure(model, x, y, threat=threat, suite="standard").fooled < truth).any()


def test_a_pixel_s_channels_change_together():
    model = nn.Sequential(nn.Flatten(), network(3))
    x = torch.rand(80, 2, 5, 2, generator=torch.Generator().manual_seed(1))
    threat = ThreatModel(norm="l0-pixels", eps=1)
    with torch.no_grad():
        y = model(x).argmax(1)
        pixels = torch.eye(10, dtype=torch.bool).view(10, 1, 5, 2).expand(10, 2, 5, 2)
        truth = falls_to_one_feature(model, x, y, pixels)
        x_adv = ATTACKS["greedy"](model, x, y, threat=threat, rng=torch.Generator())
        fooled = model(x_adv).argmax(1) != y
    changed = (x_adv != x).any(1).flatten(1).sum(1)
    assert changed.max() <= 1
    assert fooled.sum() >= 0.8 * truth.sum() > 10  # both channels at one bound is only some of what it may try


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds that is made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = [] if func.is_view else tree_leaves(result)
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))])
        return result


def test_of_many_candidates_no_more_are_laid_out_than_pass_through_the_model(monkeypatch):
    monkeypatch.setattr(search, "at_once", lambda x: 8)
    model, x = network(2), torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    threat = ThreatModel(norm="l0", eps=1)
    with torch.no_grad():
        y = model(x).argmax(1)
        truth = falls_to_one_feature(model, x, y, torch.eye(20, dtype=torch.bool))
    with Largest() as largest:
        x_adv = ATTACKS["greedy"](model, x, y, threat=threat, rng=torch.Generator(), width=64)
    assert torch.equal(model(x_adv).argmax(1) != y, truth)
    assert 2 < truth.sum() < 18  # the question was not trivial
    assert largest.numbers <= 20 * 32  # the samples in the model, and not 40 candidates of 20 features for one
