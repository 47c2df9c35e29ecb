"""What a measurement costs, and that a limit of passes is kept and spent."""

import copy

import pytest
import torch

from tasks.attacks import SUITES, AttackConfig, Suite, ThreatModel
from tasks.attacks.geometry import inside
from tasks.attacks.search import sloped
from tasks.metrics import cell, isolation, measure, views
from tasks.metrics.cell import BLOCK
from tests.metrics.nets import L1, L2, LINF, SMALL, Through, amid, assert_honest, linear, passes, shown


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_of_a_model_that_answers_at_random_one_answer_is_one_pass_in_a_limit(hardened, threat):
    """The judge's 30 draws count as three, before the search and after it."""
    x, y = shown(60)
    noisy = Through(hardened, before=lambda x: x + 0.1 * torch.randn_like(x))
    found = measure(noisy, x, y, threat=threat.model_copy(update={"eps": 0.7 * threat.eps}), suite="quick")
    assert found.draws == 10
    limit = SUITES["quick"].whole * found.draws * len(x)
    assert 0.7 * limit < passes(found) <= limit


@pytest.mark.parametrize("threat", [LINF, L2, L1, ThreatModel(norm="l0-pixels", eps=3)], ids=str)
@pytest.mark.parametrize("network", ["hardened", "cnn"])
def test_quick_spends_at_most_forty_passes_a_sample(network, threat, request):
    model, (x, y) = request.getfixturevalue(network), shown(200)
    found = measure(model, x, y, threat=threat, suite="quick")
    assert_honest(model, x, y, found)
    assert passes(found) <= 40 * len(x)
    for few in (1, 2, 3, 5, 8, 16):
        assert passes(measure(model, x[:few], y[:few], threat=threat, suite="quick")) <= 40 * few


def test_an_attack_on_the_nearest_whose_cost_nobody_knows_runs_within_a_limit_too(hardened):
    x, y = shown(40)
    row = AttackConfig(name="noise", samples="nearest", share=0.5)
    found = measure(hardened, x, y, threat=LINF, suite=Suite(name="its", attacks=(row,), whole=30))
    assert [attack.error for attack in found.attacks] == [None]
    assert found.attacks[0].tried.sum() == 20


def test_samples_that_were_wrong_from_the_start_hold_nothing_back_for_a_last_look(hardened):
    x, y = shown(200)
    y = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 10)
    found = measure(hardened, x, y, threat=L2, suite=SUITES["quick"].within(11))
    assert found.clean_accuracy < 0.6
    assert 11 * len(x) - 50 < passes(found) <= 11 * len(x)


def test_what_is_asked_before_the_first_cell_takes_nothing_from_a_small_last_one(hardened):
    x, y = shown(200)
    stands = ~measure(hardened, x, y, threat=L2, suite="quick").fooled
    few = [part[stands][:2] for part in (x, y)]
    x, y = (
        torch.cat([part[stands].repeat(8, *[1] * (part.ndim - 1))[:BLOCK], two])
        for part, two in zip((x, y), few, strict=True)
    )
    assert len(x) == BLOCK + 2
    last, alone = (
        measure(hardened, x, y, threat=L2, suite="quick", block=1),
        measure(hardened, *few, threat=L2, suite="quick"),
    )
    assert passes(alone) <= 40 * 2
    assert passes(last) > passes(alone) + 40  # what both asked before, and then as much as two samples may take


ASKED_BEFORE = 2 + 2 * isolation.PROBE  # what shape the model's answers have, and whether it answers at random
ASKED_BEHIND = 2 * views.GLANCE  # after the first descent: whether it compares numbers, whether slopes fit


def test_where_a_first_look_tells_slopes_a_descent_asks_once_less_and_the_foretold_are_only_looked_at():
    model = linear(2)
    x, y = amid(model)
    suite = [AttackConfig(name="margin", params={"steps": 3})]
    found = measure(model, x, y, threat=SMALL, suite=suite)
    fell = int(found.fooled.sum())
    assert 20 < fell < 180
    stood = len(x) - fell
    assert found.backward_samples == len(x) + 2 * stood
    assert (
        found.forward_samples == ASKED_BEFORE + len(x) + fell + 3 * stood + ASKED_BEHIND + fell
    )  # those that fell are judged again


def test_what_falls_at_its_warm_start_is_asked_once():
    model = linear(2)
    x, y = amid(model)
    first = measure(model, x, y, threat=SMALL, suite=["margin"])
    one = AttackConfig(name="margin", params={"steps": 1}, samples="nearest", share=0.001, fewest=1)
    again = measure(model, x, y, threat=SMALL, suite=[one], warm=first.nearest)
    assert torch.equal(again.fooled, first.fooled)
    assert_honest(model, x, y, again)
    assert torch.equal(again.prediction, model(again.x_adv).argmax(1))
    assert (
        again.forward_samples == ASKED_BEFORE + len(x) + len(x) + 2 + 1 + 2
    )  # and the one that stands tells if it compares, and if slopes fit
    assert again.backward_samples == 2


def test_what_has_fallen_at_its_warm_start_holds_nothing_back_for_a_last_look():
    model = linear(2)
    x, y = amid(model)
    first = measure(model, x, y, threat=SMALL, suite=["margin"])
    assert first.fooled.sum() > 100
    row = AttackConfig(name="margin", params={"steps": 1}, samples="nearest", share=1.0)
    suite = Suite(name="near", attacks=(row,)).within(3.0)
    again = measure(model, x, y, threat=SMALL, suite=suite, warm=first.nearest)
    left = 3 * len(x) - ASKED_BEFORE - 2 * len(x)
    assert again.backward_samples == left // 3  # there, the slope, and where it leads


@pytest.mark.parametrize(
    ("threat", "soft", "asks"), [(LINF, 0, True), (L2, 0, True), (L2, 16, False), (L1, 0, False)], ids=str
)
def test_no_slope_is_asked_for_at_the_inputs_where_descents_follow_another(hardened, threat, soft, asks, monkeypatch):
    asked = []
    monkeypatch.setattr(cell, "sloped", lambda *of: asked.append(of) or sloped(*of))
    suite = [AttackConfig(name="margin", params={"soft": soft})]
    measure(hardened, *shown(20), threat=threat, suite=suite)
    assert bool(asked) == asks


def test_what_goes_on_in_bursts_is_given_what_one_burst_takes(hardened):
    x, y = shown(40)
    found = measure(hardened, x, y, threat=LINF, suite=SUITES["standard"].within(60.0))
    (scores,) = [attack for attack in found.attacks if attack.name == "square"]  # 5000 queries, 50 of them in a turn
    assert 0 < scores.forward_samples < 5000
    assert found.passes <= 60 * len(x)


@pytest.mark.parametrize(("limit", "of"), [({"passes": 30}, 100), ({"effort": 30}, None)], ids=["passes", "effort"])
def test_a_drawing_without_an_end_of_its_own_goes_on_to_its_limit(limit, of):
    model = linear(2)
    x, y = amid(model, 100)
    row = AttackConfig(name="restarts", params={"starts": "noise", "steps": 4}, samples="drawn", share=0.1)
    found = measure(model, x, y, threat=SMALL, suite=Suite(name="on", attacks=(row,), again=None, **limit))
    (drawn,) = found.attacks
    spent = (drawn.forward_samples + drawn.backward_samples) / (of or int((~found.fooled).sum()))
    assert 0.9 * 30 <= spent <= (1.1 if of else 2) * 30  # samples that fell had their share of the effort as well
    assert found.capped


@pytest.mark.parametrize("suite", ["standard", "warm"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_suite_within_a_limit_ends_there_and_not_far_below(hardened, norm, suite):
    """Not far beyond: a turn is as small as what is left asks."""
    x, y = shown(200)
    threat = ThreatModel(norm=norm, eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    begin = x if suite == "warm" else None
    most, open_ = SUITES[suite].within(30.0), SUITES[suite]
    found, free = (measure(hardened, x, y, threat=threat, suite=s, warm=begin) for s in (most, open_))
    assert found.passes / len(x) <= 30 + 3  # the probe, the confirmation, the last turn
    assert found.passes <= free.passes + 3 * len(x)
    if free.passes / len(x) > 33:
        assert found.capped
        assert found.passes / len(x) >= 27
    assert most.digest != open_.digest


def test_a_warm_start_finds_all_of_it_again_for_a_fifth(hardened, cold):
    x, y = shown(200)
    suite = SUITES["warm"].within(0.195 * passes(cold) / len(x))
    again = measure(hardened, x, y, threat=LINF, suite=suite, warm=cold.nearest)
    assert_honest(hardened, x, y, again)
    assert again.fooled[cold.fooled].all()
    assert passes(again) < passes(cold) / 5


@pytest.mark.parametrize("seed", range(3))
def test_a_warm_start_on_a_slightly_changed_model_is_as_strong_as_a_cold_one_for_a_fifth(hardened, cold, seed):
    x, y = shown(200)
    changed, rng = copy.deepcopy(hardened), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in changed.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=rng)
    afresh = measure(changed, x, y, threat=LINF, seed=seed)
    suite = SUITES["warm"].within(0.195 * passes(afresh) / len(x))
    warm = measure(changed, x, y, threat=LINF, seed=seed, suite=suite, warm=cold.nearest)
    assert_honest(changed, x, y, warm)
    before = inside(x, cold.nearest, LINF)
    assert (warm.fooled | (changed(before).argmax(1) == y)).all()  # what still fools is kept
    assert (changed(before).argmax(1) != hardened(before).argmax(1)).any()
    assert warm.robust_accuracy <= afresh.robust_accuracy
    assert passes(warm) < passes(afresh) / 5
