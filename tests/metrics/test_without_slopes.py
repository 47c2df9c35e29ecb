"""Models without a slope to follow: one is lent to them, or they fall to what needs none."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import SUITES, AttackConfig, ThreatModel
from tasks.attacks.fmn import minimum_norm
from tasks.metrics import measure
from tasks.models.networks import mlp
from tasks.models.planted import Quantised
from tests.metrics.nets import L1, L2, LINF, SMALL, Through, amid, assert_honest, boundary_distance, linear, shown


def step_of_eight(x: Tensor) -> Tensor:
    return (64 * x).floor() / 64


@pytest.mark.parametrize(
    "blind",
    [
        lambda m: Through(m, before=lambda x: x.detach()),
        lambda m: Through(m, before=step_of_eight),
        lambda m: Through(m, after=lambda z: z.detach() + 0 * z),
    ],
    ids=["detached", "steps", "zero"],
)
@pytest.mark.parametrize("numpy", [False, True])
def test_a_model_without_a_gradient_falls_to_a_lent_one_or_to_what_needs_none(blind, numpy):
    model = linear(2)
    x, y = amid(model)
    away, blinded = boundary_distance(model, x, y, SMALL), blind(model)
    blinded = Through(blinded, after=lambda z: torch.from_numpy(z.detach().numpy().copy())) if numpy else blinded
    found = measure(blinded, x, y, threat=SMALL)
    assert_honest(blinded, x, y, found)
    near = (away < 0.7 * SMALL.eps) & found.clean_correct
    assert found.fooled[near].float().mean() > 0.95
    (square,) = [row for row in found.attacks if row.name == "square"]
    if numpy:  # torch sees nothing of it: no slope can be lent
        assert square.fooled.any()
    else:
        assert found.attacks[0].fooled[near].float().mean() > 0.95
    assert all(row.error is None for row in found.attacks)


class Stairs(nn.Module):
    """Two layers that answer in steps: no slope anywhere, of which a search by score alone still finds the foot."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.finite = model, True

    def forward(self, x):
        self.finite &= bool(x.isfinite().all())
        return (self.model(x) * 4).floor() / 4


class Elsewhere(Stairs):
    """The same, computed where torch does not see it: no slope can be lent to it."""

    def forward(self, x):
        return torch.from_numpy(super().forward(x).detach().numpy().copy())


@pytest.mark.parametrize("threat", [LINF, L2, L1, ThreatModel(norm="l0", eps=4)], ids=str)
def test_a_model_without_slopes_is_shown_numbers_only_and_falls_to_scores(hardened, threat):
    x, y = shown(60)
    stairs = Stairs(hardened)
    found = measure(stairs, x, y, threat=threat, suite="standard")
    assert stairs.finite
    assert not [each.error for each in found.attacks if each.error]
    assert found.problems == ()
    smooth = measure(hardened, x, y, threat=threat, suite="standard")
    assert found.robust_accuracy <= smooth.robust_accuracy + 0.2


def test_a_quick_look_where_no_slope_can_be_lent_goes_on_to_its_limit_of_passes(hardened):
    x, y = shown(200)
    found = measure(Elsewhere(hardened), x, y, threat=LINF, suite="quick")
    slopes = measure(hardened, x, y, threat=LINF, suite="quick")
    limit = SUITES["quick"].whole
    assert 0.9 * limit * len(x) < found.passes <= limit * len(x)
    assert slopes.passes < 0.7 * limit * len(x)
    assert {attack.name: attack.fooled.any() for attack in found.attacks}["square"]


@pytest.mark.parametrize("suite", ["quick", "standard", "deep"])
def test_slopes_are_lent_to_a_model_that_has_none(hardened, suite):
    x, y = shown(100)
    stairs = measure(Stairs(hardened), x, y, threat=LINF, suite=suite)
    smooth = measure(hardened, x, y, threat=LINF, suite=suite)
    kept = Stairs(hardened)(x).argmax(1) == y  # stairs tie, and an answer may differ
    assert (stairs.clean_correct == kept).all()
    assert stairs.robust_accuracy <= smooth.robust_accuracy + 0.01
    assert (Stairs(hardened)(stairs.x_adv).argmax(1) != y)[stairs.fooled].all()
    assert suite != "deep" or {attack.name: attack.fooled.any() for attack in stairs.attacks}["apgd-ce"]


@pytest.mark.parametrize("threat", [LINF, L2, L1, ThreatModel(norm="l0", eps=4)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_asked_for_a_lent_slope_counts_within_the_limit_of_a_quick_look(hardened, threat, count):
    model, eps = (
        Stairs(hardened),
        1 if threat.norm == "l0" else 0.02 * threat.eps,
    )  # so small that most stand to the end
    for start in range(0, 20, count):
        x = shown(60)[0][start : start + count]
        small = threat.model_copy(update={"eps": eps})
        found = measure(model, x, model(x).argmax(1), threat=small, suite="quick")
        assert found.passes <= SUITES["quick"].whole * count


@pytest.mark.parametrize(
    ("threat", "suite"), [(L2, "quick"), (L2, "standard"), (L1, "quick"), (L1, "standard")], ids=str
)
def test_a_rounded_input_does_not_hide_from_budgets_that_are_sums(hardened, threat, suite):
    x, y = shown(150)
    rows = tuple(row for row in SUITES[suite].attacks if row.name not in ("crossings", "square"))
    others = SUITES[suite].model_copy(update={"attacks": rows})
    without, found = (measure(Quantised(hardened), x, y, threat=threat, suite=each) for each in (others, suite))
    assert_honest(Quantised(hardened), x, y, found)
    assert found.robust_accuracy < without.robust_accuracy - 0.05
    assert found.passes < without.passes or found.passes <= (SUITES[suite].whole or 0) * len(x)


def test_another_round_of_crossings_goes_on_from_the_nearest_points(hardened):
    x, y = shown(300)
    threat, model = ThreatModel(norm="l2", eps=0.3), Quantised(hardened, levels=2)
    once, again = (
        measure(model, x, y, threat=threat, suite=[AttackConfig(name="crossings", params={"tries": tries})])
        for tries in (1, 4)
    )
    assert again.fooled[once.fooled].all()
    assert again.fooled.sum() > once.fooled.sum()


@pytest.mark.parametrize("threat", [L2, L1], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_the_thresholds_of_a_rounded_input_take_counts_within_the_limit_too(hardened, threat, count):
    model, small = Quantised(hardened), threat.model_copy(update={"eps": 0.3 * threat.eps})  # most stand to the end
    for start in range(0, 20, count):
        x = shown(60)[0][start : start + count]
        found = measure(model, x, model(x).argmax(1), threat=small, suite="quick")
        assert found.passes <= SUITES["quick"].whole * count


class Looked(nn.Module):
    """Rounds to whole numbers and looks them up: a slope lent to these would make them no index any more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(torch.linspace(0, 1, 9)[(x * 8).round().long()] + 0 * x.detach())


def test_where_a_lent_slope_would_break_the_model_another_or_none_is_lent(hardened):
    x, y = shown(100)
    found = measure(Looked(hardened), x, y, threat=LINF, suite="quick")
    assert found.problems == ()
    assert [attack.error for attack in found.attacks] == [None] * len(found.attacks)
    assert found.fooled.sum() > 40


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_the_least_norm_from_level_ground_is_none_and_the_point_is_a_number(threat):
    x, y = shown(8)
    level = Through(mlp(64, 10), after=lambda z: 0 * z + torch.eye(10)[y])
    far, x_adv = minimum_norm(level, x, y, threat=threat, steps=30, start=torch.rand_like(x))
    assert far.isinf().all()
    assert x_adv.isfinite().all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_row_without_a_slope_takes_a_pass_and_a_last_look(threat):
    x, y = shown(16)
    level = Through(mlp(64, 10), after=lambda z: 0 * z + torch.eye(10)[0])
    row = AttackConfig(name="restarts", params={"starts": "noise", "steps": 50})
    found = measure(level, x, torch.zeros_like(y), threat=threat, suite=[row])
    (noise,) = found.attacks
    assert (noise.forward_samples, noise.backward_samples) == (2 * len(x), len(x))


def test_a_model_that_answers_and_cannot_be_followed_has_its_clean_accuracy_and_attacks_that_failed():
    model = linear(2)
    x, y = amid(model)

    def only_asked(points):
        if points.requires_grad:
            raise RuntimeError("this layer knows no way back")
        return points

    found = measure(Through(model, before=only_asked), x, y, threat=SMALL, suite=["margin"])
    assert found.clean_accuracy == 1.0
    (problem,) = found.problems
    assert "this layer knows no way back" in problem
