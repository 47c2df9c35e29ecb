"""Attacks against models whose boundary is known in closed form."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tasks.attacks import ATTACKS, AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.apgd import checkpoints
from tasks.attacks.geometry import distance, inside, project, sample, uphill
from tasks.errors import UnknownPart, WrongInput

THREATS = [ThreatModel(norm="linf", eps=0.05), ThreatModel(norm="l2", eps=0.1)]


def linear(classes: int) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(6, classes).requires_grad_(False)
    model.bias.copy_(-0.5 * model.weight.sum(1))  # every boundary meets in the middle of the box
    return model


def boundary_distance(model: nn.Linear, x, y, threat):
    """The smallest perturbation that changes the class: the margin over the weights' dual norm, [B]."""
    w = model.weight[y].unsqueeze(1) - model.weight
    gap = (w * x.unsqueeze(1)).sum(2) + model.bias[y].unsqueeze(1) - model.bias
    d = gap / w.norm(p=1 if threat.norm == "linf" else 2, dim=2).clamp_min(1e-12)
    return d.scatter(1, y.unsqueeze(1), float("inf")).amin(1)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "fgsm"])
@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_in_reach_falls_and_nothing_else(name, threat, classes):
    rng = torch.Generator().manual_seed(1)
    model, x = linear(classes), 0.5 + 0.1 * torch.randn(200, 6, generator=rng).clamp(-2, 2)
    y = model(x).argmax(1)
    away = boundary_distance(model, x, y, threat)
    fooled = model(ATTACKS[name](model, x, y, threat=threat, rng=rng)).argmax(1) != y
    assert not fooled[away > 1.001 * threat.eps].any()
    if classes == 2:  # with three, cross-entropy does not point at the nearest boundary
        assert fooled[away < 0.99 * threat.eps].all()
        assert 20 < fooled.sum() < 180  # the question was not trivial


@given(st.integers(0, 10_000), st.sampled_from(THREATS), st.floats(0.1, 100))
@settings(max_examples=50, deadline=None)
def test_projection_is_idempotent_and_the_result_is_in_ball_and_box(seed, threat, scale):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 3, 2, generator=rng)
    delta = scale * sample(x, threat, rng)
    once = project(delta, threat)
    torch.testing.assert_close(project(once, threat), once)
    if scale <= 1:
        torch.testing.assert_close(once, delta)
    x_adv = inside(x, x + delta, threat)
    assert distance(x, x_adv, threat).max() <= threat.eps * (1 + 1e-5)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_a_step_uphill_has_length_one(threat):
    step = uphill(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), threat)
    torch.testing.assert_close(distance(torch.zeros(5, 7), step, threat), torch.ones(5))


def test_apgd_looks_back_ever_more_often():
    points = checkpoints(100)
    gaps = [b - a for a, b in itertools.pairwise(points)]
    assert points[0] == 22
    assert gaps == sorted(gaps, reverse=True)
    assert min(gaps) == 6


@pytest.mark.parametrize(("written", "eps"), [("8/255", 8 / 255), ("0.03", 0.03), (0.5, 0.5)])
def test_a_radius_can_be_written_as_in_papers(written, eps):
    assert ThreatModel(norm="linf", eps=written).eps == pytest.approx(eps)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"eps": 8}, r"eps='8/255'"),
        ({"eps": "lots"}, "no radius"),
        ({"eps": "1/0"}, "no radius"),
        ({"eps": 0.1, "bounds": (1, 0)}, "smallest value first"),
        ({"eps": -0.1}, "greater than 0"),
        ({"eps": 200, "norm": "l2"}, "8-bit"),
    ],
)
def test_a_wrong_radius_says_what_to_write(values, hint):
    with pytest.raises(ValidationError, match=hint):
        ThreatModel(**{"norm": "linf"} | values)


def test_the_schema_says_that_eps_may_be_text():
    kinds = {option["type"] for option in ThreatModel.model_json_schema()["properties"]["eps"]["anyOf"]}
    assert kinds == {"number", "string"}


def sticker(model, x, y, *, threat, rng, size: int = 2):
    return x.clone()


def test_a_suite_s_digest_follows_parameters_and_order_but_not_the_name():
    a, b = AttackConfig(name="pgd", params={"steps": 3}), AttackConfig(name="fgsm")
    digest = Suite(name="x", attacks=(a, b)).digest
    assert Suite(name="y", attacks=(a, b)).digest == digest
    assert Suite(name="x", attacks=(b, a)).digest != digest
    assert Suite(name="x", attacks=(AttackConfig(name="pgd", params={"steps": 4}), b)).digest != digest
    assert as_suite(["pgd"]).digest == as_suite([AttackConfig(name="pgd", params={"steps": 40})]).digest
    assert "source" in AttackConfig(name=f"{__name__}:sticker").resolved()


@pytest.mark.parametrize(
    ("suite", "hint"),
    [
        ("standrad", "Did you mean 'standard'"),
        (["pdg"], "Did you mean 'pgd'"),
        ([AttackConfig(name="pgd", params={"step": 3})], "Did you mean 'steps'"),
        (["nowhere_at_all:x"], "no module"),
        ([f"{__name__}:stiker"], "Did you mean 'sticker'"),
    ],
)
def test_an_unknown_part_names_the_nearest(suite, hint):
    with pytest.raises(UnknownPart, match=hint):
        as_suite(suite)


def test_an_empty_suite_is_refused():
    with pytest.raises(WrongInput, match="measures nothing"):
        as_suite([])
