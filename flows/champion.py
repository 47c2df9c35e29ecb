"""The champion that a model is held against, on the same data, from the same start."""

from collections.abc import Mapping

from flows.config import EvaluateConfig, PipelineConfig
from flows.whole import whole
from tasks.data import Data
from tasks.evaluate import champion_report
from tasks.metrics import Corpus
from tasks.verdicts import Champion


def champion_of(
    config: PipelineConfig | EvaluateConfig, data: Data, start: Mapping[str, Corpus], *, run_id: str
) -> Champion | None:
    """The champion of the config's name with its report on these very samples; None without one."""
    age = config.policy.max_age_days
    return champion_report(config.name, data, config.evaluation, start=whole(start), max_age_days=age, run_id=run_id)
