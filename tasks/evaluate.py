"""Attack a stored model and report what is left of its accuracy."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor, nn

from tasks.data import Data, load_split
from tasks.errors import WrongInput
from tasks.fetch import fetch_version, network_of
from tasks.gpu import device_under, gpu_slot
from tasks.home import folder
from tasks.metrics import CellStore, Corpus, EvaluationConfig, RobustnessReport, begin_at, choose_rows, evaluate
from tasks.models import StoredModel, code_of
from tasks.posture.record import key_of
from tasks.posture.signing import secret_of
from tasks.recall import expected_facts
from tasks.redact import veiled
from tasks.replay import load_corpus
from tasks.results import WARM, save_evaluation
from tasks.shard import Work, fill
from tasks.track import EVIDENCE, aliases, log_bytes, model_facts, registered, timed
from tasks.verdicts import Champion, why_unusable
from tasks.vouch import asked_when_crowned, vouched_report


@task(name="evaluate", task_run_name="evaluate-{model.stage}-on-{split}", cache_policy=NO_CACHE)
@veiled
def evaluate_robustness(
    model: StoredModel,
    data: Data,
    config: EvaluationConfig,
    *,
    split: str,
    run_id: str,
    start: Mapping[str, Corpus] | None = None,
    again: bool = False,
) -> RobustnessReport:
    """Attack the stored model on a split, and keep the report, each sample's outcome and what fooled it.

    Cells that were measured before come from the store, so a killed evaluation goes on where it stood; with `again`
    all are measured anew. Where REDOUBT_WORKERS names workers they measure first, unless the start is warm.
    start: the stored examples at which a warm start begins, kept in the model's run so that it can be done again.
    """
    with timed(run_id, f"attack/{model.stage}/{split}"):
        network = network_of(model)
        x, y = load_split(data, split)
        rows = choose_rows(len(y), config.samples, config.seed)
        for threat, corpus in (start or {}).items():
            log_bytes(model.run_id, corpus.to_bytes(), f"{WARM}/{threat}.npz")
        with _anew() if again else nullcontext(cells()) as store:
            work = Work(model=model, data=data, config=config, split=split)
            new = fill(store, work, network, x[rows], y[rows]) if not start else frozenset()
            with gpu_slot(device_under(network)):
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
                    model_code=code_of(network),
                    store=store,
                    warm=begin_warm(start, network, x[rows], y[rows], rows=rows, seed=config.seed),
                    progress=True,
                )
        recalled = tuple(name for name in report.recalled if name not in new)
        report = report.model_copy(update={"recalled": recalled, "warm": _digest(start)})
        save_evaluation(model, data, report, outcomes, rows=rows, x=x[rows], y=y[rows])
        return report


@task(name="champion", cache_policy=NO_CACHE)
@veiled
def champion_report(
    name: str,
    data: Data,
    config: EvaluationConfig,
    *,
    start: Mapping[str, Corpus] | None = None,
    max_age_days: float,
    run_id: str,
) -> Champion | None:
    """The champion with its report on these very samples, from the same start; None without a champion.

    It is measured again where data, suite or start have changed, and where the report is older than max_age_days, its
    numbers are not sound, or the champion's evidence does not vouch for it. Raises whatever keeps the champion from
    being loaded: a gate that cannot compare must not open.
    """
    number = aliases(name).get("champion")
    if number is None:
        return None
    with timed(run_id, "champion"):
        version = next(version for version in registered(name) if version.number == number)
        asked = asked_when_crowned(version)
        wanted = key_of(expected_facts(data, config) | {"warm": _digest(start)})
        for record in version.records():
            if record.key == wanted:
                report = vouched_report(version, record)
                if report is not None and why_unusable(report, max_age_days=max_age_days) is None:
                    return Champion(version=number, evidence=record.evidence, report=report, asked=asked)
        stored = fetch_version(version)
        network = network_of(stored)
        x, y = load_split(data, "test")
        rows = choose_rows(len(y), config.samples, config.seed)
        with gpu_slot(device_under(network)):
            fresh, _ = evaluate(
                network,
                x[rows],
                y[rows],
                config.model_copy(update={"critical_pairs": ()}),  # which are not compared
                stage=f"champion-{number}",
                data=data.name,
                data_digest=data.digest,
                weights_digest=stored.digest,
                model_code=code_of(network),
                warm=begin_warm(start, network, x[rows], y[rows], rows=rows, seed=config.seed),
            )
        fresh = fresh.model_copy(update={"warm": _digest(start)})
        return Champion(version=number, evidence=version.tags.get(EVIDENCE, ""), report=fresh, asked=asked)


def warm_start(name: str, data: Data, config: EvaluationConfig) -> dict[str, Corpus]:
    """The stored examples of the registered model that a warm start begins at, by threat model; none for a cold one.

    To be read once in a run: they grow with each model that is recorded, and what is compared must begin alike. Raises
    WrongInput where the suite needs some and there are none.
    """
    tags = model_facts(name)[1] if config.warm else {}
    found = {threat.name: load_corpus(name, tags, threat, data) for threat in config.threats if config.warm}
    known = {threat: corpus for threat, corpus in found.items() if corpus is not None}
    cold = [threat.name for threat in config.threats if threat.name not in known]
    if config.suite == "warm" and cold:
        why = f"{name} has none yet under {', '.join(cold)}" if config.warm else "evaluation.warm is false"
        raise WrongInput(
            f"evaluation.suite: warm goes on from stored examples, and {why}. Write evaluation.suite: standard, with "
            "evaluation.warm: true to begin at stored examples where there are any."
        )
    return known


def begin_warm(
    corpora: Mapping[str, Corpus] | None, network: nn.Module, x: Tensor, y: Tensor, *, rows: Tensor, seed: int
) -> dict[str, Tensor] | None:
    """Where a warm start begins under each threat model that has stored examples; None for a cold start."""
    begin = partial(begin_at, network, y=y, rows=rows, seed=seed)
    return {threat: begin(corpus, x) for threat, corpus in (corpora or {}).items()} or None


def _digest(corpora: Mapping[str, Corpus] | None) -> str:
    """Of a start; empty for a cold one. Of the corpora, not of the examples that each model begins at among them."""
    told = "".join(corpus.digest for corpus in (corpora or {}).values())
    return hashlib.sha256(told.encode()).hexdigest()[:16] if told else ""


@contextmanager
def _anew() -> Iterator[CellStore]:
    """A store that holds nothing yet and is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        yield CellStore(scratch)


def cells() -> CellStore:
    """Where cells are kept on this machine. What is to be signed rests on none that the key's holder did not write."""
    key = os.environ.get("REDOUBT_SIGNING_KEY")
    return CellStore(folder("cells"), secret=secret_of(Path(key)) if key else b"")
