"""evaluate(): every threat model of a config, measured, doubted and reported."""

import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks import Suite, ThreatModel
from tasks.metrics.code import grounds
from tasks.metrics.config import EvaluationConfig
from tasks.metrics.curve import security_curve
from tasks.metrics.escalation import examine
from tasks.metrics.groups import by_class, by_pair
from tasks.metrics.isolation import home, may_pay_in_bf16
from tasks.metrics.outcomes import Outcomes, measure
from tasks.metrics.pairs import attack_pairs, check_pairs
from tasks.metrics.report import RobustnessReport, ThreatReport, packed
from tasks.metrics.seeds import merged
from tasks.metrics.store import CellStore, Entry, tensor_digest
from tasks.statistics import Spread

CONFUSIONS = 20  # pairs of classes that a report keeps, the most frequent ones


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: EvaluationConfig,
    *,
    stage: str = "model",
    split: str = "test",
    data: str = "data",
    data_digest: str = "",
    weights_digest: str = "",
    model_code: str = "",
    store: CellStore | None = None,
    warm: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> tuple[RobustnessReport, list[Outcomes]]:
    """Measure the model under every threat model; the report, and behind it each sample's outcome.

    warm: inputs [N, ...] to begin at, under the names of some threat models, as measure() takes them.

    store: where results are looked up before they are computed: the whole of a threat model, else its cells. It needs
    weights_digest. model_code is a digest of the code that the model is built by, which with the same weights may
    compute something else. What comes from the store says what it cost at first. Nothing is stored where an attack or
    the model raised.

    Raises what measure() raises, and WrongInput for a critical pair of a class that the model does not know.
    """
    check_pairs(model, x, config.critical_pairs)
    started = time.perf_counter()
    results, reports, recalled = [], [], list[str]()
    weights = identity(weights_digest, model_code)
    under = partial(evaluate_threat, model, x, y, config, store=store, weights=weights, progress=progress)
    for threat in config.threats:
        outcomes, report = under(threat, warm=warm.get(threat.name) if warm else None, recalled=recalled)
        results.append(outcomes)
        reports.append(report)
    device = next((p.device.type for p in model.parameters()), "cpu")
    return RobustnessReport(
        stage=stage,
        split=split,
        data=data,
        data_digest=data_digest,
        weights_digest=weights_digest,
        model_code=model_code,
        clean=reports[0].clean,
        threats=tuple(reports),
        confidence=config.confidence,
        seed=config.seed,
        seeds=config.seeds,
        correct=packed(results[0].clean_correct),
        measured_at=min(report.measured_at for report in reports),
        warm=tensor_digest(*warm.values()) if warm else "",
        recalled=tuple(recalled),
        device=device,
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        seconds=time.perf_counter() - started,
    ), results


def identity(weights_digest: str, model_code: str) -> str:
    """What stands for all that a model's answers follow from in a store; empty without a digest of its weights."""
    return f"{weights_digest}-{model_code}" if weights_digest else ""


def evaluate_threat(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: EvaluationConfig,
    threat: ThreatModel,
    *,
    store: CellStore | None = None,
    weights: str = "",
    warm: Tensor | None = None,
    progress: bool = False,
    recalled: list[str] | None = None,
) -> tuple[Outcomes, ThreatReport]:
    """Each sample's outcome under one threat model, and the report of it; from the store where it is there.

    weights is what identity() gives; without it nothing is stored. warm [N, ...] are inputs to begin at. Where it came
    whole from the store, the threat model's name is added to `recalled`.
    """
    suite = config.resolved_suite()
    store = store if weights else None
    run = partial(_under, threat, model, x, y, config, suite, store=store, weights=weights, warm=warm)
    if store is None:
        return run(progress=progress)
    facts = _facts(model, x, y, config, weights)
    facts |= {"threat": threat.digest, "warm": "" if warm is None else tensor_digest(warm)}

    def load(entry: Entry) -> tuple[Outcomes, ThreatReport]:
        if recalled is not None:
            recalled.append(threat.name)
        return _loaded(threat, suite, entry)

    return store.once(facts, partial(run, progress=progress), save=_entry, load=load)


def _facts(model: nn.Module, x: Tensor, y: Tensor, config: EvaluationConfig, weights: str) -> dict[str, object]:
    """What the result under any threat model follows from, besides the threat model and where the attacks begin."""
    chosen = config.precision == "auto" and may_pay_in_bf16(model, x, home(model, x))  # else every machine takes fp32
    own = {"stage": "threat", "weights": weights, "samples": tensor_digest(x, y), "precision chosen": chosen}
    return {**own, **grounds(model, x), **config.facts()}


def _entry(result: tuple[Outcomes, ThreatReport]) -> Entry | None:
    """The result as it is stored; None where something was raised, since another try may go better."""
    outcomes, report = result
    told = [sign.says for sign in report.soundness.alarms] if report.soundness else []
    told += [problem for pair in report.pairs for problem in pair.problems]
    if report.problems or any("raised" in words for words in told):
        return None
    entry = outcomes.entry()
    return Entry(entry.tensors, {**entry.values, "report": report.model_dump(mode="json")})


def _loaded(threat: ThreatModel, suite: Suite, entry: Entry) -> tuple[Outcomes, ThreatReport]:
    values = dict(entry.values)
    report = ThreatReport.model_validate(values.pop("report"))
    return Outcomes.of(Entry(entry.tensors, values), threat=threat, suite=suite), report


def _under(
    threat: ThreatModel,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: EvaluationConfig,
    suite: Suite,
    *,
    store: CellStore | None,
    weights: str,
    warm: Tensor | None,
    progress: bool,
) -> tuple[Outcomes, ThreatReport]:
    """Each sample's outcome under one threat model, the worst over the seeds, and the report of it."""
    attack = partial(
        measure, threat=threat, suite=suite, precision=config.precision, attack_seconds=config.attack_seconds
    )
    seeds = range(config.seed, config.seed + config.seeds)
    whole = partial(attack, model, x, y, warm=warm, progress=progress, store=store, weights=weights)
    of_seed = [whole(seed=seed) for seed in seeds]
    outcomes, curve = security_curve(
        model, x, y, outcomes=merged(of_seed), confidence=config.confidence, store=store, weights=weights
    )
    outcomes, curve, soundness = examine(model, x, y, outcomes=outcomes, curve=curve, confidence=config.confidence)
    found = attack_pairs(
        model, x, y, config.critical_pairs, attack, seeds=seeds, warm=outcomes.nearest, confidence=config.confidence
    )
    outcomes = replace(outcomes, flips=torch.cat([flips for _, flips in found]) if found else None)
    report = ThreatReport.of(outcomes, curve=curve, confidence=config.confidence)
    spread = Spread.of([found.robust_accuracy for found in of_seed]) if config.seeds > 1 else None
    groups: dict[str, object] = {
        "classes": by_class(outcomes, y, confidence=config.confidence),
        "confusions": by_pair(outcomes, y, max(2, _classes(outcomes, y)), confidence=config.confidence)[:CONFUSIONS],
    }
    groups |= {
        "pairs": tuple(pair for pair, _ in found),
        "measured_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    return outcomes, report.model_copy(update={"spread": spread, "soundness": soundness} | groups)


def _classes(outcomes: Outcomes, y: Tensor) -> int:
    """How many classes labels and answers name."""
    return 1 + max(int(y.max()), int(outcomes.prediction.max()))
