"""What the server does by itself: tell people, notice a watch that died, free the slot of a run that crashed."""

import os
from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, DoNothing
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

BLOCK = "redoubt"  # the Webhook block that notifications go to
TOLD = (
    "redoubt.verdict.fail",
    "redoubt.posture.regressed",
    "redoubt.evidence.stale",
    "redoubt.findings.overdue",
    "redoubt.model.unplanned",
    "redoubt.model.unmeasured",
)
PAYLOAD = (
    '{"event": {{ event.event | tojson }}, "model": {{ event.resource.model_name | tojson }}, '
    '"version": {{ event.payload.version | tojson }}, "run_id": {{ event.payload.run_id | tojson }}, '
    '"reasons": {{ event.payload.reasons | tojson }}}'
)
SILENT = (
    '{"event": "redoubt.watch.silent", "model": null, "version": null, "run_id": "", '
    '"reasons": ["the watch has not come to its end within %s; look for its runs and for the worker"]}'
)
LONG = timedelta(hours=6)  # that a watch may take, at least: it measures whatever it finds
HEARTBEATS = timedelta(minutes=10)  # three times the 180 s after which a run gives a sign of life, and a little more
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")  # after which none is to be expected


def ensure_automations(*, watch_every: int) -> list[str]:
    """Make them, or bring them up to date by name; a line on each."""
    webhook = _webhook()
    wanted = [_silent(webhook, max(LONG, timedelta(seconds=3 * watch_every))), _zombies()]
    if webhook is not None:
        wanted.append(_notify(webhook))
    told = [_ensure(automation) for automation in wanted]
    if webhook is None:
        told.append("no notifications: set REDOUBT_WEBHOOK_URL, or make a Webhook block named redoubt")
    return told


def _webhook() -> Any | None:
    """The id of the block with the URL, written from REDOUBT_WEBHOOK_URL if that is set; None where there is none."""
    url = os.environ.get("REDOUBT_WEBHOOK_URL")
    if url:
        headers: Any = {"Content-Type": "application/json"}
        return Webhook(method="POST", url=url, headers=headers).save(BLOCK, overwrite=True)
    try:
        return Webhook.load(BLOCK)._block_document_id  # type: ignore[union-attr]
    except ValueError:  # there is no such block
        return None


def _notify(webhook: Any) -> Automation:
    return Automation(
        name="redoubt-notify",
        description="Posts what a person should know.",
        trigger=EventTrigger(
            expect=set(TOLD),
            match=ResourceSpecification({"prefect.resource.id": "redoubt.model.*"}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=PAYLOAD)],
    )


def _silent(webhook: Any | None, within: timedelta) -> Automation:
    return Automation(
        name="redoubt-watch-silent",
        description="The watch itself has died.",
        trigger=EventTrigger(
            expect={"redoubt.watch.done"},
            match=ResourceSpecification({"prefect.resource.id": "redoubt.watch"}),
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=SILENT % within) if webhook else DoNothing()],
    )


def _zombies() -> Automation:
    """A run whose process and worker both died says nothing any more; it must not hold its slot for ever."""
    beat = "prefect.flow-run.heartbeat"
    return Automation(
        name="redoubt-crashed-runs",
        description="Crashed runs do not hold their slot.",
        trigger=EventTrigger(
            after={beat},
            expect={beat, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=HEARTBEATS,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no sign of life for {HEARTBEATS}")],
    )


def _ensure(automation: Automation) -> str:
    """Creating one twice makes two, so it is looked up by its name first."""
    try:
        old: Any = Automation.read(name=automation.name)
    except ValueError:
        automation.create()
        return f"automation {automation.name}, made"
    automation.id = old.id
    automation.update()
    return f"automation {automation.name}"
