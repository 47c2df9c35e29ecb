"""Crossings, against every crossing there is; and what it takes to see that an input is rounded."""

import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks import ATTACKS, ThreatModel
from tasks.attacks.crossings import ASKED, smallest_crossings
from tasks.attacks.front import shown, slope_behind
from tasks.attacks.geometry import distance
from tasks.attacks.thresholds import CLOSEST, Thresholds
from tasks.metrics import measure
from tasks.metrics.budget import violation

FEATURES, LEVELS, COUNT = 6, 5, 150
SCALE, MASK = (0.5, 2.0, 1.0, 1.5, 0.25, 1.0), (True, False, True, True, False, True)
THREATS = [
    ThreatModel(norm="l2", eps=0.3),
    ThreatModel(norm="l2", eps=0.3, scale=SCALE),
    ThreatModel(norm="l2", eps=0.3, mask=MASK),
    ThreatModel(norm="l1", eps=0.3),
    ThreatModel(norm="l1", eps=0.35, scale=SCALE),
]


class Before(nn.Module):
    """The network behind what `front` makes of its input."""

    def __init__(self, front, net):
        super().__init__()
        self.front, self.net = front, net

    def forward(self, x):
        return self.net(self.front(x))


def rounded(x, levels=LEVELS):
    return (x * (levels - 1)).round() / (levels - 1)


def linear(features=FEATURES, classes=2):
    torch.manual_seed(0)
    net = nn.Linear(features, classes).requires_grad_(False)
    net.bias.copy_(-0.5 * net.weight.sum(1))
    return net


def drawn(model, count=COUNT, features=FEATURES):
    x = torch.rand(count, features, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def attacked(model, x, y, threat, **params):
    return ATTACKS["crossings"](model, x, y, threat=threat, rng=torch.Generator().manual_seed(0), **params)


def smallest(net, x, y, threat):
    """The length of the shortest way to levels of another answer, [B]: every combination of levels is tried."""
    levels = torch.tensor(list(itertools.product(range(LEVELS), repeat=FEATURES))) / (LEVELS - 1)
    answer, half, scale = net(levels).argmax(1), 0.5 / (LEVELS - 1), torch.tensor(threat.scale or (1.0,) * FEATURES)
    found = []
    for sample, label in zip(x, y, strict=True):
        short = ((levels - sample).abs() - half).clamp_min(0) * (levels != rounded(sample))  # to its near edge
        length = (short / scale).norm(p=1 if threat.norm == "l1" else 2, dim=1)
        if threat.mask:
            length = length.masked_fill((short * ~torch.tensor(MASK)).any(1), math.inf)
        found.append(length[answer != label].amin())
    return torch.stack(found)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_nearly_all_that_some_crossing_fools_falls_and_nothing_else(threat):
    net = linear()
    model = Before(rounded, net)
    x, y = drawn(model)
    reachable = smallest(net, x, y, threat) <= threat.eps + 1e-4
    assert 20 < reachable.sum() < 148  # the question is not trivial
    x_adv = attacked(model, x, y, threat, halvings=12)
    assert violation(x, x_adv, threat) is None
    fell = model(x_adv).argmax(1) != y
    assert not (fell & ~reachable).any()
    assert fell.sum() >= 0.96 * reachable.sum(), f"{int(fell.sum())} of {int(reachable.sum())}"
    by_slopes = measure(model, x, y, threat=threat, suite=["margin", "restarts"])  # lent ones
    assert fell.sum() > by_slopes.fooled.sum()


def test_three_classes_and_a_front_that_falls_or_leaves_features_alone():
    threat, net = THREATS[0], linear(classes=3)
    rising = Before(rounded, net)
    x, y = drawn(rising)
    turned = linear(classes=3)  # the same of 1 - x
    turned.weight.neg_()
    turned.bias.sub_(turned.weight.sum(1))
    falling = Before(lambda x: 1 - rounded(x), turned)
    found = [model(attacked(model, x, y, threat)).argmax(1) != y for model in (rising, falling)]
    assert found[0].sum() > 20
    assert torch.equal(*found)
    some = torch.tensor([1.0, 1, 1, 0, 0, 0])
    half = Before(lambda x: rounded(x) * some, net)
    y = half(x).argmax(1)
    x_adv = attacked(half, x, y, threat)
    assert (half(x_adv).argmax(1) != y).any()
    assert torch.equal(x_adv[:, 3:], x[:, 3:])  # nothing is spent where nothing answers


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_smallest_crossings_are_nearly_the_smallest_there_are(threat):
    net = linear()
    model = Before(rounded, net)
    x, y = drawn(model)
    truth = smallest(net, x, y, threat)
    away, x_adv = smallest_crossings(model, x, y, threat=threat)
    there = away.isfinite()
    assert (model(x_adv).argmax(1) != y)[there].all()
    torch.testing.assert_close(distance(x, x_adv, threat)[there], away[there])
    assert (away >= truth - 1e-4).all()
    assert (away / truth)[truth < 2 * threat.eps].median() < 1.03
    reachable = truth <= threat.eps
    assert (away <= 1.03 * threat.eps)[reachable].float().mean() > 0.95
    gone, same = smallest_crossings(linear(), x, y, threat=threat)
    assert gone.isinf().all()
    assert torch.equal(same, x)


@pytest.mark.parametrize("halvings", [6, 8, 12])
def test_no_threshold_is_missed_and_none_sought_much_too_far(halvings):
    levels, model = 17, Before(lambda x: rounded(x, 17), linear())
    x, _ = drawn(model)
    way = torch.where(torch.arange(FEATURES) % 2 == 0, 1.0, -1.0).expand_as(x)
    reach = torch.where(way > 0, 1 - x, x)
    found = Thresholds.ahead(model, x, -way, ThreatModel(norm="l2", eps=0.3), most=2.0, halvings=halvings)
    level = (x * (levels - 1)).round()
    for nth in range(1, levels):
        there = found.count >= nth
        length = found.first + (nth - 1) * found.gap
        truth = (level + way * (nth - 0.5)) / (levels - 1) * way - x * way
        assert (length >= truth - 1e-6)[there].all()
        tight = 2 ** (8 / 2**halvings) - 1  # of a length: what the last halving leaves open
        assert (length <= truth + nth * (tight * (truth + 2 / levels) + CLOSEST))[there].all()
        known = (truth <= reach) & (nth <= 2)
        assert (there | ~known)[truth > CLOSEST * reach].all()
    assert found.count.max() > 10


def test_of_thresholds_only_those_asked_for_are_copied(monkeypatch):
    model = Before(rounded, linear())
    x, _ = drawn(model)
    found = Thresholds.ahead(model, x, torch.ones_like(x), THREATS[0], most=2.0, halvings=8)
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("all of them are copied"))
    rows = torch.tensor([3, 1])
    some = found.of(rows)
    for field in fields(Thresholds):
        assert torch.equal(getattr(some, field.name), getattr(found, field.name)[rows])


@pytest.mark.parametrize("norm", ["linf", "l0", "l0-pixels", "unbounded"])
def test_a_norm_whose_budget_is_no_sum_is_left_to_others(norm):
    model = Before(rounded, linear())
    x, y = drawn(model)
    threat = ThreatModel(norm=norm, eps=2 if norm.startswith("l0") else 1.0 if norm == "unbounded" else 0.3)
    assert torch.equal(attacked(model, x, y, threat), x)


FINE = {
    "smooth": lambda x: 2 * x - 1,
    "8 bits": lambda x: rounded(x, 256),
    "clamped": lambda x: x.clamp(0.2, 0.8),
    "noisy": lambda x: x + 0.1 * torch.randn_like(x),
    "blurred, then rounded": lambda x: rounded((x + x.roll(1, 1)) / 2),
}


@pytest.mark.parametrize("front", FINE)
@pytest.mark.parametrize("threat", [THREATS[0], THREATS[3]], ids=str)
def test_what_is_smooth_fine_or_mixed_is_left_alone_for_next_to_nothing(front, threat):
    model = Before(FINE[front], linear())
    x, y = drawn(model)
    (row,) = measure(model, x, y, threat=threat, suite=["crossings"]).attacks
    assert not row.fooled.any()
    assert (row.forward_samples, row.backward_samples) == (4 * ASKED, 0)


TURNED = {  # images [B, 2, 4, 6]
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "channels last, copied": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "rows before channels": lambda x: x.transpose(1, 2),
    "mirrored": lambda x: x.flip(2),
    "rows for columns": lambda x: x.transpose(2, 3),
}


@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("threat", [THREATS[0], THREATS[3]], ids=str)
def test_features_that_the_first_layer_is_given_in_another_order_are_left_to_others(turned, threat):
    x = torch.rand(40, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    width = TURNED[turned](x).shape[-1]
    layer, last = linear(features=width, classes=8), linear(features=8 * 48 // width)
    model = Before(lambda x: layer(TURNED[turned](rounded(x))), Before(lambda z: z.relu().flatten(1), last))
    y = model(x).argmax(1)
    found = measure(model, x, y, threat=threat, suite=["crossings"])
    assert found.problems == ()
    assert found.attacks[0].backward_samples == 0
    assert measure(model, x, y, threat=threat, suite=["margin", "crossings"]).problems == ()
    away, same = smallest_crossings(model, x, y, threat=threat)
    assert away.isinf().all()
    assert torch.equal(same, x)


def test_a_model_that_calls_no_layer_is_asked_once():
    x = torch.rand(40, 3)
    model = Before(rounded, nn.Identity())
    (row,) = measure(model, x, model(x).argmax(1), threat=THREATS[0], suite=["crossings"]).attacks
    assert (row.forward_samples, row.backward_samples) == (ASKED, 0)


def by_numpy(x):
    return torch.from_numpy(np.round(x.detach().numpy() * 4) / 4)


def in_no_grad(x):
    with torch.no_grad():
        return rounded(x)


FRONTS = {
    "round": rounded,
    "normalised": lambda x: (rounded(x) - 0.3) / 0.2,
    "thresholds": lambda x: torch.stack([(x > t).float() for t in (0.2, 0.4, 0.6)]).mean(0),
    "integers": lambda x: (x * 4).int().float() / 4,
    "numpy": by_numpy,
    "no_grad": in_no_grad,
    "no_grad, detached": lambda x: rounded(x).detach(),
}
LAYERS = {
    "a module": lambda net: net,
    "in no_grad": lambda net: torch.no_grad()(net.forward),
    "a product": lambda net: lambda z: z @ net.weight.T + net.bias,
    "a product from the left": lambda net: lambda z: (net.weight @ z.T).T + net.bias,
    "a convolution": lambda net: lambda z: F.conv1d(z.unsqueeze(1), net.weight.unsqueeze(1)).squeeze(2) + net.bias,
    "einsum": lambda net: lambda z: torch.einsum("cf,bf->bc", net.weight, z) + net.bias,
    "behind a product of weights": lambda net: lambda z: F.linear(z, net.weight @ torch.eye(FEATURES), net.bias),
}


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "a product from the left"])
@pytest.mark.parametrize("front", FRONTS)
def test_the_first_layer_tells_what_it_is_given_and_is_not_run(front, layer):
    net = linear()
    after = LAYERS[layer](net)
    ran = []

    def counted(z):
        result = after(z)
        ran.append(1)
        return result

    model = Before(FRONTS[front], counted)
    x, y = drawn(model, count=12)
    ran.clear()
    torch.testing.assert_close(shown(model, x), FRONTS[front](x).float())
    assert not ran
    logits, grad = slope_behind(model, x, y)
    torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(grad, net.weight[y] - net.weight[1 - y])


def test_what_is_turned_around_on_its_way_is_not_told():
    model = Before(rounded, LAYERS["a product from the left"](linear()))
    x, y = drawn(model, count=12)
    assert shown(model, x) is None
    assert not slope_behind(model, x, y)[1].any()
