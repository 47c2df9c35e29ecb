"""Attack a stored model and report what is left of its accuracy."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.data import Data, load_split
from tasks.metrics import EvaluationConfig, RobustnessReport, choose_rows, evaluate
from tasks.models import StoredModel, device_of, from_bytes
from tasks.results import save_evaluation
from tasks.track import aliases, load_bytes, load_version, timed
from tasks.verdicts import why_unusable


@task(name="evaluate", task_run_name="evaluate-{model.stage}-on-{split}", cache_policy=NO_CACHE)
def evaluate_robustness(
    model: StoredModel,
    data: Data,
    config: EvaluationConfig,
    *,
    split: str,
    run_id: str,
) -> RobustnessReport:
    """Attack the stored model on a split, and keep the report, each sample's outcome and what fooled it."""
    with timed(run_id, f"attack/{model.stage}/{split}"):
        network = from_bytes(model.model, load_bytes(model.weights), model.digest).to(device_of("auto"))
        x, y = load_split(data, split)
        rows = choose_rows(len(y), config.samples, config.seed)
        report, outcomes = evaluate(
            network,
            x[rows],
            y[rows],
            config,
            stage=model.stage,
            split=split,
            data=data.name,
            data_digest=data.digest,
            weights_digest=model.digest,
            progress=True,
        )
        save_evaluation(model, data, report, outcomes, rows)
        return report


@task(name="champion", cache_policy=NO_CACHE)
def champion_report(
    name: str, data: Data, config: EvaluationConfig, *, max_age_days: float, run_id: str
) -> RobustnessReport | None:
    """The champion's report on these very samples; None without a champion.

    It is measured again where data or suite have changed, and where the report is older than max_age_days or its
    numbers are not sound. Raises whatever keeps the champion from being loaded: a gate that cannot compare must not
    open.
    """
    number = aliases(name).get("champion")
    if number is None:
        return None
    with timed(run_id, "champion"):
        stored, report = load_version(name, number)
        if _answers(config, data, report) and why_unusable(report, max_age_days=max_age_days) is None:
            return report
        network = from_bytes(stored.model, load_bytes(stored.weights), stored.digest).to(device_of("auto"))
        x, y = load_split(data, "test")
        rows = choose_rows(len(y), config.samples, config.seed)
        fresh, _ = evaluate(
            network,
            x[rows],
            y[rows],
            config.model_copy(update={"critical_pairs": ()}),  # which are not compared
            stage=f"champion-{number}",
            data=data.name,
            data_digest=data.digest,
            weights_digest=stored.digest,
        )
        return fresh


def _answers(config: EvaluationConfig, data: Data, report: RobustnessReport) -> bool:
    """Whether the report is what the config would measure on the data's test split."""
    suite = config.resolved_suite().digest
    n = len(choose_rows(data.sizes["test"], config.samples, config.seed))
    asked = ("test", data.digest, n, config.seed, config.seeds, [(threat, suite) for threat in config.threats])
    measured = [(threat.threat, threat.suite_digest) for threat in report.threats]
    return asked == (report.split, report.data_digest, report.clean.n, report.seed, report.seeds, measured)
