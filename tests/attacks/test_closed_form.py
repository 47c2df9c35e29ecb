"""Attacks against models whose boundary is known in closed form."""

import itertools

import pytest
import torch
from torch import nn

from tasks.attacks import ATTACKS, ThreatModel
from tasks.attacks.apgd import checkpoints

FEATURES = 6
SCALE, MASK = (0.5, 2.0, 1.0, 1.5, 0.25, 1.0), (True, False, True, True, False, True)
THREATS = [
    ThreatModel(norm="linf", eps=0.05),
    ThreatModel(norm="linf", eps=0.05, scale=SCALE),
    ThreatModel(norm="linf", eps=0.05, mask=MASK),
    ThreatModel(norm="l2", eps=0.1),
    ThreatModel(norm="l2", eps=0.1, scale=SCALE, mask=MASK),
    ThreatModel(norm="l1", eps=0.15),
    ThreatModel(norm="l1", eps=0.1, scale=SCALE),
    ThreatModel(norm="l0", eps=1),
    ThreatModel(norm="l0", eps=1, scale=SCALE, mask=MASK),
]
FEW = {"square": {"queries": 150}, "hopskipjump": {"queries": 150}, "apgd-ce": {"steps": 40}}
ONE_RIVAL = ("apgd-ce", "fgsm", "fmn", "margin", "pgd", "restarts", "transfer")  # exact with one other class to choose
EACH_RIVAL = ("classes", "fab")  # exact whatever the number of classes: they aim at each one


def linear(classes: int) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, classes).requires_grad_(False)
    model.bias.copy_(-0.5 * model.weight.sum(1))  # every boundary meets in the middle of the box
    return model


def drawn(model: nn.Linear, threat: ThreatModel, count: int = 200):
    """Inputs 0.3..0.7, so far from the box that no ball meets it, or in L0 at its edges; their classes; a generator."""
    rng = torch.Generator().manual_seed(1)
    x = 0.5 + 0.1 * torch.randn(count, FEATURES, generator=rng).clamp(-2, 2)
    if threat.norm == "l0":
        x = (0.5 + 0.8 * torch.randn(4 * count, FEATURES, generator=rng)).clamp(0, 1)
        lead = model(x).topk(2).values
        x = x[(lead[:, 0] - lead[:, 1]).argsort(descending=True)[:count]]  # one feature is not always enough
    return x, model(x).argmax(1), rng


def said(value: object) -> str:
    """A threat model in a test's name."""
    return str(value).replace(" ", "-") if isinstance(value, ThreatModel) else str(value)


def boundary_distance(model: nn.Linear, x, y, threat):
    """The smallest perturbation that changes the class, [B]: the gap over the slope's dual norm, or a count."""
    slope = (model.weight - model.weight[y].unsqueeze(1)) * torch.tensor(threat.mask or (True,) * FEATURES)  # [B, C, F]
    logits = model(x)
    gap = logits.gather(1, y.unsqueeze(1)) - logits
    if threat.norm == "l0":  # the best features first, each changed as far as the box allows
        gains = (slope * torch.where(slope > 0, 1 - x.unsqueeze(1), -x.unsqueeze(1))).sort(2, descending=True).values
        short = gains.cumsum(2) < gap.unsqueeze(2)
        away = 1 + short.sum(2).float()
        away[short[..., -1]] = float("inf")
    else:
        dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[threat.norm]
        length = (slope * torch.tensor(threat.scale or (1.0,) * FEATURES)).norm(p=dual, dim=2)
        away = gap / length.clamp_min(1e-12)
    return away.scatter(1, y.unsqueeze(1), float("inf")).amin(1)


def attacked(name: str, classes: int, threat: ThreatModel, **params):
    """Which samples fell, and how far each was from the boundary."""
    model = linear(classes)
    x, y, rng = drawn(model, threat)
    x_adv = ATTACKS[name](model, x, y, threat=threat, rng=rng, **FEW.get(name, {}) | params)
    return model(x_adv).argmax(1) != y, boundary_distance(model, x, y, threat)


def certain(away, threat):
    """The samples whose boundary lies so far inside the ball that neither rounding nor the last step hides it."""
    return away <= threat.eps if threat.norm == "l0" else away < 0.99 * threat.eps


EXACT = [
    pytest.param(name, classes, threat, id=f"{name}-{classes}-{said(threat)}")
    for name, classes in [*itertools.product(ONE_RIVAL, [2]), *itertools.product(EACH_RIVAL, [2, 3])]
    for threat in THREATS
]


@pytest.mark.parametrize("threat", THREATS, ids=said)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_beyond_the_boundary_falls(name, classes, threat):
    fell, away = attacked(name, classes, threat)
    assert not fell[away > 1.001 * threat.eps].any()


@pytest.mark.parametrize(("name", "classes", "threat"), EXACT)
def test_all_in_reach_falls(name, classes, threat):
    fell, away = attacked(name, classes, threat)
    there = certain(away, threat)
    assert fell[there].all(), f"{int((~fell[there]).sum())} of {int(there.sum())} stand"
    assert 20 < there.sum() < 190  # the question was not trivial


@pytest.mark.parametrize("threat", THREATS[:3], ids=said)
def test_square_finds_all_in_reach_with_queries_enough(threat):
    fell, away = attacked("square", 2, threat, queries=1000)  # among three, it may settle beside the wrong one
    assert fell[away < 0.99 * threat.eps].all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "crossings"])  # which leaves this model alone
def test_what_may_not_be_changed_never_is(name, norm):
    mask = torch.tensor(MASK)
    threat = ThreatModel(norm=norm, eps=3 if norm == "l0" else 0.2, mask=MASK)
    model = linear(3)
    x, y, rng = drawn(model, threat, count=40)
    x_adv = ATTACKS[name](model, x, y, threat=threat, rng=rng, **FEW.get(name, {}))
    assert torch.equal(x_adv[:, ~mask], x[:, ~mask])
    assert not torch.equal(x_adv[:, mask], x[:, mask])


@pytest.mark.parametrize("name", ["apgd-ce", "classes", "fgsm", "margin"])
def test_each_feature_moves_by_its_own_radius_and_uses_all_of_it(name):
    threat = ThreatModel(norm="linf", eps=0.05, scale=SCALE)
    model = linear(2)
    x, y, rng = drawn(model, threat)
    change = (ATTACKS[name](model, x, y, threat=threat, rng=rng) - x).abs()
    reach = threat.eps * torch.tensor(SCALE)
    assert (change <= reach * (1 + 1e-5)).all()
    fell, away = attacked(name, 2, threat)
    hard = (away > 0.9 * threat.eps) & fell  # only with nearly all of every radius
    assert hard.any()
    assert (change[hard] > 0.1 * reach).all()


def test_the_table_of_exact_attacks_has_no_stranger():
    assert {*ONE_RIVAL, *EACH_RIVAL} <= set(ATTACKS)


def test_apgd_looks_back_ever_more_often():
    points = checkpoints(100)
    gaps = [b - a for a, b in itertools.pairwise(points)]
    assert points[0] == 22
    assert gaps == sorted(gaps, reverse=True)
    assert min(gaps) == 6
