"""Turn a report into a verdict, and keep it."""

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.data import Data
from tasks.errors import WrongInput
from tasks.metrics import EvaluationConfig, RobustnessReport
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
