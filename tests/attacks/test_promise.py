"""Which classes are worth aiming at: told from the slopes at the clean input before any descent is paid for."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel, arms
from tasks.attacks.arms import classes
from tasks.attacks.promise import NEAR, REACH, ranked
from tasks.attacks.search import Search, sloped
from tasks.metrics.isolation import Meter

EPS = 0.2
LINF = ThreatModel(norm="linf", eps=EPS)
SLOPES = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [1.0, -2.0, 2.0, 0.5], [0.5, 0.5, 0.0, 0.0]])
OFFSETS = torch.tensor([1.0, 0.9, 0.0, -0.5])  # class 1 is near and out of reach, 2 within it, 3 is far


class Linear(nn.Module):
    """Four classes of four features, the first of them the constant one."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) @ SLOPES.T + OFFSETS


def search(n: int = 3, *, threat: ThreatModel = LINF, **known: object) -> tuple[Search, Meter]:
    """At the middle of the box, where a linear model's logits are its offsets."""
    meter, x = Meter(Linear()), torch.full((n, 4), 0.5)
    found = Search(meter, x, torch.zeros(n, dtype=torch.long), threat=threat, rng=torch.Generator(), **known)
    meter.forward_samples = meter.backward_samples = 0
    return found, meter


def strongest(slopes: Tensor, norm: str) -> Tensor:
    """By how much a linear function with these slopes [K, 4] can be lowered within EPS: the dual norm, EPS times."""
    dual = {"linf": slopes.abs().sum(1), "l2": slopes.norm(dim=1), "l1": slopes.abs().amax(1)}[norm]
    return EPS * dual


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_the_slopes_foretell_is_exact_where_the_model_is_linear(norm):
    found, _ = search(threat=ThreatModel(norm=norm, eps=EPS))
    classes(found, found.standing(), steps=1, slopes=3)
    told = 1.0 - OFFSETS[1:] - strongest(SLOPES[1:], norm)
    assert torch.allclose(found.foretold[:, 1:], told.expand(3, 3), atol=1e-6)
    assert found.foretold[:, 0].isnan().all()  # nobody aims at a sample's own class


def test_classes_that_tie_keep_their_order():
    x, tied = torch.full((3, 4), 0.5), torch.zeros(3, 200)
    tied[:, 100:] = 1.0
    found = Search(Linear(), x, torch.zeros(3, dtype=torch.long), threat=LINF, rng=torch.Generator(), clean=tied)
    assert ranked(found, torch.arange(3)).tolist() == [[*range(100, 200), *range(1, 100)]] * 3


def test_what_is_out_of_reach_is_not_aimed_at_however_near_its_logit_is():
    plain, _ = search()
    classes(plain, plain.standing(), steps=4, pairs=1.0)
    assert plain.aimed.nonzero()[:, 1].tolist() == [1, 1, 1]  # by logits alone
    assert not plain.fooled.any()
    closer, _ = search()
    classes(closer, closer.standing(), steps=4, pairs=1.0, slopes=3)
    assert closer.aimed.nonzero()[:, 1].tolist() == [2, 2, 2]
    assert closer.fooled.all()


def test_the_slopes_of_so_many_classes_are_asked_for_once_and_of_more_where_none_of_them_is_left():
    found, meter = search()
    classes(found, found.standing(), steps=1, slopes=1)  # class 1, out of reach
    assert (meter.forward_samples, meter.backward_samples) == (3, 3)
    assert not found.aimed.any()
    classes(found, found.standing(), steps=1, slopes=1)  # class 2, one step to where the sample falls
    assert found.fooled.all()
    assert found.aimed.nonzero()[:, 1].tolist() == [2, 2, 2]
    assert found.foretold[:, 3].isnan().all()


def test_pairs_that_are_within_reach_wait_for_the_next_visit_at_no_cost():
    found, meter = search(4)
    found.x[:2] -= 0.001  # a little easier to fool into class 2
    classes(found, found.standing(), steps=1, pairs=0.5, slopes=2)
    assert found.fooled.tolist() == [True, True, False, False]
    backward = meter.backward_samples
    classes(found, found.standing(), steps=1, pairs=0.5, slopes=2)
    assert found.aimed[2:, 2].sum() == 1
    assert meter.backward_samples - backward <= 1  # of the row that moves, none to ask again
    assert found.foretold[:, 3].isnan().all()


@pytest.mark.parametrize(("reach", "count"), [(0.0, 4), (0.1, 1), (0.3, 3), (0.6, 4)])
def test_a_sample_that_is_near_to_falling_is_aimed_at_other_classes_of_which_more_is_left(reach, count):
    found, _ = search(4)
    found.margin[:] = torch.tensor([0.1, 1.0, 1.0, 2.0])
    told = 1.0 - strongest(SLOPES, "linf")[2]  # of the way to class 2, whose clean margin is 1
    assert told == pytest.approx(-0.1)
    assert ((told + NEAR * found.margin <= reach).sum() == count) or not reach
    classes(found, found.standing(), steps=1, slopes=3, reach=reach)
    assert found.aimed[:, 2].tolist() == [True] * count + [False] * (4 - count)
    assert not found.aimed[:, [1, 3]].any()  # out of reach


def test_the_likeliest_class_costs_nothing_where_its_slopes_are_known():
    meter = Meter(nn.Linear(4, 2))
    with torch.no_grad():
        meter.model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
        meter.model.bias.copy_(torch.tensor([5.0, 0.0]))
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.long)
    logits, slopes = sloped(meter, x, y)
    found = Search(meter, x, y, threat=LINF, rng=torch.Generator(), clean=logits, slopes=slopes)
    meter.forward_samples = meter.backward_samples = 0
    classes(found, found.standing(), steps=4, slopes=3)
    assert torch.allclose(found.foretold[:, 1], torch.full((3,), 5.0 - 2 * EPS))
    assert meter.passes == 0  # two classes, and what is foretold is out of reach
    assert 5.0 - 2 * EPS > REACH * 5.0


def test_where_slopes_wind_nothing_is_foretold():
    found, _ = search(straight=0.5)
    classes(found, found.standing(), steps=1, pairs=1.0, slopes=3)
    assert found.foretold.isnan().all()
    assert found.aimed.nonzero()[:, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("straight", "aimed"), [(None, 3), (0.95, 3), (0.85, 3), (0.8, 0), (0.5, 0)])
def test_where_slopes_wind_nothing_more_is_tried_for_what_they_foretell(straight, aimed):
    found, _ = search(straight=straight, slopes=torch.zeros(3, 4))
    classes(found, found.standing(), steps=1, slopes=3, reach=1.0)
    assert found.aimed.sum() == aimed


def test_a_model_that_passes_no_slope_on_has_no_class_within_reach():
    class Shut(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    x = torch.full((3, 4), 0.5)
    found = Search(Shut(), x, torch.zeros(3, dtype=torch.long), threat=LINF, rng=torch.Generator())
    classes(found, found.standing(), steps=1, slopes=3)
    assert torch.equal(found.foretold[:, 1:], 1.0 - OFFSETS[1:].expand(3, 3))
    assert not found.aimed.any()


def test_more_pairs_than_there_is_room_for_are_aimed_at_in_parts(monkeypatch):
    sizes, descend = [], arms._descend
    monkeypatch.setattr(
        arms, "_descend", lambda s, rows, *rest, **how: sizes.append(len(rows)) or descend(s, rows, *rest, **how)
    )
    found, _ = search(100)
    classes(found, found.standing(), steps=1)
    assert sizes == [300]
    sizes.clear()
    monkeypatch.setattr(arms, "ROOM", 1)
    parts, _ = search(100)
    monkeypatch.setattr(Search, "batch", 64)
    classes(parts, parts.standing(), steps=1)
    assert sizes == [64, 64, 64, 64, 44]
    assert torch.equal(parts.fooled, found.fooled)
