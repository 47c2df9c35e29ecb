"""measure() against hand counts, and what it does with attacks and models that misbehave."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn

from tasks.attacks import AttackConfig, ThreatModel
from tasks.errors import ModelRejected, WrongInput
from tasks.metrics import EvaluationConfig, RobustnessReport, Share, evaluate, measure, paired_loss, wilson
from tasks.metrics.curve import ELSEWHERE, NEARBY
from tasks.verdicts import Policy, judge

LINF = ThreatModel(norm="linf", eps=0.1)
HERE = __name__


def threshold_model() -> nn.Linear:
    """Class 1 where the only feature is above 0.5: the boundary distance is |x - 0.5|."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0]]))
        model.bias.copy_(torch.tensor([0.0, -5.0]))
    return model


X = torch.tensor([[0.45], [0.35], [0.55], [0.75], [0.95]])
Y = torch.tensor([0, 0, 1, 1, 0])  # the last one is wrong from the start


def leaves_ball(model, x, y, *, threat, rng):
    return (x + 3 * threat.eps).clamp(0, 1)


def leaves_box(model, x, y, *, threat, rng):
    return x + 0.09


def returns_nan(model, x, y, *, threat, rng):
    return x * float("nan")


def grows(model, x, y, *, threat, rng):
    return torch.cat([x, x])


def raises(model, x, y, *, threat, rng):
    raise RuntimeError("out of ideas")


def test_outcomes_match_a_hand_count():
    found = measure(threshold_model(), X, Y, threat=LINF, suite=["fgsm", "pgd"])
    assert found.clean_correct.tolist() == [True, True, True, True, False]
    assert found.fooled.tolist() == [True, False, True, False, True]
    assert found.attacks[0].tried.tolist() == [True, True, True, True, False]
    assert found.attacks[1].tried.tolist() == [False, True, False, True, False]
    assert found.robust_accuracy == pytest.approx(0.4)
    assert found.clean_accuracy == pytest.approx(0.8)
    assert torch.equal(found.x_adv[~found.fooled], X[~found.fooled])
    assert found.prediction.tolist() == [1, 0, 0, 1, 1]


def test_passes_are_counted_exactly():
    found = measure(threshold_model(), X, Y, threat=LINF, suite=["fgsm", AttackConfig(name="pgd", params={"steps": 7})])
    assert (found.attacks[0].forward_samples, found.attacks[0].backward_samples) == (4 + 4, 4)
    assert (found.attacks[1].forward_samples, found.attacks[1].backward_samples) == (2 * 7 + 2, 2 * 7)
    shape, at_random, clean, judged_again = 2, 2 * 5, 5, 2  # what measure() itself asks
    assert found.forward_samples == shape + at_random + clean + 8 + 16 + judged_again
    assert found.backward_samples == 4 + 14


@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_the_model_is_left_exactly_as_it_was(suite):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    model[0].weight.requires_grad_(False)
    model[3](torch.ones(1, 8)).sum().backward()
    model[2].eval()
    before, flags = copy.deepcopy(model), [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    measure(model, X, Y, threat=LINF, suite=suite)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))


def test_the_same_seed_gives_the_same_result_whatever_stands_beside_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(600, 6)
    y = model(x).argmax(1)
    threat = ThreatModel(norm="l2", eps=0.2)
    whole, again = (measure(model, x, y, threat=threat, suite=["pgd"], seed=3) for _ in range(2))
    first = measure(model, x[:512], y[:512], threat=threat, suite=["pgd"], seed=3)
    assert torch.equal(whole.x_adv, again.x_adv)
    assert torch.equal(whole.x_adv[:512], first.x_adv)
    other = measure(model, x, y, threat=threat, suite=["pgd"], seed=4)
    assert not torch.equal(whole.x_adv, other.x_adv)


@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        ("leaves_ball", "left the ball: moved 0.3"),
        ("leaves_box", "left the box"),
        ("returns_nan", "not finite"),
        ("grows", "returned shape"),
        ("raises", "RuntimeError: out of ideas"),
    ],
)
def test_an_attack_that_cheats_or_breaks_is_named_and_the_verdict_cannot_pass(attack, complaint):
    x, y = torch.tensor([[0.2], [0.95]]), torch.tensor([0, 1])
    config = EvaluationConfig(threats=(LINF,), suite="quick", attacks=(AttackConfig(name=f"{HERE}:{attack}"),))
    report, (found,) = evaluate(threshold_model(), x, y, config)
    assert complaint in found.problems[0]
    assert not found.fooled.any()
    assert [a.name for a in found.attacks if a.error] == [f"{HERE}:{attack}"]
    assert all(a.tried.all() for a in found.attacks if a.name in ("margin", "minimum-norm"))  # the others ran
    assert judge(report, Policy(floor=0, clean_floor=0, min_samples=1)).outcome == "cannot tell"


@pytest.mark.parametrize(
    ("x", "y", "error", "hint"),
    [
        (X[:0], Y[:0], WrongInput, "one at least"),
        (X, Y[:3], WrongInput, "same number"),
        ((X * 255).long(), Y, WrongInput, "Scale it"),
        (X * 255, Y, WrongInput, "bounds"),
        (X * float("nan"), Y, WrongInput, "not finite, first in rows"),
        (X, Y.float(), WrongInput, "integers"),
        (X, Y - 1, WrongInput, "from 0 upwards"),
        (X, Y + 5, ModelRejected, "knows 2 classes"),
    ],
)
def test_bad_input_is_refused_before_any_attack(x, y, error, hint):
    with pytest.raises(error, match=hint):
        measure(threshold_model(), x, y, threat=LINF)


def test_double_precision_and_views_are_accepted():
    model = threshold_model().double()
    found = measure(model, X.expand(5, 2)[:, :1], Y, threat=LINF, suite="quick")
    assert found.x_adv.dtype == torch.float64
    assert found.fooled.tolist() == [True, False, True, False, True]


def test_logits_that_are_not_finite_void_the_number():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.log() * 0 + 1], dim=1) / (x != 0.45)

    found = measure(Broken(), X, Y, threat=LINF, suite=["fgsm"])
    assert any("not finite" in problem for problem in found.problems)


@pytest.fixture(scope="module")
def report() -> RobustnessReport:
    torch.manual_seed(0)
    x = torch.rand(300, 1)
    config = EvaluationConfig(threats=(LINF,), suite="quick")
    return evaluate(threshold_model(), x, (x[:, 0] > 0.5).long(), config)[0]


def test_a_report_survives_json_and_its_names_please_mlflow(report):
    assert RobustnessReport.model_validate_json(report.model_dump_json()) == report
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-. :/") for key in report.metrics())
    assert report.threats[0].held().mean() == pytest.approx(report.threats[0].robust.value)


def test_the_curve_never_rises_meets_the_suite_and_is_right_at_every_point(report):
    curve = report.threats[0].curve
    values = [point.robust.value for point in curve]
    assert values == sorted(values, reverse=True)
    assert next(p.robust for p in curve if p.eps == LINF.eps) == report.threats[0].robust
    torch.manual_seed(0)
    away = (torch.rand(300, 1) - 0.5).abs()[:, 0]
    for point in curve:
        assert point.robust.value == pytest.approx((away >= point.eps).float().mean().item(), abs=0.004)


def test_the_curve_runs_from_the_clean_model_to_where_nothing_stands_on_one_search_whatever_its_points(report):
    (threat,) = report.threats
    at = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6]  # in eps; at 5 the box's end is reached
    assert [point.eps for point in threat.curve] == pytest.approx([LINF.eps * multiple for multiple in at])
    assert threat.curve[0].robust == threat.clean
    assert [point.robust.value for point in threat.curve][-2:] == [pytest.approx(0.19, abs=0.05), 0.0]
    (search,) = [row for row in threat.attacks if row.name == "minimum-norm"]
    assert search is threat.attacks[-1]
    steps = NEARBY + 1 + ELSEWHERE + 1  # a look at each start and after every step
    assert (search.forward_samples, search.backward_samples) == (300 * (steps + 1), 300 * (NEARBY + ELSEWHERE))


@pytest.mark.parametrize("change", ["data_digest", "split", "seed"])
def test_reports_on_unequal_grounds_are_not_comparable(report, change):
    other = report.model_copy(update={change: 7 if change == "seed" else "other"})
    assert report.comparable_with(report) is None
    assert report.comparable_with(other) is not None


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (10, 10), (618, 1000)])
def test_wilson_agrees_with_scipy(count, n):
    expected = stats.binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert Share.of(count, n).n == n


@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(count, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(count, n)


def test_the_bound_on_a_paired_loss_holds_as_often_as_it_says():
    rng, held, n, lose, gain = torch.Generator().manual_seed(0), 0, 200, 0.08, 0.05
    for _ in range(2000):
        u = torch.rand(n, generator=rng)
        lost, gained = int((u < lose).sum()), int(((u >= lose) & (u < lose + gain)).sum())
        held += paired_loss(lost, gained, n)[1] >= lose - gain
    assert 0.93 < held / 2000 < 0.98
    assert paired_loss(0, 0, 500)[0] == 0
    assert math.isclose(paired_loss(5, 5, 100)[0], 0)
