"""binarise() against models whose hidden example is known in closed form, and evaluations that must be unmasked."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import AttackConfig, ThreatModel
from tasks.attacks.geometry import farthest, limits, moved
from tasks.attacks.search import margins
from tasks.attacks.straight_through import StraightThrough
from tasks.data import digits
from tasks.defences import plain
from tasks.errors import WrongInput
from tasks.metrics import Binarisation, Share, binarise
from tasks.metrics.binarisation import Features
from tasks.models import TrainingConfig, fit
from tasks.models.networks import mlp
from tasks.models.planted import Detached, Noisy, Quantised, ReadsTheSeed

HERE = __name__
ASKED: list[Path] = []  # the file that is noted in: the attack runs in a process of its own
FEATURES = 30
LINF, L2, L1 = (ThreatModel(norm=norm, eps=eps) for norm, eps in (("linf", 0.15), ("l2", 0.6), ("l1", 2.0)))
SCALE = tuple(0.5 + (i % 4) / 2 for i in range(FEATURES))
MASK = tuple(i % 3 > 0 for i in range(FEATURES))
THREATS = [
    *(ThreatModel(norm=norm, eps=eps) for norm, eps in (("linf", 0.1), ("l2", 0.4), ("l1", 1.0))),
    *(ThreatModel(norm=norm, eps=eps, scale=SCALE) for norm, eps in (("linf", 0.1), ("l2", 0.4), ("l1", 1.0))),
    *(ThreatModel(norm=norm, eps=eps, mask=MASK) for norm, eps in (("linf", 0.1), ("l2", 0.4), ("l1", 1.0))),
]


def exact(model, x, y, *, threat, rng):
    """The farthest point along the slope: if a linear model can be fooled at all, this fools it."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(margins(model(leaf), y).sum(), leaf)
    return moved(x, farthest(-grad, threat, limits(x, threat)), threat)


def exact_on_the_left(model, x, y, *, threat, rng):
    return exact(model, x, y, threat=threat, rng=rng) if x[0, 0] < 0.5 else x


def ask(model, x, y, *, threat, rng):
    """Notes which changes of a single feature make class 1."""
    delta = threat.eps * torch.linspace(-1, 1, 4001).view(-1, 1)
    ends = delta[model(x + delta).argmax(1) == 1]
    with ASKED[-1].open("a") as file:
        file.write(json.dumps(ends.flatten().tolist()) + "\n")
    return x


def raises(model, x, y, *, threat, rng):
    raise RuntimeError("out of ideas")


def linear(features: int = FEATURES) -> nn.Linear:
    """Its features are its input."""
    return nn.Linear(features, 2)


def rows(n: int, features: int = FEATURES) -> Tensor:
    """Some at the end of the box, as pixels are."""
    x = torch.rand(n, features, generator=torch.Generator().manual_seed(0))
    return (1.5 * x - 0.25).clamp(0, 1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A plainly trained network, about 0.91 on the digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp(64, 10)
        config = TrainingConfig(model="its", threat=LINF, epochs=8, lr=5e-3, device="cpu", precision="fp32")
        fit(model, digits("train"), digits("select"), plain, config)
    return model.requires_grad_(False)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_what_is_hidden_in_a_linear_model_exists_and_noise_does_not_find_it(threat):
    found = binarise(linear(), rows(24), threat=threat, suite=[f"{HERE}:exact"])
    assert (found.tested, found.skipped, found.missed, found.problems) == (24, 0, (), ())
    assert found.score == Share.of(24, 24)
    assert found.by_noise.value < 0.25
    assert found.passed


def test_class_1_begins_nine_tenths_of_the_way_from_the_inner_points_to_the_edge(tmp_path):
    ASKED.append(tmp_path / "asked")
    found = binarise(
        linear(1), torch.full((8, 1), 0.5), threat=ThreatModel(norm="linf", eps=0.1), suite=[f"{HERE}:ask"]
    )
    asked = [torch.tensor(json.loads(line)) for line in ASKED[-1].read_text().splitlines()]
    assert len(found.missed) == len(asked) == 8
    sides = {ends.sign().unique().item() for ends in asked}
    assert sides == {-1.0, 1.0}  # one of the two ends in each ball, and not always the same
    for ends in asked:
        assert ends.abs().amin().item() == pytest.approx(0.095 + 0.9 * 0.005, abs=6e-5)
        assert ends.abs().amax().item() == pytest.approx(0.1)


def test_a_test_that_noise_solves_proves_nothing():
    found = binarise(linear(1), rows(24, 1), threat=ThreatModel(norm="linf", eps=0.1), suite=["pgd"])
    assert found.score.value == found.by_noise.value == 1
    assert not found.passed
    assert "prove nothing" in found.says


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_an_honest_network_is_attacked_well_enough(net, threat, suite):
    found = binarise(net, digits("test")[0], threat=threat, suite=suite, samples=16)
    assert found.passed
    assert (found.tested, found.skipped, found.missed) == (16, 0, ())


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_noise_alone_fails_though_the_model_is_honest(net, threat):
    found = binarise(net, digits("test")[0], threat=threat, suite=["noise"], samples=16)
    assert found.score.value < 0.15
    assert len(found.missed) >= 14
    assert not found.passed
    assert "do not trust" in found.says


@pytest.mark.parametrize("suite", [["pgd"], ["apgd-ce"]], ids=str)
@pytest.mark.parametrize("wrapper", [Quantised, Detached])
def test_attacks_that_follow_gradients_are_unmasked_where_there_are_none(net, wrapper, suite):
    found = binarise(wrapper(net), digits("test")[0], threat=LINF, suite=suite, samples=8)
    assert found.tested == 8
    assert found.score.value < 0.2
    assert not found.passed


@pytest.mark.parametrize("suite", ["quick", "standard"])
@pytest.mark.parametrize("wrapper", [Quantised, Detached])
def test_suites_lend_them_gradients_by_themselves(net, wrapper, suite):
    found = binarise(wrapper(net), digits("test")[0], threat=LINF, suite=suite, samples=8)
    assert (found.tested, found.missed) == (8, ())


@pytest.mark.parametrize("wrapper", [Quantised, Detached])
def test_an_attack_that_lends_them_gradients_passes(net, wrapper):
    found = binarise(StraightThrough(wrapper(net)), digits("test")[0], threat=LINF, suite=["pgd"], samples=16)
    assert found.score.value > 0.9
    assert found.passed


def test_a_caller_who_asks_for_no_gradients_gets_the_same():
    model, x, suite = linear(), rows(4), ["margin"]
    expected = binarise(model, x, threat=LINF, suite=suite)
    with torch.inference_mode():
        found = binarise(model, x.clone(), threat=LINF, suite=suite)
        assert torch.is_inference_mode_enabled()
    assert found == expected
    assert found.tested == 4


def test_the_model_is_left_exactly_as_it_was_and_keeps_no_hook():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    model[3](torch.ones(1, 8)).sum().backward()
    model[2].eval()
    before, grad, state = copy.deepcopy(model), model[3].weight.grad.clone(), torch.get_rng_state()
    binarise(model, rows(4, 6), threat=L2, suite=["pgd"])
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model[3].weight.grad, grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_features_are_the_last_linear_layers_input_or_that_of_the_layer_named(net):
    x = digits("test")[0]
    assert torch.equal(Features(net, net[5])(x), net[:5](x))
    assert torch.equal(Features(net, None)(x), net(x))
    given = {}
    for layer in (None, "5", "1"):
        given[layer] = binarise(net, x, threat=L1, suite=["fgsm"], samples=12, layer=layer)
    assert given[None] == given["5"]
    assert given["5"].score.value < 1
    assert given["1"].score.value == 1  # the pixels themselves: linear, where a single step is exact
    with pytest.raises(WrongInput, match=r"no layer '7'.*Known: 0, 1, 2, 3, 4, 5"):
        binarise(net, x, threat=LINF, layer="7")


class Unused(nn.Module):
    """Logits without a linear layer that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.net = nn.Conv1d(1, 3, 2)

    def forward(self, x):
        return self.net(x.unsqueeze(1)).flatten(1)


def test_a_model_without_a_linear_layer_gives_its_logits_and_an_idle_layer_is_refused():
    torch.manual_seed(0)
    model, threat = Unused(), ThreatModel(norm="l2", eps=0.4)
    found = binarise(model.net, rows(8).unsqueeze(1), threat=threat, suite=[f"{HERE}:exact"])
    assert (found.tested, found.score.value) == (8, 1.0)
    with pytest.raises(WrongInput, match="was not called"):
        binarise(model, rows(8), threat=threat)


class Blind(nn.Module):
    """Sees nothing of its input."""

    def forward(self, x):
        return 0 * x[:, :1] + torch.tensor([0.3, 0.7])


class Wavy(nn.Module):
    """Takes values on both sides of the edge's everywhere inside."""

    def forward(self, x):
        return torch.cat([(200 * math.pi * (x - 0.5)).sin(), 0 * x], dim=1)


@pytest.mark.parametrize("model", [Blind(), Wavy()], ids=lambda model: type(model).__name__)
def test_where_nothing_can_be_hidden_nothing_is_claimed(model):
    x = torch.full((8, 1), 0.5)
    found = binarise(model, x, threat=ThreatModel(norm="linf", eps=0.1), suite=["noise"])
    assert (found.score, found.by_noise, found.tested, found.skipped, found.passed) == (None, None, 0, 8, False)
    assert "nothing was tested" in found.says


def test_the_same_seed_gives_the_same_result_and_the_rows_missed_are_rows_of_x():
    x, threat = rows(60), THREATS[0]
    first, again = (binarise(linear(), x, threat=threat, suite=[f"{HERE}:exact_on_the_left"], samples=20) for _ in "ab")
    assert first == again
    assert 0 < len(first.missed) < 20
    assert all(x[row, 0] >= 0.5 for row in first.missed)
    other = binarise(linear(), x, threat=threat, suite=[f"{HERE}:exact_on_the_left"], samples=20, seed=1)
    assert other.missed != first.missed
    assert Binarisation.model_validate_json(first.model_dump_json()) == first


def test_an_attack_that_breaks_is_named_and_cannot_pass():
    suite = [AttackConfig(name=f"{HERE}:raises"), AttackConfig(name=f"{HERE}:exact")]
    found = binarise(linear(), rows(24), threat=THREATS[0], suite=suite)
    assert found.score.value == 1
    assert "out of ideas" in found.problems[0]
    assert "void" in found.says
    assert not found.passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_models_of_another_precision_are_tested_too(dtype):
    found = binarise(linear().to(dtype), rows(24), threat=THREATS[0], suite=["fgsm"])
    assert found.passed


@pytest.mark.parametrize(
    ("model", "threat", "hint"),
    [
        (Noisy(linear()), LINF, "answers at random"),
        (ReadsTheSeed(linear()), LINF, "answers at random"),
        (linear(), ThreatModel(norm="l0", eps=3), "no edge"),
        (linear(), ThreatModel(norm="unbounded"), "no edge"),
        (linear(), ThreatModel(norm="linf", eps=0.1, bounds=(0.2, 0.8)), "bounds are 0.2..0.8"),
        (linear(), ThreatModel(norm="linf", eps=0.1, mask=(True, False)), "mask or scale has 2 entries"),
    ],
)
def test_what_makes_no_sense_is_refused(model, threat, hint):
    with pytest.raises(WrongInput, match=hint):
        binarise(model, rows(8), threat=threat, suite=["pgd"])
