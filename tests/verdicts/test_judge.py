import base64
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.attacks import ThreatModel
from tasks.errors import WrongInput
from tasks.metrics import AttackRow, EvaluationConfig, PairReport, RobustnessReport, Share, Sign, Soundness, evaluate
from tasks.verdicts import Asked, Policy, judge

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LINF, L2 = ThreatModel(norm="linf", eps=0.1), ThreatModel(norm="l2", eps=0.1)
NAN = Share.model_construct(value=math.nan, lo=math.nan, hi=math.nan, n=500)


def sign(state="ok", kind="masking", **more) -> Sign:
    return Sign(name="a sign", kind=kind, state=state, says=f"what the {kind} sign says.", **more)


def sound(*signs: Sign) -> Soundness:
    return Soundness(signs=signs or (sign(), sign(kind="measurement")), passes=10, share=0.01)


def unflipped(n: int = 200) -> PairReport:
    return PairReport(source=0, target=1, n=n, flipped=Share.of(0, n))


def packed(flags: np.ndarray) -> str:
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def under(report: RobustnessReport, place: int = 0, **changes) -> RobustnessReport:
    """The report with these changes under one threat model."""
    threats = list(report.threats)
    threats[place] = threats[place].model_copy(update=changes)
    return report.model_copy(update={"threats": tuple(threats)})


def standing(report: RobustnessReport, held: np.ndarray) -> RobustnessReport:
    """The report with exactly these samples standing, under every threat model."""
    for place in range(len(report.threats)):
        report = under(report, place, standing=packed(held), robust=Share.of(int(held.sum()), len(held)))
    return report


def correct(report: RobustnessReport, right: np.ndarray) -> RobustnessReport:
    """The report with exactly these samples right as they are."""
    return report.model_copy(update={"correct": packed(right), "clean": Share.of(int(right.sum()), len(right))})


@pytest.fixture(scope="module")
def report() -> RobustnessReport:
    """Clean 1.0, robust near 0.8: a threshold at 0.5 on uniform data, eps 0.1, sound, a critical pair unflipped."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0]]))
        model.bias.copy_(torch.tensor([0.0, -5.0]))
    x = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    config = EvaluationConfig(threats=(LINF, L2), suite="quick")
    measured, _ = evaluate(model, x, (x[:, 0] > 0.5).long(), config)
    for place in range(2):
        measured = under(measured, place, soundness=sound(), pairs=(unflipped(),))
    return measured.model_copy(update={"measured_at": NOW.isoformat()})


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (Policy(floor=0.7), "pass"),
        (Policy(floor=0.9), "fail"),
        (Policy(floor=0.8), "cannot tell"),
        (Policy(floor=0.7, clean_floor=1.0), "cannot tell"),
        (Policy(floor=0.7, min_samples=501), "cannot tell"),
        (Policy(floor=0.7, clean_floor=0.99, min_samples=1), "pass"),
        (Policy(floor=0.7, clean_floor=0.995, min_samples=1), "cannot tell"),  # takes 765 samples
        (Policy(floor=0.9, floors={"linf_0.1": 0.7, "l2_0.1": 0.7}), "pass"),
        (Policy(floor=0.7, floors={"linf_0.1": 0.9}), "fail"),
        (Policy(floor=0.7, floors={"l2_9": 0.7}), "cannot tell"),
    ],
)
def test_a_floor_is_held_against_the_interval(report, policy, outcome):
    verdict = judge(report, policy)
    assert verdict.outcome == outcome
    assert verdict.reasons


def test_the_smallest_sample_answers_for_every_floor_and_with_a_champion_for_every_tolerance():
    assert Policy(floor=0.5, clean_floor=0.8, min_samples=1).smallest_sample(champion=False) == 16
    assert Policy(floor=0.5, clean_floor=0.8, min_samples=50).smallest_sample(champion=False) == 50
    assert Policy(floors={"linf_0.1": 0.95}, min_samples=1).smallest_sample(champion=False) == 73
    assert Policy(min_samples=1, tolerance=0.05, clean_budget=0.02).smallest_sample() == 81
    assert Policy(min_samples=1, tolerance=0.01, clean_budget=0.02).smallest_sample(0.99) > 200
    with pytest.raises(WrongInput, match="floor of 1"):
        Policy(clean_floor=1.0).smallest_sample()


def test_only_attacks_that_spent_something_are_said_to_have_run(report):
    first, *rest = report.threats[0].attacks
    idle = first.model_copy(update={"name": "idle", "tried": 500, "forward_samples": 0, "backward_samples": 0})

    def said(*attacks: AttackRow) -> tuple[str, str]:
        verdict = judge(under(report, attacks=attacks), Policy(floor=0.5))
        check = next(check for check in verdict.checks if check.name == f"attacks under {LINF}")
        return check.outcome, check.reason

    outcome, reason = said(idle, first, *rest)
    assert outcome == "pass"
    assert first.name in reason
    assert "idle" not in reason
    assert said(idle) == ("cannot tell", f"no attack tried a sample under {LINF}")


# --- against the champion


def flipped(flags: np.ndarray, places: np.ndarray) -> np.ndarray:
    changed = flags.copy()
    changed[places] = ~changed[places]
    return changed


def test_a_model_worse_than_the_champion_does_not_pass(report):
    held = report.threats[0].held()
    better = standing(report, flipped(held, (~held).nonzero()[0][:60]))  # the champion held 60 more, 12 points
    policy = Policy(floor=0.5, tolerance=0.03)
    assert judge(report, policy, report, NOW).outcome == "pass"
    worse = judge(report, policy, better, NOW)
    assert worse.outcome == "fail"
    assert "60 samples lost, 0 gained, loss +12.0%" in worse.reasons[0]
    assert "McNemar's p 1.7e-18" in worse.reasons[0]
    assert judge(better, policy, report, NOW).outcome == "pass"


def test_the_champion_s_own_weights_are_no_worse_on_however_few_samples(report):
    policy = Policy(floor=0.0, clean_floor=0.0, min_samples=1, tolerance=0.001, clean_budget=0.001)
    assert judge(report, policy, report, NOW).outcome == "cannot tell"  # 500 samples do not exclude a loss of 0.1 %
    known = report.model_copy(update={"weights_digest": "a" * 16, "model_code": "b" * 16})
    assert judge(known, policy, known, NOW).outcome == "pass"
    for other in ({"weights_digest": "c" * 16}, {"model_code": "c" * 16}):
        assert judge(known.model_copy(update=other), policy, known, NOW).outcome == "cannot tell"
    held = known.threats[0].held()
    lost = standing(known, flipped(held, held.nonzero()[0][:1]))
    assert judge(lost, policy, known, NOW).outcome != "pass"


def test_a_pass_answers_all_that_the_champion_passed_under(report):
    policy = Policy(floor=0.5)
    asked = Asked.of([report])
    assert asked.threats == (LINF, L2)

    def outcome(passed: Asked, policy: Policy = policy, report: RobustnessReport = report) -> tuple[str, str]:
        verdict = judge(report, policy, report, NOW, asked=passed)
        return verdict.outcome, verdict.reasons[0]

    assert outcome(asked)[0] == "pass"
    assert outcome(Asked(threats=(ThreatModel(norm="linf", eps=0.05),)))[0] == "pass"
    for wider in (ThreatModel(norm="linf", eps=0.2), ThreatModel(norm="l1", eps=0.1)):
        said = f"the champion passed under {wider}, which was not asked here"
        found, reason = outcome(Asked(threats=(LINF, wider)))
        assert found == "cannot tell"
        assert said in reason
        assert outcome(Asked(threats=(LINF, wider)), Policy(floor=0.5, may_ask_less=True))[0] == "pass"
    assert outcome(Asked(critical_pairs=((1, 0),)))[0] == "cannot tell"
    assert outcome(Asked(critical_pairs=((0, 1),)))[0] == "pass"  # which the report holds
    assert "what the champion was asked cannot be read (run 7f); restore it" in outcome(Asked(unreadable="run 7f"))[1]


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"), [(0, 0, "pass"), (2, 0, "pass"), (9, 0, "cannot tell"), (20, 0, "fail")]
)
def test_clean_accuracy_has_a_budget_against_the_champion(report, lost, gained, outcome):
    right = report.correct_samples()
    assert right.all()
    now = correct(report, flipped(right, np.arange(lost)))
    verdict = judge(now, Policy(floor=0.5, clean_budget=0.02), report, NOW)
    assert verdict.outcome == outcome
    assert any(f"against the champion, clean accuracy: {lost} samples lost" in check.reason for check in verdict.checks)


DIFFERENT = {
    "data": {"data_digest": "x"},
    "seed": {"seed": 9},
    "number of seeds": {"seeds": 3},
    "split": {"split": "select"},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_champion_measured_otherwise_is_not_compared(report, what):
    verdict = judge(report, Policy(floor=0.5), report.model_copy(update=DIFFERENT[what]), NOW)
    assert verdict.outcome == "cannot tell"
    assert f"another {what}; measure it again" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("measured_at", "outcome", "said"),
    [
        (NOW.isoformat(), "pass", ""),
        ("2026-01-31T12:00:00Z", "pass", ""),
        ((NOW - timedelta(days=29)).isoformat(), "pass", ""),
        ((NOW - timedelta(days=40)).isoformat(), "cannot tell", "measured 40 days ago, the policy allows 30; measure"),
        ((NOW + timedelta(hours=3)).isoformat(), "pass", ""),
        ((NOW + timedelta(days=2)).isoformat(), "cannot tell", "in the future"),
        ("last week", "cannot tell", "does not say when it was measured ('last week'); measure it again"),
        ("", "cannot tell", "does not say when"),
        ("2026-01-31T12:00:00", "cannot tell", "no time zone"),
    ],
)
def test_a_champion_s_evidence_grows_stale(report, measured_at, outcome, said):
    champion = report.model_copy(update={"measured_at": measured_at})
    verdict = judge(report, Policy(floor=0.5, max_age_days=30), champion, NOW)
    assert verdict.outcome == outcome
    assert said in verdict.reasons[0]


def test_the_report_itself_was_measured_just_now_and_that_alone_differs_from_the_champion_s(report):
    fresh = report.model_copy(update={"measured_at": datetime.now(UTC).isoformat()})
    assert judge(fresh, Policy(floor=0.5), fresh).outcome == "pass"  # by the clock
    assert fresh.comparable_with(report) is None


# --- soundness


def test_a_sound_number_says_what_was_checked(report):
    answered = sound(sign(), sign(), sign(first="alarm", answer="more restarts"), sign("not run"))
    reasons = judge(under(report, soundness=answered), Policy(floor=0.7)).reasons
    assert "3 signs were checked; 1 fired and was answered under L-inf 0.1" in reasons
    assert "2 signs were checked; none fired under L2 0.1" in reasons


@pytest.mark.parametrize("kind", ["masking", "failure", "convergence"])
def test_an_alarm_about_the_search_forbids_a_pass_and_leaves_a_fail(report, kind):
    doubted = under(report, soundness=sound(sign("alarm", kind), sign()))
    verdict = judge(doubted, Policy(floor=0.7))
    assert verdict.outcome == "cannot tell"
    assert f"robust accuracy under L-inf 0.1 is not sound: what the {kind} sign says" in verdict.reasons
    assert judge(doubted, Policy(floor=0.9)).outcome == "fail"  # every success was measured again


def test_an_alarm_about_the_measurement_leaves_neither_pass_nor_fail(report):
    mistaken = under(report, soundness=sound(sign("alarm", "measurement")))
    for policy in (Policy(floor=0.7), Policy(floor=0.9), Policy(floor=0.9, clean_floor=0.99)):
        for low in (mistaken, correct(mistaken, np.arange(500) < 100)):
            verdict = judge(low, policy, report, NOW)
            assert verdict.outcome == "cannot tell"
            assert not any(check.outcome == "fail" for check in verdict.checks)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"problems": ("pgd: raised",)}, "pgd: raised"),
        ({"soundness": None}, "its soundness was not checked"),
        ({"soundness": sound(sign("not run"))}, "its soundness was not checked"),
    ],
)
def test_a_broken_or_unchecked_evaluation_decides_nothing_under_its_threat_model(report, changes, said):
    verdict = judge(under(report, **changes), Policy(floor=0.7, floors={"linf_0.1": 0.9}))
    assert verdict.outcome == "cannot tell"
    assert any(said in reason for reason in verdict.reasons)
    assert judge(under(report, **changes), Policy(floor=0.9)).outcome == "fail"  # under L2, which is sound


def test_without_a_champion_that_is_sound_nothing_is_compared(report):
    champion = under(report, soundness=sound(sign("alarm")))
    (reason,) = judge(report, Policy(floor=0.5), champion, NOW).reasons
    assert reason.startswith("the champion's robust accuracy under L-inf 0.1 is not sound")
    assert reason.endswith("measure it again before comparing")


# --- critical pairs


@pytest.mark.parametrize(
    ("pair", "outcome", "said"),
    [
        (unflipped(200), "pass", "none of 200 samples flipped, at most 1.9% would"),
        (unflipped(50), "cannot tell", "asks for at most 5.0%, so these are too few samples"),
        (
            PairReport(source=0, target=1, n=200, flipped=Share.of(2, 200), rows=(3, 8)),
            "fail",
            "class 0 taken for 1 under L-inf 0.1: 2 of 200 samples flipped, at places 3, 8; none may",
        ),
        (PairReport(source=0, target=1, n=0, flipped=None), "cannot tell", "no sample of the class was right"),
        (
            PairReport(source=0, target=1, n=200, flipped=Share.of(2, 200), rows=(3, 8), problems=("pgd: raised",)),
            "cannot tell",
            "not measured (pgd: raised)",
        ),
    ],
)
def test_no_sample_of_a_critical_pair_may_flip(report, pair, outcome, said):
    verdict = judge(under(report, pairs=(pair,)), Policy(floor=0.7))
    assert verdict.outcome == outcome
    assert any(said in reason for reason in verdict.reasons)


def test_a_pair_is_measured_under_every_threat_model_or_the_verdict_is_open(report):
    verdict = judge(under(report, pairs=()), Policy(floor=0.7))
    assert verdict.reasons == ("under L-inf 0.1 class 0 taken for 1 was not measured",)


def test_a_flip_stays_one_though_gradients_are_masked(report):
    pair = PairReport(source=0, target=1, n=200, flipped=Share.of(1, 200), rows=(3,))
    masked = under(report, pairs=(pair,), soundness=sound(sign("alarm")))
    assert judge(masked, Policy(floor=0.7)).outcome == "fail"
    assert judge(under(report, soundness=sound(sign("alarm"))), Policy(floor=0.7)).outcome == "cannot tell"


# --- whatever is wrong, it does not pass


@dataclass(frozen=True)
class Case:
    report: RobustnessReport
    policy: Policy
    champion: RobustnessReport


def measured(change: Callable[[RobustnessReport], RobustnessReport]) -> Callable[[Case], Case]:
    return lambda case: replace(case, report=change(case.report))


def champion(change: Callable[[RobustnessReport], RobustnessReport]) -> Callable[[Case], Case]:
    return lambda case: replace(case, champion=change(case.champion))


def demanded(**changes) -> Callable[[Case], Case]:
    return lambda case: replace(case, policy=case.policy.model_copy(update=changes))


def now_of(**changes) -> Callable[[Case], Case]:
    return measured(lambda report: under(report, **changes))


def then_of(**changes) -> Callable[[Case], Case]:
    return champion(lambda report: under(report, **changes))


def crashed(report: RobustnessReport) -> RobustnessReport:
    row = AttackRow(
        name="pgd",
        tried=500,
        fooled=0,
        robust=Share.of(0, 500),
        forward_samples=0,
        backward_samples=0,
        seconds=0.0,
        error="raised RuntimeError",
    )
    return under(report, attacks=(*report.threats[0].attacks, row))


def dated(at: str) -> Callable[[Case], Case]:
    return champion(lambda report: report.model_copy(update={"measured_at": at}))


VOID = {  # the number under the first threat model means nothing
    "not a number": now_of(robust=NAN),
    "problem": now_of(problems=("pgd: raised",)),
    "attack error": measured(crashed),
    "not checked": now_of(soundness=None),
    "no sign looked at": now_of(soundness=sound(sign("not run"), sign("not applicable"))),
    "samples cut short": now_of(standing="AAAA"),
    "samples unreadable": now_of(standing="?"),
    "samples that disagree": now_of(standing=packed(np.zeros(500, dtype=bool)), robust=Share.of(1, 500)),
}
WHOLLY_VOID = {  # so does every number of the report
    "mistaken measurement": now_of(soundness=sound(sign("alarm", "measurement"))),
    "clean accuracy not a number": measured(lambda report: report.model_copy(update={"clean": NAN})),
    "logits not finite": now_of(problems=("clean: 3 samples have logits that are not finite",)),
    "clean samples missing": measured(lambda report: report.model_copy(update={"correct": ""})),
}
TOO_KIND = {
    "masking": now_of(soundness=sound(sign("alarm"))),
    "failure": now_of(soundness=sound(sign("alarm", "failure"))),
    "convergence": now_of(soundness=sound(sign("alarm", "convergence"))),
    "no attack": now_of(attacks=()),
}
OTHERS = {
    "threat model not measured": demanded(floors={"l2_9": 0.0}),
    "few samples": demanded(min_samples=501),
    "floor of 1": demanded(floors={"linf_0.1": 1.0}),
    "flipped pair": now_of(pairs=(PairReport(source=0, target=1, n=90, flipped=Share.of(1, 90), rows=(7,)),)),
    "pair without samples": now_of(pairs=(PairReport(source=0, target=1, n=0, flipped=None),)),
    "pair with a problem": now_of(pairs=(unflipped().model_copy(update={"problems": ("pgd: raised",)}),)),
    "pair not a number": now_of(pairs=(unflipped().model_copy(update={"flipped": NAN}),)),
    "pair that contradicts itself": now_of(pairs=(unflipped().model_copy(update={"rows": (3,)}),)),
    "pair under one threat model only": now_of(pairs=()),
    "worse than the champion": measured(lambda report: standing(report, np.arange(500) < 100)),
    "clean accuracy lost": measured(lambda report: correct(report, np.arange(500) < 400)),
    "stale champion": dated((NOW - timedelta(days=101)).isoformat()),
    "champion of the future": dated((NOW + timedelta(days=2)).isoformat()),
    "champion without a date": dated(""),
    "champion with an unreadable date": dated("yesterday"),
    "champion without a time zone": dated("2026-01-31T12:00:00"),
    "champion not a number": then_of(robust=NAN),
    "champion with a problem": then_of(problems=("pgd: raised",)),
    "champion masked": then_of(soundness=sound(sign("alarm"))),
    "champion mistaken": then_of(soundness=sound(sign("alarm", "measurement"))),
    "champion not checked": then_of(soundness=None),
    "champion without clean samples": champion(lambda report: report.model_copy(update={"correct": ""})),
    "champion without samples": then_of(standing=""),
    "unequal suite": then_of(suite_digest="other"),
    "unequal threat model": then_of(threat=ThreatModel(norm="linf", eps=0.2)),
    "champion under fewer threat models": champion(
        lambda report: report.model_copy(update={"threats": report.threats[:1]})
    ),
    "champion on fewer samples": champion(
        lambda report: correct(standing(report, np.ones(400, dtype=bool)), np.ones(400, dtype=bool))
    ),
    **{
        f"unequal {what}": champion(lambda report, changes=changes: report.model_copy(update=changes))
        for what, changes in DIFFERENT.items()
    },
}
FAULTS = VOID | WHOLLY_VOID | TOO_KIND | OTHERS
LENIENT = Policy(floor=0.0, clean_floor=0.0, tolerance=0.2, clean_budget=0.1, min_samples=1)
share = st.floats(0, 1)
POLICIES = st.builds(
    Policy,
    floor=share,
    floors=st.dictionaries(st.sampled_from(["linf_0.1", "l2_0.1"]), share),
    clean_floor=share,
    tolerance=st.floats(0, 0.5),
    clean_budget=st.floats(0, 0.1),
    pair_ceiling=share,
    max_age_days=st.floats(0.1, 100),
    min_samples=st.integers(1, 600),
)


def verdict(case: Case):
    return judge(case.report, case.policy, case.champion, NOW)


def broken(case: Case, faults) -> Case:
    for fault in faults:
        case = FAULTS[fault](case)
    return case


def test_the_sound_report_passes_so_that_what_follows_says_something(report):
    found = verdict(Case(report, LENIENT, report))
    assert found.outcome == "pass"
    assert all(check.outcome == "pass" for check in found.checks)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_forbids_a_pass(report, fault):
    assert verdict(broken(Case(report, LENIENT, report), [fault])).outcome != "pass"


@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=5, unique=True), POLICIES | st.just(LENIENT))
@settings(max_examples=400, deadline=None)
def test_no_combination_of_faults_ever_passes(report, faults, policy):
    case = broken(Case(report, policy, report), faults)
    assert verdict(case).outcome != "pass"


@given(
    st.sampled_from(sorted(WHOLLY_VOID)),
    st.lists(st.sampled_from(sorted(FAULTS)), max_size=4, unique=True),
    POLICIES,
    st.integers(0, 500),
    st.integers(0, 500),
)
@settings(max_examples=300, deadline=None)
def test_no_number_of_a_void_report_is_a_fail(report, fault, others, policy, right, held):
    low = standing(correct(report, np.arange(500) < right), np.arange(500) < held)
    found = verdict(broken(Case(low, policy, report), [*others, fault]))
    assert found.outcome == "cannot tell"
    assert not any(check.outcome == "fail" for check in found.checks)


@given(
    st.sampled_from(sorted(VOID)),
    st.lists(st.sampled_from(sorted(FAULTS)), max_size=4, unique=True),
    POLICIES,
    st.integers(0, 500),
)
@settings(max_examples=300, deadline=None)
def test_a_void_number_is_neither_a_pass_nor_a_fail(report, fault, others, policy, held):
    low = standing(report, np.arange(500) < held)
    found = verdict(broken(Case(low, policy, report), [*others, fault]))
    about = [c for c in found.checks if "L-inf 0.1" in c.name and not c.name.startswith(("attacks", "soundness"))]
    assert about
    assert {check.outcome for check in about} == {"cannot tell"}


@given(POLICIES, st.integers(0, 500), st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_a_pass_always_rests_on_every_interval(report, policy, right, held):
    held = np.arange(500) < min(right, held)
    made = standing(correct(report, np.arange(500) < right), held)
    if judge(made, policy).outcome == "pass":
        assert made.clean.lo >= policy.clean_floor
        assert all(t.robust.lo >= policy.floors.get(t.threat.name, policy.floor) for t in made.threats)
