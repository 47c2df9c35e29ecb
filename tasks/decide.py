"""Turn a report into a verdict, and keep it."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.metrics import RobustnessReport
from tasks.models import StoredModel
from tasks.track import log_dict, set_tags
from tasks.verdicts import Policy, Verdict, judge


@task(name="decide", task_run_name="decide-{model.stage}-on-{report.split}", cache_policy=NO_CACHE)
def decide(
    model: StoredModel, report: RobustnessReport, policy: Policy, *, champion: RobustnessReport | None = None
) -> Verdict:
    """The verdict on the report under the policy, kept in the stage's run. The champion is asked about test only."""
    verdict = judge(report, policy, champion)
    prefix = "" if report.split == "test" else f"{report.split}."
    set_tags(model.run_id, {f"redoubt.{prefix}verdict": verdict.outcome})
    kept = {"verdict": verdict.model_dump(mode="json"), "policy": policy.model_dump(mode="json")}
    log_dict(model.run_id, kept, f"{prefix.replace('.', '/')}verdict.json")
    return verdict
