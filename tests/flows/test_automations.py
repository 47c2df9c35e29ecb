"""What a real Prefect server does by itself with the automations that `redoubt deploy` makes."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flows import automations
from infra.services import prefect_server, running
from tasks.announce import announce, announce_watch
from tests.flows.webhook import listening
from tests.flows.webhook import until as wait_until

pytestmark = [pytest.mark.nightly, pytest.mark.server, pytest.mark.timeout(600)]
SOON = timedelta(seconds=12)  # the shortest that Prefect waits for what does not happen is 10 s
PATIENCE = 120.0


@pytest.fixture(scope="module")
def heard(tmp_path_factory) -> Iterator[list[dict[str, Any]]]:
    """What was posted, on a server whose automations wait for seconds instead of hours."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    service = prefect_server(tmp_path_factory.mktemp("prefect"))
    with pytest.MonkeyPatch.context() as patch, running(service) as server, listening() as (webhook, posted):
        url = f"{server.url}/api"
        patch.setenv("REDOUBT_WEBHOOK_URL", webhook)
        patch.setenv("PREFECT_API_URL", url)
        patch.setattr(automations, "LONG", SOON)
        patch.setattr(automations, "HEARTBEATS", SOON)
        with temporary_settings({PREFECT_API_URL: url}):
            automations.ensure_automations(watch_every=1)
            time.sleep(5)  # until the server acts on them
            yield posted


def until(holds: Callable[[], Any], what: str) -> Any:
    return wait_until(holds, what, PATIENCE)


def test_what_a_person_should_know_is_posted_once_and_nothing_else(heard):
    announce("verdict.pass", "quiet (v1)", version=1, run_id="r", reasons=["all held"])
    assert {"redoubt.evidence.stale", "redoubt.findings.overdue"} < set(automations.TOLD)
    wanted = [event.removeprefix("redoubt.") for event in automations.TOLD]
    for event in wanted:
        announce(event, 'fraud "v2"', version=3, run_id="r", reasons=["one {{ reason }}", "<b>two</b>"])
    told = until(
        lambda: (got := [s for s in heard if s["model"]]) and len(got) >= len(wanted) and got, "all are posted"
    )
    time.sleep(3)
    told = [said for said in heard if said["model"]]
    assert sorted(said["event"] for said in told) == sorted(automations.TOLD)
    expected = {"model": 'fraud "v2"', "version": 3, "run_id": "r", "reasons": ["one {{ reason }}", "<b>two</b>"]}
    assert all(said == expected | {"event": said["event"]} for said in told)


def test_a_watch_that_is_silent_is_told_and_one_that_is_alive_is_not(heard):
    def silences() -> int:
        return sum(said["event"] == "redoubt.watch.silent" for said in heard)

    announce_watch(models=1, measured=0, unmeasured=0)
    until(silences, "its silence is told")
    alive = time.monotonic() + 2.5 * SOON.total_seconds()
    announce_watch(models=1, measured=0, unmeasured=0)
    time.sleep(4)
    before = silences()
    while time.monotonic() < alive:
        announce_watch(models=1, measured=0, unmeasured=0)
        time.sleep(2)
    assert silences() == before
    told = next(said for said in heard if said["event"] == "redoubt.watch.silent")
    assert told["reasons"] == [f"the watch has not come to its end within {SOON}; look for its runs and for the worker"]


def test_a_run_without_a_sign_of_life_is_crashed_and_one_that_has_ended_is_not(heard):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.events import emit_event
    from prefect.states import Completed, Running

    @flow
    def nothing() -> None:
        pass

    with get_client(sync_client=True) as api:
        dead, done = (api.create_flow_run(nothing, state=Running()).id for _ in range(2))
        for run in (dead, done):
            emit_event("prefect.flow-run.heartbeat", resource={"prefect.resource.id": f"prefect.flow-run.{run}"})
        time.sleep(2)
        api.set_flow_run_state(done, Completed())
        state = until(lambda: (s := api.read_flow_run(dead).state) and s.is_final() and s, "it is crashed")
        assert (state.type.value, state.message) == ("CRASHED", f"no sign of life for {SOON}")
        time.sleep(SOON.total_seconds())
        assert api.read_flow_run(done).state.type.value == "COMPLETED"
