"""The signs of soundness and the escalation, on planted faults, on honest models, and where nothing can be asked."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks import SUITES, AttackConfig, Suite, ThreatModel
from tasks.attacks.search import Search, margins
from tasks.data import digits
from tasks.errors import WrongInput
from tasks.metrics import EvaluationConfig, Sign, evaluate, examine, measure, security_curve
from tasks.metrics.budget import violation
from tasks.metrics.escalation import _merged, _without_gradients
from tasks.metrics.selftest import SHOWS, THREAT, Finding, Planted, find, plant
from tasks.metrics.signs import QUESTIONS, answer_to
from tasks.models.planted import Quantised, Saturated
from tasks.verdicts import Policy, judge

N = 200
HERE = __name__
OWN = EvaluationConfig(threats=(THREAT,), suite="warm", attacks=(AttackConfig(name="noise"),))


@pytest.fixture(scope="module")
def images():
    x, y = digits("test")
    return x[:N], y[:N]


@pytest.fixture(scope="module")
def planted(images) -> dict[str, Planted]:
    return {case.name: case for case in plant(images[1])}


@pytest.fixture(scope="module")
def findings(planted, images) -> dict[str, Finding]:
    return {name: find(case, images[0]) for name, case in planted.items()}


HONEST = (
    "plain MLP",
    "adversarially trained MLP",
    "MLP with batch normalisation and dropout",
    "convolutional net",
)


@pytest.mark.parametrize("fault", SHOWS)
def test_every_planted_fault_is_caught_by_the_sign_that_names_it(findings, fault):
    found = findings[fault]
    assert found.faulty
    assert set(found.fired) & set(SHOWS[fault])
    assert found.right


@pytest.mark.parametrize("name", HONEST)
def test_no_honest_model_is_accused(findings, name):
    assert findings[name].fired == ()
    assert findings[name].soundness.sound
    assert findings[name].soundness.steps == ()


def test_the_set_of_planted_models_is_whole(findings):
    assert set(findings) == set(SHOWS) | set(HONEST)


def test_what_hides_from_pgd_does_not_hide_from_us(findings):
    for fault in ("saturated logits", "quantised input", "detached preprocessing", "dead rectifiers"):
        assert findings[fault].naive > 0.85
        assert findings[fault].after < 0.2


def test_signs_cost_at_most_fifteen_percent_of_the_passes(findings):
    for found in findings.values():
        assert found.soundness.share <= 0.15, found.name


def test_a_void_number_says_so_and_an_answered_one_says_how(findings):
    assert not findings["dead rectifiers"].soundness.sound
    assert not findings["network in training mode"].soundness.sound
    assert not findings["labels off by one"].soundness.sound
    quantised = findings["quantised input"].soundness
    assert quantised.sound
    assert all(sign.answer for sign in quantised.signs if sign.first == "alarm")
    assert quantised.steps[0].name == "straight-through gradients (BPDA)"


def test_each_question_is_answered_once_in_the_order_of_the_table(findings):
    names = [part for name in QUESTIONS for part in name.split(" / ")]
    assert [sign.name for sign in findings["plain MLP"].soundness.signs] == names


def test_a_sign_that_fires_names_its_figure_threshold_and_samples(findings):
    for found in findings.values():
        for sign in found.soundness.signs:
            assert sign.says.endswith(".")
            if sign.first == "alarm":
                assert None not in (sign.figure, sign.threshold)
                assert all(0 <= row < N for row in sign.samples)
            if sign.first in ("not run", "not applicable"):
                assert sign.figure is None
                assert sign.says.lower().startswith(sign.first)


@pytest.mark.parametrize("fault", ["quantised input", "detached preprocessing"])
def test_a_weak_suite_is_made_good_by_the_escalation(planted, images, fault):
    x, y = images
    model = planted[fault].model
    weak = measure(model, x, y, threat=THREAT, suite=["pgd"])
    outcomes, curve, soundness = examine(model, x, y, outcomes=weak)
    assert weak.robust_accuracy > 0.7
    assert outcomes.robust_accuracy < 0.1
    assert soundness.before == pytest.approx(weak.robust_accuracy, abs=0.03)
    assert curve == ()
    assert violation(x, outcomes.x_adv, THREAT) is None
    assert (outcomes.fooled | ~weak.fooled).all()  # nothing that had fallen stands again
    with torch.no_grad():
        answers = model(outcomes.x_adv).argmax(1)
    assert torch.equal(answers != y, outcomes.fooled)
    assert torch.equal(answers[outcomes.fooled], outcomes.prediction[outcomes.fooled])


def test_what_only_a_sign_fools_has_the_margin_of_the_input_that_fooled(planted, images):
    x, y = images
    model = planted["plain MLP"].model
    weak = measure(model, x, y, threat=THREAT, suite=[AttackConfig(name="noise", params={"draws": 1})])
    outcomes, _, _ = examine(model, x, y, outcomes=weak)
    fell = next(attack.fooled for attack in outcomes.attacks if attack.name == "signs")
    assert fell.any()
    lead = margins(model(outcomes.nearest), y)
    torch.testing.assert_close(outcomes.margin[fell], lead[fell], atol=1e-4, rtol=1e-4)


def test_cross_entropy_without_a_slope_is_an_alarm_until_something_follows_the_margin(planted, images):
    x, y = images
    model = planted["saturated logits"].model
    by_entropy = measure(model, x, y, threat=THREAT, suite=["fgsm"])
    by_margin = measure(model, x, y, threat=THREAT, suite=["margin"])
    _, _, first = examine(model, x, y, outcomes=by_entropy)
    _, _, second = examine(model, x, y, outcomes=by_margin)
    assert first.steps
    sign = next(sign for sign in second.signs if sign.name == "no gradients")
    assert (sign.first, sign.state) == ("alarm", "ok")
    assert "raw margin" in sign.answer


def test_the_examination_repeats_itself_and_leaves_the_model_alone(planted, images):
    x, y = images
    model = planted["quantised input"].model.train()
    weak = measure(model, x, y, threat=THREAT, suite=["pgd"])
    state = torch.get_rng_state()
    before = [p.clone() for p in model.parameters()]
    first, second = (examine(model, x, y, outcomes=weak) for _ in range(2))
    assert torch.equal(first[0].x_adv, second[0].x_adv)
    assert first[2] == second[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    model.eval()


def test_the_curve_meets_the_headline_after_the_escalation(planted, images):
    x, y = images
    model = planted["detached preprocessing"].model
    outcomes, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=THREAT, suite=["pgd"]))
    outcomes, curve, _ = examine(model, x, y, outcomes=outcomes, curve=curve)
    at = next(point.robust.value for point in curve if point.eps == THREAT.eps)
    assert at == pytest.approx(outcomes.robust_accuracy)
    values = [point.robust.value for point in curve]
    assert values == sorted(values, reverse=True)


class ByNumpy(nn.Module):
    """A defence that leaves torch inside of a function: nothing can be put in its place."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.tensor(x.detach().numpy().round(1)))


def test_what_no_stand_in_opens_stays_void(planted, images):
    x, y = images
    model = ByNumpy(planted["plain MLP"].model)
    outcomes = measure(model, x, y, threat=THREAT, suite="quick")
    _, _, soundness = examine(model, x, y, outcomes=outcomes)
    assert "no gradients" in [sign.name for sign in soundness.alarms]
    last = soundness.steps[-1]
    assert last.name == "without gradients"
    assert last.passes > 180 * last.tried  # many fall soon: of 2,000, not of the 200 that a suite so short allows


class Moody(nn.Module):
    """Raises for anything but whole batches of 8 or more."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if len(x) < 3:
            raise RuntimeError("too few")
        return self.net(x)


def test_a_question_that_the_model_does_not_survive_is_an_alarm(planted, images):
    x, y = images
    outcomes = measure(planted["plain MLP"].model, x, y, threat=THREAT, suite=["pgd"])
    _, _, soundness = examine(Moody(planted["plain MLP"].model), x, y, outcomes=outcomes)
    sign = next(sign for sign in soundness.signs if sign.name == "answers depend on the batch")
    assert sign.state == "alarm"
    assert "RuntimeError" in sign.says


def test_what_a_model_raises_is_told_without_its_secrets():
    def fails():
        raise ValueError("no answer from https://user:" + "canary-of-sign@host/x")

    sign = answer_to("no gradients", fails)
    assert sign.state == "alarm"
    assert sign.says == "When it was asked, the model raised ValueError: no answer from https://***@host/x."


def passes_over(model, x, y, *, threat, rng):
    """Meets a fooling input on its way and returns the original."""
    leaf = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    model((x + threat.eps * grad.sign()).clamp(*threat.bounds))
    return x


def test_a_fooling_input_met_on_the_way_counts_and_is_reported(planted, images):
    x, y = images
    model = planted["plain MLP"].model
    silent = measure(model, x, y, threat=THREAT, suite=[f"{HERE}:passes_over"])
    fgsm = measure(model, x, y, threat=THREAT, suite=["fgsm"])
    assert torch.equal(silent.fooled, fgsm.fooled)
    _, _, soundness = examine(model, x, y, outcomes=silent)
    sign = next(sign for sign in soundness.signs if sign.name == "silent success")
    assert (sign.first, sign.state) == ("alarm", "ok")
    assert sign.samples == tuple((silent.fooled & silent.clean_correct).nonzero().flatten().tolist())


def test_a_search_that_its_cap_cut_short_shows_late_flips(planted, images):
    x, y = images
    row = AttackConfig(name="restarts", params={"steps": 5}, samples="drawn", share=0.1)
    suite = Suite(name="short", attacks=(row,), passes=12, again=5)
    model = planted["plain MLP"].model
    outcomes = measure(model, x, y, threat=THREAT, suite=suite)
    _, _, soundness = examine(model, x, y, outcomes=outcomes)
    sign = next(sign for sign in soundness.signs if sign.name == "late flips")
    assert outcomes.capped
    assert sign.first == "alarm"
    assert "cap" in sign.says


@pytest.mark.parametrize(
    ("straight", "capped", "state"),
    [(0.8, True, "alarm"), (0.8, False, "ok"), (0.9, True, "ok"), (None, True, "not applicable")],
)
def test_a_limit_that_ends_a_search_along_winding_slopes_is_an_alarm(planted, images, straight, capped, state):
    x, y = images
    model = planted["plain MLP"].model
    outcomes = measure(model, x, y, threat=THREAT, suite="quick")
    _, _, soundness = examine(model, x, y, outcomes=replace(outcomes, straight=straight, capped=capped))
    sign = next(sign for sign in soundness.signs if sign.name == "cut short")
    assert sign.first == state
    assert (sign.figure, sign.threshold) == ((None, None) if straight is None else (1 - straight, pytest.approx(0.18)))
    assert ("no cap" in sign.says) == (straight is not None and not capped)


def test_a_search_cut_short_is_answered_by_a_longer_one_that_knows_how_slopes_wind(planted, images, monkeypatch):
    x, y = images
    model, told = planted["plain MLP"].model, []

    class Told(Search):
        def __init__(self, *args, **how):
            told.append(how["straight"])
            super().__init__(*args, **how)

    monkeypatch.setattr("tasks.metrics.escalation.Search", Told)
    outcomes = replace(measure(model, x, y, threat=THREAT, suite="quick"), straight=0.6, capped=True)
    after, _, soundness = examine(model, x, y, outcomes=outcomes)
    sign = next(sign for sign in soundness.signs if sign.name == "cut short")
    assert soundness.steps
    assert set(told) == {0.6}
    assert (sign.first, sign.state) == ("alarm", "ok")
    assert "another 40 steps" in sign.answer.lower()
    assert after.robust_accuracy <= outcomes.robust_accuracy


def test_a_curve_that_misses_its_headline_is_an_alarm(planted, images):
    x, y = images
    model = planted["plain MLP"].model
    outcomes, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=THREAT, suite="quick"))
    wrong = tuple(replace_share(point) if point.eps == THREAT.eps else point for point in curve)
    _, _, soundness = examine(model, x, y, outcomes=outcomes, curve=wrong)
    sign = next(sign for sign in soundness.signs if sign.name == "the curve does not fall")
    assert sign.first == "alarm"


def replace_share(point):
    share = point.robust.model_copy(update={"value": 0.99})
    return point.model_copy(update={"robust": share})


@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel(norm="l2", eps=0.5),
        ThreatModel(norm="l1", eps=2.0),
        ThreatModel(norm="l0", eps=3),
        ThreatModel(norm="unbounded"),
        ThreatModel(norm="linf", eps=0.1, mask=(True,) * 32 + (False,) * 32),
    ],
    ids=str,
)
def test_no_honest_model_is_accused_under_another_threat(planted, images, threat):
    x, y = images
    model = planted["adversarially trained MLP"].model
    outcomes, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat))
    _, _, soundness = examine(model, x, y, outcomes=outcomes, curve=curve)
    assert [sign.name for sign in soundness.signs if sign.first == "alarm"] == []


@pytest.mark.parametrize("wrap", [Quantised, Saturated])
def test_masking_is_caught_in_another_norm_too(planted, images, wrap):
    x, y = images
    model = wrap(planted["plain MLP"].model)
    outcomes = measure(model, x, y, threat=ThreatModel(norm="l2", eps=0.5), suite="quick")
    _, _, soundness = examine(model, x, y, outcomes=outcomes)
    assert "no gradients" in [sign.name for sign in soundness.signs if sign.first == "alarm"]


class WritesIntoItsInput(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x.data.mul_(8).round_().div_(8)
        return self.net(x)


def test_a_model_that_writes_into_its_input_spoils_neither_data_nor_attack(planted, images):
    x, y = images
    before = x.clone()
    outcomes = measure(WritesIntoItsInput(planted["plain MLP"].model), x, y, threat=THREAT)
    assert torch.equal(x, before)
    assert violation(x, outcomes.x_adv, THREAT) is None
    assert outcomes.robust_accuracy < 0.3  # in place, each attack's steps were rounded away and it kept 90 %


class SnapsWithoutGrad(nn.Module):
    """Honest while a gradient is asked for; else it looks up the nearest test image."""

    def __init__(self, net, x):
        super().__init__()
        self.net = net
        self.register_buffer("known", x.clone())

    def forward(self, x):
        if torch.is_grad_enabled():
            return self.net(x)
        return self.net(self.known[torch.cdist(x.flatten(1), self.known.flatten(1)).argmin(1)])


def test_what_the_judge_takes_back_is_an_alarm(planted, images):
    x, y = images
    model = SnapsWithoutGrad(planted["plain MLP"].model, x)
    outcomes = measure(model, x, y, threat=THREAT, suite="quick")
    assert int(outcomes.dropped.sum()) > 100
    _, _, soundness = examine(model, x, y, outcomes=outcomes)
    assert "successes do not hold" in [sign.name for sign in soundness.alarms]


@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_a_model_that_always_says_the_same_withstands_all_and_may_not_pass_for_robust(images, suite):
    x, y = images
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.mul_(1e-4)
        model[1].bias.copy_(torch.arange(10.0))
    _, _, soundness = examine(model, x, y, outcomes=measure(model, x, y, threat=THREAT, suite=suite))
    fired = [sign for sign in soundness.signs if sign.state == "alarm"]
    assert [sign.name for sign in fired] == ["one answer to everything"]
    assert "100.0 %" in fired[0].says
    assert not soundness.sound
    only = y == 9
    outcomes = measure(model, x[only], y[only], threat=THREAT, suite=suite)
    signs = examine(model, x[only], y[only], outcomes=outcomes)[2].signs
    assert {sign.name: sign.state for sign in signs}["one answer to everything"] == "not applicable"


def test_a_model_that_merely_prefers_a_class_is_not_taken_for_shifted_labels():
    rng = torch.Generator().manual_seed(0)
    y = (torch.rand(200, generator=rng) < 0.05).long()
    x = torch.full((200, 4), 0.5)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2, 4))
        model.bias.zero_()
        often = torch.rand(200, generator=rng) < 0.4
        x[:, 0], x[:, 1] = torch.where((y == 1) | ~often, 0.2, 0.8), torch.where((y == 1) | ~often, 0.8, 0.2)
    outcomes = measure(model, x, y, threat=THREAT, suite="quick")
    assert outcomes.clean_accuracy < 0.5
    _, _, soundness = examine(model, x, y, outcomes=outcomes)
    assert "labels do not fit" not in [sign.name for sign in soundness.signs if sign.first == "alarm"]


def test_two_classes_with_one_logit_are_not_masking(planted, images):
    x, y = images
    net = planted["adversarially trained MLP"].model
    last = net[-1]
    assert isinstance(last, nn.Linear)
    weight, bias = last.weight.clone(), last.bias.clone()
    try:
        with torch.no_grad():
            last.weight[5], last.bias[5] = last.weight[3], last.bias[3]
        outcomes = measure(net, x, y, threat=THREAT)
        _, _, soundness = examine(net, x, y, outcomes=outcomes)
        assert {"no gradients", "unbounded attack fails"}.isdisjoint(sign.name for sign in soundness.alarms)
    finally:
        with torch.no_grad():
            last.weight.copy_(weight)
            last.bias.copy_(bias)


def test_other_samples_than_were_measured_are_refused(planted, images):
    x, y = images
    model = planted["plain MLP"].model
    outcomes = measure(model, x, y, threat=THREAT, suite="quick")
    for wrong in (x[:50], x.flip(0)):
        with pytest.raises(WrongInput, match="not the samples"):
            examine(model, wrong, y[: len(wrong)], outcomes=outcomes)


@pytest.mark.parametrize(
    "suite",
    ["warm", SUITES["warm"].within(10), OWN.resolved_suite()],
    ids=["by name", "with a limit", "with an attack of one's own"],
)
def test_the_warm_suite_wants_something_warm(planted, images, suite):
    with pytest.raises(WrongInput, match=r"warm=earlier\.nearest"):
        measure(planted["plain MLP"].model, *images, threat=THREAT, suite=suite)


@pytest.mark.parametrize(
    ("state", "stands", "left"),
    [
        ("ok", True, "ok"),
        ("alarm", True, "alarm"),
        ("not applicable", True, "alarm"),
        ("not run", True, "alarm"),
        ("not applicable", False, "ok"),
    ],
)
def test_a_question_that_cannot_be_asked_again_is_no_answer(state, stands, left):
    first = Sign(name="n", kind="masking", state="alarm", first="alarm", says="Seen.")
    again = first.model_copy(update={"state": state})
    assert _merged(first, again, stands=stands).state == left


@pytest.mark.parametrize("state", ["ok", "not run"])
def test_an_alarm_that_only_the_escalation_raised_stands_and_an_all_clear_changes_nothing(state):
    first = Sign(name="n", kind="masking", state=state, first=state, says="Seen.")
    again = first.model_copy(update={"state": "alarm", "says": "Seen later."})
    assert _merged(first, again, stands=True) == again
    assert _merged(first, again.model_copy(update={"state": "ok"}), stands=True) == first


class Smeared(nn.Module):
    """Rounds what it has mixed: no slope to follow, and no feature whose thresholds could be found."""

    def __init__(self, net):
        super().__init__()
        self.net, self.kernel = net, torch.tensor([[[[0.0, 1, 0], [1, 4, 1], [0, 1, 0]]]]) / 8

    def forward(self, x):
        return self.net((F.conv2d(x, self.kernel, padding=1) * 2).round() / 2)


def test_what_only_scores_find_once_slopes_are_lent_voids_the_number_of_a_quick_look(planted, images):
    model, (x, y), threat = Smeared(planted["plain MLP"].model).eval(), images, ThreatModel(norm="l2", eps=0.6)
    quick = measure(model, x, y, threat=threat, suite="quick")
    outcomes, _, soundness = examine(model, x, y, outcomes=quick)
    (alarm,) = soundness.alarms
    assert (alarm.name, alarm.first != "alarm") == ("black-box beats white-box", True)
    assert alarm.figure > 0.05
    late = next(attack for attack in outcomes.attacks if attack.name == "escalation: without gradients")
    assert set(late.fooled.nonzero().flatten().tolist()) <= set(alarm.samples)
    assert outcomes.robust_accuracy < quick.robust_accuracy - 0.1
    assert "of those samples" in alarm.says


def test_scores_are_asked_from_the_nearest_point_too():
    signs = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).sign()

    class Dented(nn.Module):
        """Level, but where at most four pixels of 64 are not turned the way that fools it."""

        def forward(self, x):
            wrong = ((x - 0.5).sign() != signs).flatten(1).sum(1).float()
            return torch.stack([(wrong.clamp_max(5) - 0.5), torch.zeros(len(x))], 1)

    x, threat = torch.full((1, 1, 8, 8), 0.5), ThreatModel(norm="linf", eps=0.1)
    search = Search(Dented(), x, torch.tensor([0]), threat=threat, rng=torch.Generator().manual_seed(0))
    near = x + 0.1 * signs
    near[0, 0, 2, 3:6] = 0.5
    search.look(torch.tensor([0]), near, inside=True)
    assert not search.fooled.any()
    _without_gradients(search, search.standing(), queries=2000)
    assert search.fooled.all()


class OneHot(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return nn.functional.one_hot(self.net(x).argmax(1), 10)


class ByNumpyOfALeaf(nn.Module):
    """Raises where a gradient is asked for."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.tensor(x.numpy()))


class OnlyForward(nn.Module):
    """Raises where a gradient is asked for, whatever stands in for its parts."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.requires_grad:
            raise RuntimeError("this layer knows no way back")
        return self.net(x)


@pytest.mark.parametrize("broken", [ByNumpyOfALeaf, OnlyForward])
def test_a_model_that_breaks_an_attack_ends_in_a_report_and_not_in_a_traceback(planted, images, broken):
    x, y = images
    model = broken(planted["plain MLP"].model)
    outcomes, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=THREAT, suite="quick"))
    outcomes, _, soundness = examine(model, x, y, outcomes=outcomes, curve=curve)
    assert outcomes.problems
    assert "black-box beats white-box" in [alarm.name for alarm in soundness.alarms]


def test_a_model_that_stands_in_for_itself_is_no_surrogate(planted, images):
    model, (x, y) = planted["plain MLP"].model, images
    _, _, soundness = examine(model, x, y, outcomes=measure(model, x, y, threat=THREAT, suite=["transfer"]))
    states = {sign.name: sign.state for sign in soundness.signs}
    assert states["transfer beats the attack"] == "not run"
    assert states["black-box beats white-box"] == "not run"


def test_a_surrogate_to_which_no_sample_was_left_says_nothing(planted, images):
    model, (x, y) = planted["plain MLP"].model, images
    lent = {"surrogate": "tasks.models.networks:digits_cnn"}
    suite = [{"name": "pgd", "params": {"steps": 100}}, {"name": "transfer", "params": lent}]
    outcomes = measure(model, x, y, threat=ThreatModel(norm="linf", eps=0.9), suite=suite)
    assert outcomes.fooled.all()
    _, _, soundness = examine(model, x, y, outcomes=outcomes)
    assert next(sign for sign in soundness.signs if sign.name == "transfer beats the attack").state == "not applicable"


def test_a_model_that_answers_with_whole_numbers_is_as_robust_as_what_it_ranks(planted, images):
    x, y = images
    shares = []
    for model in (OneHot(planted["plain MLP"].model), planted["plain MLP"].model):
        outcomes, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=THREAT, suite="quick"))
        outcomes, _, soundness = examine(model, x, y, outcomes=outcomes, curve=curve)
        assert not soundness.alarms
        assert not outcomes.problems
        shares.append(outcomes.robust_accuracy)
    assert shares[0] == pytest.approx(shares[1], abs=1.5 / len(x))


def test_without_a_right_answer_there_is_one_sign(images):
    x, y = images
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
        model[1].bias[0] = 1.0
    keep = y != 0
    outcomes = measure(model, x[keep], y[keep], threat=THREAT, suite="quick")
    _, _, soundness = examine(model, x[keep], y[keep], outcomes=outcomes)
    assert [sign.state for sign in soundness.signs] == ["ok", "not applicable"]
    assert replace(outcomes).robust_accuracy == 0


class WinnersTakeAll(nn.Module):
    """Only the largest tenth of the features pass (Xiao et al., 2020, https://arxiv.org/abs/1905.10510)."""

    def forward(self, x):
        """X [B, F] -> [B, F]."""
        return x.masked_fill(x < x.topk(max(x.shape[1] // 10, 1), dim=1).values[:, -1:], 0.0)


def test_slopes_that_hold_on_one_side_of_a_jump_only_are_found(images):
    torch.manual_seed(0)
    train, labels = digits("train")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), WinnersTakeAll(), nn.Linear(256, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(net(train), labels).backward()
        optimiser.step()
    net.eval().requires_grad_(False)
    outcomes = measure(net, *images, threat=ThreatModel(norm="linf", eps=0.1), suite="quick")
    _, _, soundness = examine(net, *images, outcomes=outcomes)
    assert "slopes do not fit the answers" in {sign.name for sign in soundness.alarms}
    assert not soundness.sound


def test_one_answer_that_is_half_right_still_fails():
    x = torch.rand(400, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e-4)
        model[1].bias.copy_(torch.arange(2.0))
    report, _ = evaluate(model, x, (x[:, 0] > 0.5).long(), EvaluationConfig(threats=(THREAT,), suite="quick"))
    assert "one answer to everything" in [sign.name for sign in report.threats[0].soundness.alarms]
    assert judge(report, Policy(floor=0.9)).outcome == "fail"  # so that it is hardened, and another round is tried
