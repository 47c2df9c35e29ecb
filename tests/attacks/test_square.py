"""What one try of Square changes in L2: either two windows, or all of the perturbation's proportions."""

import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel
from tasks.attacks import square as module
from tasks.attacks.geometry import farthest, limits
from tasks.attacks.search import Search

SIDE, COUNT, SHARE = 12, 40, 0.1
WINDOW = 4**2  # round(sqrt(0.1 * 12 * 12)) on a side


def tried(local: float, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Perturbations of length eps before and after a try, and eps; the box is far."""
    monkeypatch.setattr(module, "LOCAL", local)
    rng, threat = torch.Generator().manual_seed(0), ThreatModel(norm="l2", eps=0.4)
    x = torch.full((COUNT, 2, SIDE, SIDE), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE**2, 3))
    search = Search(model, x, torch.zeros(COUNT, dtype=torch.long), threat=threat, rng=rng)
    delta = farthest(torch.randn(x.shape, generator=rng), threat, limits(x, threat))
    return delta, module._changed(search, torch.arange(COUNT), delta, torch.full((COUNT,), SHARE)), threat.eps


def test_a_local_try_moves_length_from_one_window_to_another(monkeypatch):
    before, after, eps = tried(1.0, monkeypatch)
    differs = ((after - before).abs() > 1e-5).any(1).flatten(1).sum(1)
    assert (differs >= WINDOW).all()
    assert (differs <= 2 * WINDOW).all()
    emptied = ((after == 0) & (before != 0)).all(1).flatten(1).sum(1)
    assert (emptied <= WINDOW).all()
    assert emptied.max() == WINDOW
    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.full((COUNT,), eps))


def test_another_try_gives_a_window_as_much_as_all_the_rest_together(monkeypatch):
    before, after, eps = tried(0.0, monkeypatch)
    assert ((after - before).abs() > 1e-5).any(1).flatten(1).sum(1).amin() > 2 * WINDOW
    largest = after.flatten(2).square().topk(WINDOW, dim=2).values.sum((1, 2))
    assert (largest > 0.45 * eps**2).all()
    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.full((COUNT,), eps))
