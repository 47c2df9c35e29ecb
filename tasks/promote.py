"""Register a version, and move the alias champion if and only if the verdict is pass."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.metrics import RobustnessReport
from tasks.models import StoredModel
from tasks.record import version_tags
from tasks.reserve import reserved
from tasks.track import aliases, register, set_alias
from tasks.verdicts import Verdict


@task(name="promote", task_run_name="promote-{model.stage}", cache_policy=NO_CACHE)
def promote(name: str, model: StoredModel, report: RobustnessReport, verdict: Verdict) -> int:
    """The version that the model became. On pass it is champion and the one before is `previous`; else challenger."""
    with reserved(name):
        number = register(name, model, version_tags(report, verdict))
        if verdict.outcome != "pass":
            set_alias(name, "challenger", number)
            return number
        before = aliases(name).get("champion")
        if before is not None:
            set_alias(name, "previous", before)
        set_alias(name, "champion", number)
        return number


@task(name="roll-back", cache_policy=NO_CACHE)
def roll_back(name: str) -> int:
    """The version that is champion again: the one that `previous` names. Raises ValueError if there is none."""
    with reserved(name):
        now = aliases(name)
        if "previous" not in now:
            raise ValueError(f"model {name!r} has no previous champion to go back to.")
        set_alias(name, "champion", now["previous"])
        set_alias(name, "previous", now["champion"])
        return now["previous"]
