"""What `redoubt deploy` registers: deployments, their schedules and parameters, and what makes hardening begin."""

import asyncio
import importlib
import inspect
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest

from flows.deployments import ROOT, deploy_all, read_deployments
from flows.harden import harden_model, why_not
from flows.plans import adopt, digest_of, plan_of
from infra.services import prefect_server, running
from tasks.announce import announce
from tasks.plan import Hardening, note_hardening
from tests.flows.test_choosing import NAME, data_of, registry
from tests.flows.webhook import until

AWKWARD = 'fraud "v2" {{ x }}'  # a name that no template may take for its own
REGISTERED = {  # its flow, its parameters, its schedule
    "watch": ("flows/watch.py:watch", {"promote": False}, {"interval": 300}),
    "nightly": ("flows/reattack.py:reattack_all", {"again": True}, {"cron": "0 2 * * *", "timezone": "UTC"}),
    "weekly": (
        "flows/reattack.py:reattack_all",
        {"again": True, "suite": "deep"},
        {"cron": "0 4 * * 6", "timezone": "UTC"},
    ),
    "harden": ("flows/harden.py:harden_model", {"cooldown_hours": 20}, None),
    "evaluate": ("flows/evaluate.py:evaluate_model", {}, None),
}
FAILS = ("verdict.fail", "posture.regressed")
ELSE = ("verdict.pass", "verdict.cannot-tell", "evidence.stale", "findings.overdue", "model.unmeasured", "watch.done")


def deployments() -> dict[str, dict[str, Any]]:
    """What is deployed, by name."""
    return {found["name"]: found for found in read_deployments("theirs", None)["deployments"]}


def test_every_deployment_has_its_flow_its_parameters_and_its_schedule():
    found = deployments()
    told = {
        name: (each["entrypoint"], each.get("parameters", {}), _schedule(each.get("schedules", [])))
        for name, each in found.items()
    }
    assert told == REGISTERED
    assert {each["work_pool"]["name"] for each in found.values()} == {"theirs"}
    assert found["watch"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    for name in ("nightly", "weekly", "harden"):
        assert found[name]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def _schedule(schedules: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The only one without its slug; None where there is none."""
    if not schedules:
        return None
    (only,) = schedules
    return {key: value for key, value in only.items() if key != "slug"}


def test_another_interval_changes_the_watch_alone():
    usual, other = deployments(), read_deployments("theirs", 20)["deployments"]
    changed = [each["name"] for each in other if each != usual[each["name"]]]
    assert changed == ["watch"]
    (watch,) = (each for each in other if each["name"] == "watch")
    assert _schedule(watch["schedules"]) == {"interval": 20}


@pytest.mark.parametrize("name", REGISTERED)
def test_a_flow_is_found_where_its_deployment_says_and_takes_its_parameters(name):
    from prefect import Flow

    one = deployments()[name]
    path, _, function = one["entrypoint"].partition(":")
    assert (ROOT / path).is_file()
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
    assert isinstance(flow, Flow)
    given = one.get("parameters", {}) | {key: None for each in one.get("triggers", []) for key in each["parameters"]}
    known = inspect.signature(flow.fn).parameters
    assert set(given) <= set(known)
    needed = {key for key, each in known.items() if each.default is inspect.Parameter.empty}
    assert needed <= set(given) or name == "evaluate"  # which is told what to do when it is asked


@pytest.mark.parametrize(("name", "day", "hour", "apart"), [("nightly", None, 2, 1), ("weekly", "Saturday", 4, 7)])
def test_night_and_week_come_when_a_calendar_says(name, day, hour, apart):
    from prefect.server.schemas.schedules import CronSchedule

    schedule = CronSchedule(**_schedule(deployments()[name]["schedules"]))
    dates = asyncio.run(schedule.get_dates(n=5, start=datetime(2026, 3, 26, tzinfo=UTC)))  # clocks change in between
    moments = [datetime.fromtimestamp(date.timestamp(), UTC) for date in dates]
    assert {(moment.hour, moment.minute) for moment in moments} == {(hour, 0)}
    assert {after - before for before, after in pairwise(moments)} == {timedelta(days=apart)}
    assert day is None or {f"{moment:%A}" for moment in moments} == {day}


def hardening() -> Any:
    """The automation of the deployment `harden`, as Prefect's server keeps it."""
    from prefect.events import DeploymentTriggerTypes
    from prefect.server.events.schemas.automations import Automation
    from pydantic import TypeAdapter

    (spec,) = deployments()["harden"]["triggers"]
    trigger = TypeAdapter(DeploymentTriggerTypes).validate_python(spec)
    trigger.set_deployment_id(uuid4())
    return Automation.model_validate({"id": uuid4()} | trigger.as_automation().model_dump(mode="json"))


def received(monkeypatch: pytest.MonkeyPatch, event: str, name: str = NAME, **more: Any) -> Any:
    """What announcing leaves with the server."""
    from prefect.server.events.schemas.events import Event

    from tasks import announce as said

    sent = list[Any]()
    with monkeypatch.context() as patch:
        patch.setattr(said, "emit_event", lambda event, **of: sent.append({"event": event} | of))
        announce(event, name, **more)
    (one,) = sent
    return Event.model_validate({"occurred": datetime.now(UTC), "id": uuid4()} | one).receive()


def given(monkeypatch: pytest.MonkeyPatch, event: Any) -> dict[str, Any]:
    """The parameters of the run that the event begins: those of the deployment, and those of the automation."""
    from prefect.server.events.schemas.automations import TriggeredAction

    automation = hardening()
    (action,) = automation.actions
    now = datetime.now(UTC)
    triggered = TriggeredAction(
        automation=automation, triggered=now, triggering_labels={}, triggering_event=event, action=action
    )
    rendered = asyncio.run(action.render_parameters(triggered))
    return deployments()["harden"]["parameters"] | rendered


@pytest.mark.parametrize("event", [*FAILS, *ELSE])
def test_hardening_begins_at_a_fail_and_at_what_was_lost_and_at_nothing_else(event, monkeypatch):
    automation = hardening()
    assert automation.trigger.immediate
    assert automation.enabled
    heard = received(monkeypatch, event, version=1)
    begins = automation.trigger.covers(heard) and automation.trigger.expects(heard.event)
    assert begins == (event in FAILS)


@pytest.mark.parametrize("event", FAILS)
def test_the_run_that_an_event_begins_knows_the_version_the_reasons_and_the_cooldown(event, monkeypatch):
    heard = received(monkeypatch, event, AWKWARD, version=3, reasons=["one {{ reason }}", '"two"'])
    expected = {"name": AWKWARD, "version": 3, "reason": 'one {{ reason }} "two"', "cooldown_hours": 20}
    assert given(monkeypatch, heard) == expected
    assert harden_model.validate_parameters(expected) == expected


@pytest.mark.parametrize(("hours", "waits"), [(1, True), (19.5, True), (20.5, False)])
def test_a_changed_plan_waits_for_the_cooldown_of_the_automation(home, monkeypatch, hours, waits):
    registry("fail")
    tried = plan_of(NAME)
    now = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
    data = data_of("two-kinds").digest
    note_hardening(NAME, Hardening(at=now, plan=digest_of(tried), data=data, run_id="r", outcome="fail"))
    changed = adopt(NAME, "two-kinds", ("hardening.epochs=9",))
    told = given(monkeypatch, received(monkeypatch, "posture.regressed", version=1, reasons=["it was lost"]))
    if not waits:
        assert why_not(told["name"], told["version"], changed, told["cooldown_hours"]) == ""
        return
    result = harden_model.fn(**told)
    assert (result.hardened, result.failed, result.version, result.run_id) == (False, 1, None, "")
    assert f"it was hardened at {now[:16]}; the cooldown is 20 hours" in result.says


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client of a server that was deployed to twice, and that nobody works for."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    service = prefect_server(tmp_path_factory.mktemp("deployed"))
    with pytest.MonkeyPatch.context() as patch, running(service) as server:
        url = f"{server.url}/api"
        patch.setenv("PREFECT_API_URL", url)
        patch.delenv("REDOUBT_WEBHOOK_URL", raising=False)
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as api:
            first, again = deploy_all("theirs"), deploy_all("theirs")
            assert len(first) == len(again)
            yield api


@pytest.mark.nightly
@pytest.mark.server
@pytest.mark.timeout(600)
def test_the_server_keeps_each_deployment_once_as_it_was_written(deployed):
    found = {each.name: each for each in deployed.read_deployments()}
    assert set(found) == set(REGISTERED)
    assert len(deployed.read_deployments()) == len(REGISTERED)
    for name, (entrypoint, parameters, schedule) in REGISTERED.items():
        one = found[name]
        assert (one.entrypoint, one.parameters, one.work_pool_name) == (entrypoint, parameters, "theirs")
        kept = [each.schedule.model_dump(mode="json") for each in one.schedules if each.active]
        wanted = [schedule | ({"interval": 300.0} if "interval" in schedule else {})] if schedule else []
        assert [{key: each[key] for key in want} for each, want in zip(kept, wanted, strict=True)] == wanted


@pytest.mark.nightly
@pytest.mark.server
@pytest.mark.timeout(600)
def test_what_was_lost_makes_the_server_schedule_a_hardening_and_a_pass_does_not(deployed):
    (harden,) = (each.id for each in deployed.read_deployments() if each.name == "harden")
    time.sleep(5)  # until the server acts on its automations
    announce("verdict.pass", "quiet", version=1, reasons=["all held"])
    for event in FAILS:
        announce(event, AWKWARD, version=3, reasons=[f"{event}: one {{{{ reason }}}}", "two"])
    runs = until(lambda: (got := _runs(deployed, harden)) and len(got) == len(FAILS) and got, "they are scheduled", 120)
    time.sleep(3)
    assert len(_runs(deployed, harden)) == len(FAILS)
    reasons = {run.parameters.pop("reason") for run in runs}
    assert reasons == {f"{event}: one {{{{ reason }}}} two" for event in FAILS}
    assert all(run.parameters == {"name": AWKWARD, "version": 3, "cooldown_hours": 20} for run in runs)


def _runs(api: Any, deployment: UUID) -> list[Any]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    return list(api.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))))
