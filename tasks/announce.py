"""Say what happened, as events that Prefect keeps and that its automations act on.

    event                                       when
    redoubt.verdict.pass | fail | cannot-tell   a run ended with a verdict; more: stage
    redoubt.posture.regressed                   a version that passed does not any more, or a finding came back
    redoubt.evidence.stale                      a live version was measured longer ago than its policy allows
    redoubt.findings.overdue                    a finding is open for longer than the policy allows; more: finding
    redoubt.model.unplanned                     a registered model has neither a plan nor a measurement
    redoubt.model.unmeasured                    a version could not be measured
    redoubt.watch.done                          the watch has looked at every model; more: models, measured, unmeasured

The resource is redoubt.model.NAME with model_name, or redoubt.watch. The payload holds run_id (empty where there is no
run), version (null for the whole model) and reasons (a list of sentences), and what the table names as more.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect.events import emit_event

from tasks.track import model_facts, tag_model

TOLD = "redoubt.told."  # tags of the registered model: the day on which something was said last


def announce(
    event: str,
    name: str,
    *,
    version: int | None = None,
    run_id: str = "",
    reasons: Sequence[str] = (),
    more: dict[str, object] | None = None,
) -> None:
    """Emit the event redoubt.<event> about a registered model."""
    emit_event(
        f"redoubt.{event}",
        resource={"prefect.resource.id": f"redoubt.model.{name}", "model_name": name},
        payload={"run_id": run_id, "version": version, "reasons": list(reasons), **(more or {})},
    )


def announce_daily(
    event: str,
    name: str,
    subject: str = "",
    *,
    version: int | None = None,
    reasons: Sequence[str] = (),
    more: dict[str, object] | None = None,
) -> bool:
    """The same, at most once a day (UTC) for each subject of the model. Whether it was said now."""
    key, today = f"{TOLD}{event}{f'.{subject}' if subject else ''}", datetime.now(UTC).date().isoformat()
    if model_facts(name)[1].get(key) == today:
        return False
    announce(event, name, version=version, reasons=reasons, more=more)
    tag_model(name, {key: today})
    return True


def announce_watch(*, models: int, measured: int, unmeasured: int) -> None:
    """Emit the event that shows that the watch itself is alive."""
    emit_event(
        "redoubt.watch.done",
        resource={"prefect.resource.id": "redoubt.watch"},
        payload={"models": models, "measured": measured, "unmeasured": unmeasured},
    )
