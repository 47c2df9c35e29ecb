"""Stored examples and findings in the verdict: a necessary test more, never a kinder answer."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tasks.decide import overdue_check
from tasks.metrics import Share
from tasks.metrics.replayed import ReplayReport
from tasks.posture.finding import Observation
from tasks.posture.findings import advance, overdue
from tasks.verdicts import Policy, judge
from tests.verdicts.test_judge import LINF, packed, report, standing, under

__all__ = ["report"]  # the fixture
N = 500
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def replayed(fell: np.ndarray, n: int = N) -> ReplayReport:
    return ReplayReport(
        threat=LINF, corpus="c" * 16, standing=Share.of(int(N - fell.sum()), N), fallen=packed(fell), samples=n
    )


def first(count: int) -> np.ndarray:
    return np.arange(N) < count


@pytest.mark.parametrize(
    ("held", "fell", "outcome"),
    [
        (400, 0, "pass"),  # 80 % held, none of them falls
        (400, 10, "pass"),  # 78 % with the stored examples: still clear of 70 %
        (400, 40, "cannot tell"),  # 72 %: the interval straddles the floor
        (400, 120, "fail"),  # 56 %
        (300, 0, "fail"),  # the fresh attacks alone bring it to 60 %: withstanding old examples mends nothing
    ],
)
def test_the_floor_must_hold_with_the_stored_examples_as_one_more_attack(report, held, fell, outcome):
    verdict = judge(standing(report, first(held)), Policy(floor=0.7), replays=[replayed(first(fell))])
    check = next(check for check in verdict.checks if check.name == "stored examples under L-inf 0.1")
    assert check.outcome == outcome
    assert verdict.outcome == judge(standing(report, first(held - fell)), Policy(floor=0.7)).outcome


def test_examples_that_fool_what_had_fallen_already_change_nothing(report):
    verdict = judge(standing(report, first(400)), Policy(floor=0.7), replays=[replayed(~first(400))])
    assert verdict.outcome == "pass"


def test_a_replay_on_other_samples_decides_nothing(report):
    strange = replayed(first(0)).model_copy(update={"fallen": packed(first(0)[:100]), "samples": 100})
    assert judge(standing(report, first(400)), Policy(floor=0.7), replays=[strange]).outcome == "cannot tell"


def test_a_void_number_is_not_saved_by_its_replay(report):
    void = under(standing(report, first(400)), problems=("an attack raised",))
    verdict = judge(void, Policy(floor=0.7), replays=[replayed(first(0))])
    assert next(c for c in verdict.checks if c.name.startswith("stored")).outcome == "cannot tell"


@pytest.mark.parametrize(("days", "outcome"), [(89, "pass"), (91, "fail")])
def test_a_finding_that_is_open_for_too_long_fails_the_gate(days, outcome):
    seen = Observation(
        name="digits",
        kind="robustness",
        threat="linf_0.1",
        label="L-inf 0.1",
        data="digits",
        version=1,
        run_id="r",
        at=(NOW - timedelta(days=days)).isoformat(),
        fresh="fail",
        sound=True,
        says="too low",
    )
    finding = advance(None, seen)
    check = overdue_check(overdue([finding], 90, NOW), 90)
    assert check.outcome == outcome
    assert (finding.id in check.reason) == (outcome == "fail")
