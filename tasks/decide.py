"""Turn a report into a verdict, and keep it."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from shlex import quote
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.data import Data
from tasks.errors import WrongInput
from tasks.ledger import advanced, observed
from tasks.metrics import EvaluationConfig, RobustnessReport
from tasks.metrics.replayed import ReplayReport
from tasks.models import StoredModel
from tasks.posture.finding import Finding
from tasks.posture.findings import overdue
from tasks.recall import findings_in
from tasks.redact import veiled
from tasks.track import log_dict, model_facts, set_tags, versions
from tasks.verdicts import Champion, Check, Policy, Verdict, judge


@task(name="decide", task_run_name="decide-{model.stage}-on-{report.split}", cache_policy=NO_CACHE)
@veiled
def decide(
    model: StoredModel,
    report: RobustnessReport,
    policy: Policy,
    *,
    champion: Champion | None = None,
    replays: Sequence[ReplayReport] = (),
    name: str = "",
    version: int | None = None,
    data: Data | None = None,
    tags: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on the report under the policy, kept in the stage's run.

    The champion, the stored examples (replays) and the findings of the registered model `name` are asked about test
    only. version: the model's own; the next one where it is not registered yet. tags: those of the registered model,
    where they were just read.
    """
    if champion is None:
        verdict = judge(report, policy, replays=replays)
    else:
        verdict = judge(report, policy, champion.report, replays=replays, asked=champion.asked)
    if name and data is not None and report.split == "test":
        ledger = findings_in(name, model_facts(name)[1] if tags is None else tags)
        verdict = _with_findings(verdict, ledger, name, version, model, data, report, policy, replays)
    prefix = "" if report.split == "test" else f"{report.split}."
    set_tags(model.run_id, {f"redoubt.{prefix}verdict": verdict.outcome})
    kept: dict[str, Any] = {"verdict": verdict.model_dump(mode="json"), "policy": policy.model_dump(mode="json")}
    kept["champion"] = champion.facts if champion else None
    log_dict(model.run_id, kept, f"{prefix.replace('.', '/')}verdict.json")
    return verdict


def _with_findings(
    verdict: Verdict,
    ledger: Sequence[Finding],
    name: str,
    version: int | None,
    model: StoredModel,
    data: Data,
    report: RobustnessReport,
    policy: Policy,
    replays: Sequence[ReplayReport],
) -> Verdict:
    """The verdict with one check more: no finding that this evaluation leaves open is older than the policy allows."""
    if not ledger:
        return verdict
    number = version or max(versions(name), default=0) + 1
    after = advanced(ledger, observed(name, number, model.run_id, data, report, verdict, policy, replays))
    late = overdue(after, policy.max_finding_days, datetime.now(UTC))
    return Verdict.of((*verdict.checks, overdue_check(late, policy.max_finding_days)))


def overdue_check(late: Sequence[Finding], max_days: float) -> Check:
    """Whether the gate stays open for what was found and not mended in time."""
    if not late:
        return Check(name="findings", outcome="pass", reason=f"no finding is open for more than {max_days:g} days")
    told = ", ".join(f"{one.id} ({one.state}, found {one.found_at[:10]}, {one.label})" for one in late)
    reason = f"open for more than {max_days:g} days: {told}; mend it, or accept it: redoubt findings"
    return Check(name="findings", outcome="fail", reason=f"{reason} {quote(late[0].name)} --accept ID")


def warn_of_few_samples(data: Data, evaluation: EvaluationConfig, policy: Policy, *, champion: bool) -> str | None:
    """Why no model can pass, whatever is trained: too few samples, or a floor of 1; logged as well. None if one can."""
    size = data.sizes["test"]
    n = min(evaluation.samples or size, size)
    try:
        needed = policy.smallest_sample(evaluation.confidence, champion=champion)
    except WrongInput as never:
        warning = f"this policy can never be passed: {never}"
    else:
        if n >= needed:
            return None
        warning = f"{n} test samples will be measured, but this policy needs {needed} to pass; "
        if needed <= size:
            warning += f"set evaluation.samples to {needed} or more"
        else:
            warning += f"the test split holds {size}, so evaluation.samples cannot help: bring data or ask for less"
    logging.getLogger("redoubt").warning(warning)
    return warning
