"""Harden a registered model by its plan: when one of its versions failed, by hand or by itself."""

import logging
from datetime import UTC, datetime
from shlex import quote

from prefect import flow
from pydantic import BaseModel, Field

from flows.beforehand import check_fit, check_parts
from flows.champion import champion_of
from flows.config import Plan
from flows.pipeline import examine, harden
from flows.plans import digest_of, note, plan_of
from flows.whole import whole
from tasks.candidates import stages_of
from tasks.data import describe, load
from tasks.evaluate import warm_start
from tasks.evidence import Story
from tasks.plan import last_hardening, why_wait
from tasks.publish import publish
from tasks.redact import veiled
from tasks.track import aliases, open_run, registered
from tasks.train import release
from tasks.validate import validate_data


class Hardened(BaseModel, frozen=True, extra="forbid"):
    """What came of it."""

    name: str = Field(description="of the registered model")
    failed: int | None = Field(description="the version that failed; none where the model has none")
    hardened: bool = Field(description="false where it was skipped")
    version: int | None = Field(None, description="that the hardened model became")
    verdict: str = Field("", description="on it: pass, fail or cannot tell; empty where it was skipped")
    run_id: str = ""
    says: str = Field(description="a whole sentence: what came of it, or why it was skipped")


@flow(name="redoubt-harden", description="A model whose version failed: harden it by its plan, attack it, promote it.")
@veiled
def harden_model(name: str, version: int | None = None, reason: str = "", cooldown_hours: float = 24.0) -> Hardened:
    """Train a hardened version by the model's plan, attack it, and make it champion if it passes.

    version: the one that failed; the newest if none. reason: for people. Nothing is trained without a plan, for a
    version that is neither champion nor newest, within cooldown_hours of the last try, nor where this very plan was
    tried on this very data before.
    """
    known = registered(name)
    failed = version or (known[-1].number if known else None)
    plan = plan_of(name)
    why = why_not(name, failed, plan, cooldown_hours)
    if why or plan is None:
        says = f"{name!r} was not hardened: {why}"
        logging.getLogger("redoubt").info(says, extra={"result": True})
        return Hardened(name=name, failed=failed, hardened=False, says=says)
    story = _hardened(plan, failed, reason)
    says = (
        f"{name!r} was hardened: version {story.version} {'passes' if story.verdict.outcome == 'pass' else 'does not'}"
    )
    return Hardened(
        name=name,
        failed=failed,
        hardened=True,
        version=story.version,
        verdict=story.verdict.outcome,
        run_id=story.run_id,
        says=f"{says}. {story.verdict.reasons[0]}",
    )


def why_not(name: str, failed: int | None, plan: Plan | None, cooldown_hours: float) -> str:
    """Why the model is not hardened now, as a sentence; empty where it is."""
    known = {version.number: version for version in registered(name)}
    if failed not in known:
        return f"it has no version {failed}." if failed else "no version of it is registered."
    if plan is None:
        return f"nobody has said how. Write: redoubt adopt {quote(name)} --like RECIPE"
    if plan.policy.max_rounds == 0:
        return "its plan allows no round of hardening. Change it: --set policy.max_rounds=2"
    if failed not in (max(known), aliases(name).get("champion")):
        return f"version {failed} is neither its champion nor its newest."
    verdicts = {record.verdict for record in known[failed].records()}
    if "fail" not in verdicts:
        return f"no measurement of version {failed} is a fail; it has: {', '.join(sorted(verdicts)) or 'none'}."
    data = describe(plan.dataset, load(plan.dataset))
    now, digest = datetime.now(UTC), digest_of(plan)
    return why_wait(last_hardening(name), plan=digest, data=data.digest, now=now, cooldown_hours=cooldown_hours)


def _hardened(plan: Plan, failed: int | None, reason: str) -> Story:
    """The story of hardening by the plan."""
    asked = plan.model_dump(mode="json") | {"hardening_of": {"version": failed, "reason": reason}}
    check_parts(plan)
    with open_run(plan.name, asked) as run_id:
        data = validate_data(plan.dataset, plan.contract, run_id=run_id)
        check_fit(plan, data)
        start = warm_start(plan.name, data, plan.evaluation)
        note(plan, data, run_id, "started")
        champion = champion_of(plan, data, start, run_id=run_id)
        model, rounds = harden(data, plan, run_id=run_id)
        chapter = examine(model, data, plan, champion, start, run_id=run_id)
        note(plan, data, run_id, chapter.verdict.outcome)
        story = publish(plan.name, run_id, data, plan.policy, whole([chapter]), whole(rounds))
        release(data, stages_of(plan.hardening, plan.policy))
        return story
