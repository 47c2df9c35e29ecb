import math
from functools import partial
from typing import get_args

import pytest
import torch
from torch import nn

from tasks.attacks import ATTACKS, ThreatModel
from tasks.attacks.geometry import moved, sample
from tasks.attacks.threat import Norm
from tasks.data import digits, two_kinds_of_feature
from tasks.defences import DEFENCES
from tasks.models import MODELS
from tests.contracts import CASES, THREATS, Case, _check_attack, check_attack, check_dataset, check_defence, check_model

SHORT = {  # a contract is kept or broken within a few steps
    "apgd-ce": {"steps": 20},
    "hopskipjump": {"queries": 60},
    "sigma-zero": {"steps": 30},
    "square": {"queries": 120},
    "sweep": {"points": 4},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_its_contract(name):
    check_attack(partial(ATTACKS[name], **SHORT.get(name, {})))


class Symmetric(Case):
    def inputs(self):
        """x [B, ...] in -1..1."""
        return 2 * super().inputs() - 1


def special(case):
    """What the contract's own threat models leave out: (threat model, what it is asked for)."""
    features = math.prod(case.shape[1:])
    rng = torch.Generator().manual_seed(2)
    scale = tuple((0.25 + 1.5 * torch.rand(features, generator=rng)).tolist())
    mask = (True, *(torch.rand(features - 1, generator=rng) < 0.7).tolist())
    yield ThreatModel(norm="unbounded"), case
    yield ThreatModel(norm="l2", eps=0.5, bounds=(-1, 1)), Symmetric(*case)
    for norm, eps in (("linf", 0.1), ("l0", 2)):
        yield ThreatModel(norm=norm, eps=eps, scale=scale, mask=mask), case


def check_special(attack):
    for case in (CASES[1], CASES[3]):  # rows; images of three channels in float64
        for threat, asked in special(case):
            _check_attack(attack, threat, asked)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_its_contract_without_a_bound_in_another_box_and_with_scale_and_mask(name):
    check_special(partial(ATTACKS[name], **SHORT.get(name, {})))


def test_the_contract_of_attacks_covers_every_norm_with_a_bound():
    assert {threat.norm for threat in THREATS} == set(get_args(Norm)) - {"unbounded"}
    assert {case.contiguous for case in CASES} == {True, False}
    assert all(case.inputs().is_contiguous() == case.contiguous for case in CASES)


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_keeps_its_contract(name):
    check_defence(DEFENCES[name])


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("digits-cnn", (1, 8, 8), 10), ("mnist-cnn", (1, 28, 28), 10), ("phishing-mlp", (30,), 2)],
)
def test_every_model_keeps_its_contract(name, shape, classes):
    check_model(MODELS[name], shape=shape, classes=classes)


@pytest.mark.parametrize("dataset", [digits, two_kinds_of_feature])
def test_every_shipped_dataset_keeps_its_contract(dataset):
    check_dataset(dataset)


def _grows(model, x, y, *, threat, rng):
    return torch.cat([x, x])


def _leaves_ball(model, x, y, *, threat, rng):
    return (x + 2 * threat.eps).clamp(0, 1)


def _leaves_box(model, x, y, *, threat, rng):
    return x + threat.eps / x[0].numel() ** 0.5


def _in_place(model, x, y, *, threat, rng):
    return x.mul_(1.0).add_(1e-3).clamp_(0, 1)


def _trains(model, x, y, *, threat, rng):
    model.train()
    return x.clone()


def _leaves_ball_in_pixels(model, x, y, *, threat, rng):
    return 1 - x if threat.norm == "l0-pixels" else x.clone()


def _relabels(model, x, y, *, threat, rng):
    y.add_(1)
    return x.clone()


def _calibrates(model, x, y, *, threat, rng):
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(1)
    return x.clone()


def _keeps_the_graph(model, x, y, *, threat, rng):
    return x.clone().requires_grad_()


def _rounds(model, x, y, *, threat, rng):
    return x.float()


def _divides_by_zero(model, x, y, *, threat, rng):
    return x * float("nan")


def _seeds(model, x, y, *, threat, rng):
    torch.manual_seed(0)
    return (x + 0.01 * (torch.rand_like(x) - x)).clamp(0, 1) if threat.norm[:2] != "l0" else x.clone()


def _draws_elsewhere(model, x, y, *, threat, rng):
    return (x + 0.01 * (torch.rand_like(x) - x)).clamp(0, 1)


@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        (_grows, "shape"),
        (_leaves_ball, "left the ball"),
        (_leaves_box, "left the box"),
        (_in_place, "input x in place"),
        (_trains, "changed the model"),
        (_leaves_ball_in_pixels, "left the ball: .* L0 in pixels"),
        (_relabels, "its input y in place"),
        (_calibrates, "changed the model"),
        (_keeps_the_graph, "requires grad"),
        (_rounds, "torch.float32 for x torch.float64"),
        (_divides_by_zero, "not finite"),
        (_draws_elsewhere, "two results; draw from rng"),
        (_seeds, "torch's own generator"),
    ],
)
def test_a_broken_promise_of_an_attack_is_named(attack, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_attack(attack)


def _knows_one_box(model, x, y, *, threat, rng):
    return x.clamp(0, 1)


def _forgets_the_mask(model, x, y, *, threat, rng):
    free = threat.model_copy(update={"mask": None})
    return moved(x, sample(x, free, rng), free)


def _forgets_the_scale(model, x, y, *, threat, rng):
    plain = threat.model_copy(update={"scale": None})
    return moved(x, sample(x, plain, rng), plain)


def _wants_a_radius(model, x, y, *, threat, rng):
    return x + 2 * threat.eps if threat.norm == "unbounded" else x.clone()


@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        (_knows_one_box, "left the ball: .* L2"),
        (_forgets_the_mask, r"left the ball: moved inf under L-inf .*scaled, masked"),
        (_forgets_the_scale, r"left the ball: .* L-inf .*scaled, masked"),
        (_wants_a_radius, "left the ball: .* no bound"),
    ],
)
def test_a_promise_that_is_broken_only_there_is_named(attack, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_special(attack)


def _vector(model, x, y, *, threat, rng):
    return model(x).sum(1)


def _no_gradient(model, x, y, *, threat, rng):
    return model(x).detach().sum() + 0 * model[3].bias.sum()


@pytest.mark.parametrize(("defence", "complaint"), [(_vector, "scalar"), (_no_gradient, "no gradient")])
def test_a_broken_promise_of_a_defence_is_named(defence, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_defence(defence)


class _BatchMates(nn.Module):
    def forward(self, x):
        return x[:, :2] - x[:, :2].mean(0)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [(lambda: nn.Linear(4, 3), r"not \[3, 2\]"), (_BatchMates, "batch mates"), (lambda: 3, "not a torch.nn.Module")],
)
def test_a_broken_promise_of_a_model_is_named(function, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_model(function, shape=(4,), classes=2)


def test_a_dataset_that_changes_between_calls_is_named():
    with pytest.raises(AssertionError, match="different data"):
        check_dataset(lambda split: (torch.rand(3, 2), torch.zeros(3, dtype=torch.long)))
