"""Plans: by which a registered model is measured and hardened when nobody asks."""

import logging
from datetime import UTC, datetime
from shlex import quote
from typing import Literal

from flows.asked import like_before, usual
from flows.beforehand import check_parts
from flows.config import EvaluateConfig, PipelineConfig, Plan, parse_evaluation, parse_plan
from flows.recipes import configured
from tasks.data import Data
from tasks.errors import EvidenceBroken, WrongInput
from tasks.parts import vouched
from tasks.plan import WAIVER, Hardening, keep_plan, note_hardening, plan_digest, plan_values
from tasks.recall import known_of
from tasks.track import Version

log = logging.getLogger("redoubt")


def adopt(name: str, like: str, changes: tuple[str, ...] = ()) -> Plan:
    """The plan that the registered model has from now on: a recipe or a YAML file, with changes, under its name.

    Works before a version is registered, and where files and modules of its own are on other machines only. Raises
    WrongInput, also for a short name that is in no table.
    """
    plan = parse_plan(configured(like, changes).model_dump(mode="json") | {"name": name})
    check_parts(plan, here=False)
    keep_plan(name, plan.model_dump(mode="json"))
    return plan


def plan_of(name: str) -> Plan | None:
    """The plan of a registered model; None where it has none.

    Raises EvidenceBroken where it cannot be read, and PartRefused where it names a function that nobody vouches for.
    """
    values = plan_values(name)
    if values is None:
        return None
    vouched(values, f"the plan of {name!r}")
    try:
        plan = parse_plan(values)
    except WrongInput as error:
        raise EvidenceBroken(f"the plan of {name!r} cannot be used; adopt it anew. {error}") from error
    if plan.name != name:
        raise EvidenceBroken(f"the plan of {name!r} is that of {plan.name!r}. Adopt it anew.")
    return plan


def check_hardening(name: str, version: int | None) -> None:
    """Raise WrongInput for a model or a version that is not registered, and for a model without a plan."""
    known = known_of(name)
    if version is not None:
        known.version(version)
    if plan_of(name) is None:
        write = f"redoubt adopt {quote(name)} --like RECIPE"
        raise WrongInput(f"{name!r} has no plan, so nobody has said how to harden it. Write: {write}")


def remember(config: PipelineConfig, outcome: str = "") -> None:
    """Make the config of a run the plan of its model, where the registry can hold it; what it waived was for once.

    A plan that the model has gives way only where the outcome of the run is a pass: others may have been trials.
    """
    values = config.model_dump(mode="json")
    try:
        before = plan_values(config.name)
        known = None if before is None else parse_plan(before).model_dump(mode="json")
    except (EvidenceBroken, WrongInput) as error:
        log.warning("the plan of %s cannot be read (%s); it is this run's config from now on", config.name, error)
        known = None
    values["policy"][WAIVER] = bool(known and known["policy"][WAIVER])  # which somebody has adopted
    changed = [] if known is None else [key for key in values if known[key] != values[key]]
    told = ", ".join(changed)
    if changed and outcome != "pass":
        if outcome:
            says = "the plan of %s stays, since this run did not pass; its config differs in: %s. To plan by it: "
            log.warning(f"{says}redoubt adopt %s --like FILE", config.name, told, quote(config.name))
        return
    if changed:
        log.warning("the plan of %s is this run's config from now on; changed: %s", config.name, told)
    try:
        keep_plan(config.name, values)
    except WrongInput as error:
        log.warning("%s will not be hardened by itself: %s", config.name, error)


def note(
    config: PipelineConfig, data: Data, run_id: str, outcome: Literal["started", "pass", "fail", "cannot tell"]
) -> None:
    """Write down that the model was hardened under this config, so that the same is not tried again by itself."""
    now = datetime.now(UTC).isoformat()
    try_ = Hardening(at=now, plan=digest_of(config), data=data.digest, run_id=run_id, outcome=outcome)
    note_hardening(config.name, try_)


def digest_of(config: PipelineConfig) -> str:
    """Of the config, and of the suite that it names as it is now."""
    return plan_digest(config.model_dump(mode="json"), config.evaluation.resolved_suite().digest)


def how(version: Version, plan: Plan | None, *, suite: str | None = None) -> EvaluateConfig | None:
    """How a version is measured when nobody asks: by the plan of its model, else as usual; None where nobody knows.

    suite: another one.
    """
    if plan is not None:
        values = plan.as_evaluation(version.number).model_dump(mode="json")
        if suite:
            values["evaluation"] = values["evaluation"] | {"suite": suite}
        return parse_evaluation(values)
    record = usual(version)
    return like_before(version, suite=suite, run_id=record.run_id) if record else None
