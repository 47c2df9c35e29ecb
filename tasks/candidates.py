"""The candidates of hardening: round after round as they are asked for, or all at the same time on workers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.data import Data
from tasks.decide import decide
from tasks.evaluate import evaluate_robustness
from tasks.evidence import Chapter
from tasks.metrics import EvaluationConfig
from tasks.models import StoredModel, TrainingConfig
from tasks.redact import veiled
from tasks.track import open_stage, set_tags
from tasks.train import train_model
from tasks.verdicts import Policy
from tasks.workers import alone, task_runner, workers

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

Candidate = tuple[StoredModel, Chapter]
DROPPED = "redoubt.dropped"
log = logging.getLogger("redoubt")


def stages_of(hardening: TrainingConfig, policy: Policy) -> dict[str, TrainingConfig]:
    """The stages of hardening that a policy allows, in order, each with how it trains."""
    return {_stage(number): hardening.for_round(number) for number in range(1, policy.max_rounds + 1)}


@contextmanager
def candidates(
    data: Data, hardening: TrainingConfig, evaluation: EvaluationConfig, policy: Policy, *, run_id: str
) -> Iterator[Iterator[Candidate]]:
    """Hardening rounds 1, 2, ... up to max_rounds, each trained and judged on select, in this order.

    Where REDOUBT_WORKERS names workers, all are trained and judged there at the same time. Whoever stops asking gets
    the same as one after another: what was made beyond that is tagged as dropped, and nobody looks at it.
    """
    asked_of = stages_of(hardening, policy).values()
    rounds = [(number, data, training, evaluation, policy) for number, training in enumerate(asked_of, 1)]
    words = workers()
    if not words or len(rounds) < 2:
        yield (_candidate(*asked, run_id=run_id) for asked in rounds)
        return
    taken: list[int] = []
    threads = torch.get_num_threads()  # training's last bits follow from it, so that a worker takes the same
    with task_runner(words) as runner:
        names = ("number", "data", "training", "evaluation", "policy")
        more = {"run_id": run_id, "threads": threads}
        futures = [runner.submit(train_candidate, dict(zip(names, asked, strict=True)) | more) for asked in rounds]

        def in_order() -> Iterator[Candidate]:
            for asked, future in zip(rounds, futures, strict=True):
                taken.append(asked[0])
                yield _made(future) or _candidate(*asked, run_id=run_id)

        yield in_order()
    for number, *_ in rounds[len(taken) :]:
        says = f"round {len(taken)} did not fail, so that this one, made at the same time, counts for nothing"
        set_tags(open_stage(run_id, _stage(number)), {DROPPED: says})


@task(name="candidate", task_run_name="candidate-{number}", cache_policy=NO_CACHE, persist_result=False)
@veiled
def train_candidate(
    number: int,
    data: Data,
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    policy: Policy,
    *,
    run_id: str,
    threads: int,
) -> Candidate:
    """One candidate, with so many threads of torch, on a worker."""
    before = torch.get_num_threads()
    with alone():
        torch.set_num_threads(threads)
        try:
            return _candidate(number, data, training, evaluation, policy, run_id=run_id)
        finally:
            torch.set_num_threads(before)


def _candidate(
    number: int, data: Data, training: TrainingConfig, evaluation: EvaluationConfig, policy: Policy, *, run_id: str
) -> Candidate:
    """A hardened model and what it came to on select."""
    model = train_model(data, training, stage=_stage(number), run_id=run_id)
    if evaluation.suite == "warm":  # nothing is known of the samples on which candidates are compared
        evaluation = evaluation.model_copy(update={"suite": "standard"})
    report = evaluate_robustness(model, data, evaluation, split="select", run_id=run_id)
    verdict = decide(model, report, policy)
    return model, Chapter(stage=model.stage, run_id=model.run_id, report=report, verdict=verdict)


def _made(future: "PrefectFuture[Candidate]") -> Candidate | None:
    """What the worker made; None where it failed, which is done again here."""
    try:
        return future.result()
    except Exception as error:  # a worker may die of anything
        log.warning("a worker failed at a candidate, which is trained here: %s: %s", type(error).__name__, error)
        return None


def _stage(number: int) -> str:
    return f"hardened-{number}"
