"""Fast minimum-norm looks for the way to the boundary where it needs one, and nothing else about it changes."""

from functools import partial

import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel, fmn
from tasks.attacks.geometry import to_hyperplane

SCALE, MASK = tuple(0.5 + i % 5 / 4 for i in range(36)), tuple(i % 4 > 0 for i in range(36))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        return nn.Sequential(*layers).requires_grad_(False).eval()


def samples(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with many equal features, some of them on the bounds, and labels of which four are wrong."""
    x = (torch.rand(25, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 8).round() / 8
    y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    return x, y


@pytest.mark.parametrize("parts", [{}, {"scale": SCALE}, {"mask": MASK}], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_found_is_the_same_to_the_bit_as_with_every_way_sought(monkeypatch, norm, parts):
    model, threat = network(), ThreatModel(norm=norm, eps=0.05, **parts)
    x, y = samples(model)
    found = fmn.minimum_norm(model, x, y, threat=threat, steps=12)
    promised = fmn._promised
    monkeypatch.setattr(fmn, "_promised", lambda *given, unknown: promised(*given, unknown=torch.ones_like(unknown)))
    every = fmn.minimum_norm(model, x, y, threat=threat, steps=12)
    assert all(torch.equal(one, other) for one, other in zip(found, every, strict=True))
    assert found[0].isfinite().sum() > 15


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_way_is_sought_for_what_has_been_fooled(monkeypatch, norm):
    model, sought = network(), []
    x, y = samples(model)

    def counted(slope, *given):
        sought.append(len(slope))
        return to_hyperplane(slope, *given)

    monkeypatch.setattr(fmn, "to_hyperplane", counted)
    search = partial(fmn.minimum_norm, model, threat=ThreatModel(norm=norm, eps=0.05), steps=12)
    away, x_adv = search(x, y)
    fell = away.isfinite()
    assert sought[0] == (25 if norm == "l2" else 21)  # four were wrong from the start
    assert sought == sorted(sought, reverse=True)
    assert norm == "l2" or sought[-1] < 21
    sought.clear()
    search(x[fell], y[fell], start=x_adv[fell])
    assert sought == []
