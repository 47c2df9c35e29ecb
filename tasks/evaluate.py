"""Attack a stored model and report what is left of its accuracy."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.data import Data, load_split
from tasks.metrics import EvaluationConfig, RobustnessReport, choose_rows, evaluate
from tasks.models import StoredModel, device_of, from_bytes
from tasks.results import save_evaluation
from tasks.track import aliases, load_bytes, load_version, timed


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
def champion_report(name: str, data: Data, config: EvaluationConfig, *, run_id: str) -> RobustnessReport | None:
    """The champion's report on these very samples; measured again where data or suite have changed; None without one.

    Raises whatever keeps the champion from being loaded: a gate that cannot compare must not open.
    """
    number = aliases(name).get("champion")
    if number is None:
        return None
    with timed(run_id, "champion"):
        stored, report = load_version(name, number)
        expected = [(threat, config.resolved_suite().digest) for threat in config.threats]
        measured = [(t.threat, t.suite_digest) for t in report.threats]
        n = len(choose_rows(data.sizes["test"], config.samples, config.seed))
        same = (expected, data.digest, config.seed, n) == (measured, report.data_digest, report.seed, report.clean.n)
        if same:
            return report
        network = from_bytes(stored.model, load_bytes(stored.weights), stored.digest)
        x, y = load_split(data, "test")
        rows = choose_rows(len(y), config.samples, config.seed)
        fresh, _ = evaluate(
            network,
            x[rows],
            y[rows],
            config,
            stage=f"champion-{number}",
            data=data.name,
            data_digest=data.digest,
            weights_digest=stored.digest,
        )
        return fresh
