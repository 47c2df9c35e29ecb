"""What a ledger of findings may say after the newest evidence: what people decide, and nothing else."""

from datetime import UTC, datetime

import pytest

from tasks.posture.finding import Observation
from tasks.posture.findings import accept, advance, crowned, reopen
from tasks.posture.standing import decisions, departures, facts_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def seen(version: int, fresh: str, **facts: object) -> Observation:
    of = {"name": "digits", "kind": "robustness", "threat": "linf_0.1", "label": "L-inf 0.1", "data": "digits"}
    of |= {"run_id": f"run-{version}", "at": f"2026-02-0{version}T00:00:00+00:00", "sound": True, "says": "too low"}
    return Observation.model_validate(of | {"version": version, "fresh": fresh} | facts)


OPEN = advance(None, seen(1, "fail"))
VERIFIED = advance(OPEN, seen(2, "pass"))


def test_the_ledger_as_it_was_written_departs_in_nothing():
    for finding in (OPEN, VERIFIED):
        assert list(departures({finding.id: facts_of(finding)}, [finding])) == []


def test_a_finding_that_is_gone_or_new_is_named():
    (gone,) = departures({OPEN.id: facts_of(OPEN)}, [])
    assert gone == f"finding {OPEN.id} is gone, the newest evidence knows it as open."
    (new,) = departures({}, [OPEN])
    assert "is in no evidence" in new


@pytest.mark.parametrize(
    "changed",
    [
        {"says": "fine"},
        {"floor": 0.5},
        {"first_version": 1, "last_version": 9},
        {"found_at": "2026-02-28T00:00:00+00:00"},
    ],
)
def test_what_only_an_evaluation_may_change_is_held_by_its_digest(changed):
    (said,) = departures({OPEN.id: facts_of(OPEN)}, [OPEN.model_copy(update=changed)])
    assert "it was changed" in said


def test_a_state_that_only_an_evaluation_can_give_is_not_taken_from_a_tag():
    mended = {
        name: getattr(VERIFIED, name) for name in ("state", "verified_version", "verified_at", "fresh", "history")
    }
    (said,) = departures({OPEN.id: facts_of(OPEN)}, [OPEN.model_copy(update=mended)])
    assert "is verified, but open in the newest evidence" in said
    (said,) = departures({VERIFIED.id: facts_of(VERIFIED)}, [VERIFIED.model_copy(update={"state": "open"})])
    assert "is open, but verified" in said  # by no line of its history


def test_what_people_decide_departs_in_nothing_and_is_told():
    accepted = accept(OPEN, owner="the team", expires="2026-04-01", reason="known", at=NOW)
    reopened = reopen(VERIFIED, reason="doubtful", at=NOW)
    for before, after, by in ((OPEN, accepted, " by the team"), (VERIFIED, reopened, "")):
        recorded = {before.id: facts_of(before)}
        assert list(departures(recorded, [after])) == []
        (told,) = decisions(recorded, [after])
        assert told == f"finding {before.id} is {after.state} by hand{by}, {before.state} in the newest evidence"
    crown = crowned(VERIFIED, 2, NOW)
    assert crown.closed_at is not None
    assert list(departures({VERIFIED.id: facts_of(VERIFIED)}, [crown])) == []
