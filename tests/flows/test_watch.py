"""What the watch measures, what hardening waits for, and what both leave in the registry. Small, on real stores."""

import pytest

from flows.harden import harden_model
from flows.plans import adopt, digest_of, plan_of
from flows.reattack import reattack_all
from flows.watch import watch
from tasks.plan import last_hardening
from tasks.recall import known_of
from tasks.track import aliases, registered
from tests.flows.registering import register_weak

NAME = "adopted (v2)"  # a name that Redoubt itself would not give
SMALL = ("evaluation.samples=150", "policy.floor=0.7")


def events(monkeypatch) -> list[tuple[str, dict]]:
    """What is announced from here on, as (event, payload); it still goes to the server."""
    from tasks import announce

    heard, emit = [], announce.emit_event

    def hear(event, resource, payload):
        heard.append((event.removeprefix("redoubt."), payload | {"resource": resource["prefect.resource.id"]}))
        return emit(event, resource=resource, payload=payload)

    monkeypatch.setattr(announce, "emit_event", hear)
    return heard


@pytest.mark.server
@pytest.mark.nightly
def test_a_registered_model_is_found_failed_hardened_promoted_and_left_alone(prefect_server, home, monkeypatch):
    heard = events(monkeypatch)
    register_weak(NAME)
    assert watch().unplanned == (NAME,)
    assert [event for event, _ in heard] == ["model.unplanned", "watch.done"]
    adopt(NAME, "two-kinds", SMALL)

    (first,) = watch().measured
    assert (first.name, first.version, first.verdict) == (NAME, 1, "fail")
    fail = dict(heard)["verdict.fail"]
    assert (fail["version"], fail["resource"]) == (1, f"redoubt.model.{NAME}")
    assert aliases(NAME) == {}
    assert watch().measured == ()

    done = harden_model(NAME, fail["version"], reason="a test")
    assert (done.hardened, done.failed, done.version, done.verdict) == (True, 1, 2, "pass")
    assert aliases(NAME) == {"champion": 2}
    assert watch().measured == ()  # what was hardened was measured on its way
    (finding,) = known_of(NAME).findings
    assert (finding.state, finding.closed_at is None) == ("verified", False)

    last = last_hardening(NAME)
    assert (last.outcome, last.run_id, last.plan) == ("pass", done.run_id, digest_of(plan_of(NAME)))
    for version, why in ((1, "neither its champion nor its newest"), (2, "no measurement of version 2 is a fail")):
        again = harden_model(NAME, version)
        assert not again.hardened
        assert why in again.says
    assert [version.number for version in registered(NAME)] == [1, 2]

    heard.clear()
    assert [result.verdict for result in reattack_all()] == ["pass"]
    adopt(NAME, "two-kinds", (*SMALL, "evaluation.suite=warm", "evaluation.warm=true"))
    (other,) = watch().measured  # another suite: the champion is measured anew, the old version 1 is left alone
    assert other.version == 2
    assert watch().measured == ()  # a warm start counts as measured, though its examples grow
    heard.clear()
    adopt(NAME, "two-kinds", (*SMALL, "policy.floor=0.99"))
    (judged,) = watch().measured  # another policy
    assert judged.verdict != "pass"
    assert "posture.regressed" in dict(heard)
    assert dict(heard)["posture.regressed"]["version"] == 2
