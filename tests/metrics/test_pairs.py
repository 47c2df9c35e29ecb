from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import AttackConfig, ThreatModel
from tasks.errors import WrongInput
from tasks.metrics import EvaluationConfig, RobustnessReport, evaluate, measure, measure_pairs, pairs
from tasks.metrics.pairs import TargetOrNot, attack_pairs
from tasks.models.planted import Quantised
from tests.metrics.test_gate import along, corner, finds, spread
from tests.metrics.test_soundness import ByNumpy

NEAR, FAR = ThreatModel(norm="linf", eps=0.15), ThreatModel(norm="linf", eps=0.35)


def stairs() -> nn.Linear:
    """Class 0 below 0.3, class 1 up to 0.6, class 2 above: of one feature, so each class is reached at a known eps."""
    model = nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0], [20.0]]))
        model.bias.copy_(torch.tensor([0.0, -3.0, -9.0]))
    return model


X = torch.linspace(0.005, 0.995, 100).view(-1, 1)
Y = torch.bucketize(X[:, 0], torch.tensor([0.3, 0.6]))


@pytest.mark.parametrize("suite", ["quick", "standard"])
@pytest.mark.parametrize(
    ("threat", "pair", "reached"),
    [
        (NEAR, (0, 1), X[:, 0] > 0.15),
        (NEAR, (0, 2), X[:, 0] > 0.45),
        (FAR, (0, 2), X[:, 0] > 0.25),  # across the whole of class 1
        (FAR, (2, 0), X[:, 0] < 0.65),
        (NEAR, (1, 0), X[:, 0] < 0.45),
    ],
)
def test_exactly_the_samples_that_can_reach_the_target_flip(suite, threat, pair, reached):
    (report,) = measure_pairs(stairs(), X, Y, [pair], threat=threat, suite=suite)
    of_source = pair[0] == Y
    assert report.rows == tuple((reached & of_source).nonzero().flatten().tolist())
    assert (report.source, report.target, report.n) == (*pair, int(of_source.sum()))
    assert report.flipped.value == pytest.approx(len(report.rows) / report.n)
    assert report.problems == ()


def test_what_already_looks_like_the_target_counts_and_a_third_class_is_left_out():
    y = Y.clone()
    y[[50, 90]] = 0  # the model says 1, and 2
    (report,) = measure_pairs(stairs(), X, y, [(0, 2)], threat=NEAR, suite="quick")
    assert report.n == 30 + 1
    assert report.rows == (90,)


def test_a_class_without_a_right_sample_has_no_share():
    (report,) = measure_pairs(stairs(), X[:20], Y[:20], [(2, 0)], threat=NEAR, suite="quick")
    assert (report.n, report.flipped, report.rows) == (0, None, ())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("target", range(4))
def test_the_question_s_answer_is_the_model_s_with_ties_too(dtype, target):
    logits = torch.randint(-2, 3, (500, 4), generator=torch.Generator().manual_seed(0)).to(dtype) / 3
    asked = TargetOrNot(nn.Identity(), target)(logits)
    assert torch.equal(asked.argmax(1) == 1, logits.argmax(1) == target)
    assert (asked[:, 1] == logits[:, target]).all()


def no_luck(model, x, y, *, threat, rng):
    return x


def raises(model, x, y, *, threat, rng):
    raise RuntimeError("out of ideas")


def test_what_the_suite_met_before_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(pairs, "examine", finds())  # whose own searches would flip them
    warm = measure(stairs(), X, Y, threat=NEAR, suite="quick").nearest
    suite = [AttackConfig(name=f"{__name__}:no_luck")]
    cold, begun = (
        measure_pairs(stairs(), X, Y, [(0, 1)], threat=NEAR, suite=suite, warm=start)[0] for start in (None, warm)
    )
    assert cold.rows == ()
    assert begun.rows == tuple(range(15, 30))


def test_an_attack_that_raised_is_named():
    suite = [AttackConfig(name=f"{__name__}:raises")]
    (report,) = measure_pairs(stairs(), X, Y, [(0, 1)], threat=NEAR, suite=suite)
    assert "out of ideas" in report.problems[0]


WIDE = spread(torch.linspace(0.16, 0.84, 100))
CLOSE = ThreatModel(norm="linf", eps=0.07)


@pytest.mark.parametrize(("pair", "up"), [((0, 1), True), ((1, 0), False), ((1, 2), True), ((2, 1), False)])
def test_a_mask_that_the_escalation_opens_hides_no_flip(monkeypatch, pair, up):
    model = Quantised(nn.Sequential(along(), stairs()))
    y = model(WIDE).argmax(1)
    (report,) = measure_pairs(model, WIDE, y, [pair], threat=CLOSE, suite=["pgd"])
    monkeypatch.setattr(pairs, "examine", finds())
    (unexamined,) = measure_pairs(model, WIDE, y, [pair], threat=CLOSE, suite=["pgd"])
    reached = model(corner(WIDE, CLOSE.eps, torch.full((100,), up))).argmax(1) == pair[1]
    assert report.rows == tuple((reached & (y == pair[0])).nonzero().flatten().tolist())
    assert report.problems == ()
    assert len(unexamined.rows) < 0.5 * len(report.rows) < 0.5 * report.n  # the question was not trivial


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 1)])
def test_a_mask_that_nothing_opens_is_a_problem(pair):
    honest = nn.Sequential(along(), stairs())
    y = honest(WIDE).argmax(1)
    (seen,), (hidden,) = (
        measure_pairs(model, WIDE, y, [pair], threat=CLOSE, suite=["pgd"]) for model in (honest, ByNumpy(honest))
    )
    assert seen.problems == ()
    assert "no gradients" in [problem.split(":")[0] for problem in hidden.problems]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(1), stairs()).train()
    model[0].running_mean.fill_(0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure_pairs(model, X, Y, [(0, 1)], threat=NEAR, suite="quick")
    assert model.training
    assert model[0].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_class_that_the_model_does_not_know_is_refused_before_any_attack():
    config = EvaluationConfig(
        threats=(NEAR,), attacks=(AttackConfig(name=f"{__name__}:raises"),), critical_pairs=((0, 3),)
    )
    with pytest.raises(WrongInput, match=r"names class 3, but the model knows 3 classes\. Write class numbers from 0"):
        evaluate(stairs(), X, Y, config)


@pytest.mark.parametrize("pairs", [[(1, 1)], [(-1, 0)], [(0, 1, 2)]])
def test_a_pair_is_of_two_classes(pairs):
    with pytest.raises(ValidationError, match="critical_pairs"):
        EvaluationConfig(threats=(NEAR,), critical_pairs=pairs)


def test_every_threat_model_s_report_holds_every_pair():
    config = EvaluationConfig(threats=(NEAR, FAR), suite="quick", critical_pairs=((0, 2), (1, 0)), seeds=2)
    report, _ = evaluate(stairs(), X, Y, config)
    near, far = report.threats
    assert [(p.source, p.target, len(p.rows)) for p in near.pairs] == [(0, 2, 0), (1, 0, 15)]
    assert [(p.source, p.target, len(p.rows)) for p in far.pairs] == [(0, 2, 5), (1, 0, 30)]
    assert report.metrics()["flipped/linf_0.15/1-0"] == pytest.approx(15 / 30)
    assert RobustnessReport.model_validate_json(report.model_dump_json()) == report


def test_what_flips_is_handed_out_row_by_row_and_a_head_start_that_flips_all_is_no_gap():
    run = partial(measure, threat=NEAR, suite="quick")
    ((report, flips),) = attack_pairs(stairs(), X, Y, [(0, 1)], run, seeds=[0])
    assert len(flips) == len(report.rows) > 0
    assert (stairs()(flips).argmax(1) == 1).all()
    assert ((flips - X[list(report.rows)]).abs() <= NEAR.eps + 1e-6).all()
    head = X.clone()
    head[list(report.rows)] = flips
    mine = list(report.rows)
    ((again, same),) = attack_pairs(stairs(), X[mine], Y[mine], [(0, 1)], run, seeds=[0], warm=head[mine])
    assert again.problems == ()
    assert again.flipped.value == 1.0
    torch.testing.assert_close(same, flips)
