"""RobustnessReport: what one evaluation found, small enough to travel between steps and to be read by people."""

import base64
import platform
import time

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.metrics.curve import CurvePoint, security_curve
from tasks.metrics.outcomes import Outcomes, Precision, measure
from tasks.metrics.soundness import Soundness
from tasks.metrics.statistics import Share


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """Which attacks run, under which threat models, on how many samples."""

    threats: tuple[ThreatModel, ...] = Field(min_length=1, description="each is measured and judged by itself")
    suite: str = Field("standard", description="a named list of attacks: quick, standard or deep")
    attacks: tuple[AttackConfig, ...] = Field((), description="attacks of your own, run after the suite's")
    samples: int | None = Field(None, ge=1, description="how many samples of the split; all if empty")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
    seed: int = Field(0, ge=0)
    precision: Precision = Field("auto", description="of the search; auto: bf16 where that is faster")

    def resolved_suite(self) -> Suite:
        """The suite with the user's own attacks behind it. Raises UnknownPart."""
        suite = as_suite(self.suite)
        if not self.attacks:
            return suite
        name = "+".join([suite.name, *(attack.name for attack in self.attacks)])
        return as_suite(Suite(name=name, attacks=(*suite.attacks, *self.attacks)))


class AttackRow(BaseModel, frozen=True, extra="forbid"):
    """One attack's part in the result. `robust` is what still stood after it, in the suite's order."""

    name: str
    tried: int
    fooled: int
    robust: Share
    forward_samples: int
    backward_samples: int
    seconds: float
    error: str | None = None


class ThreatReport(BaseModel, frozen=True, extra="forbid"):
    """The result under one threat model. `standing` packs one bit a sample: 1 where nothing fooled the model."""

    threat: ThreatModel
    suite: str
    suite_digest: str
    clean: Share
    robust: Share
    attacks: tuple[AttackRow, ...]
    curve: tuple[CurvePoint, ...] = ()
    standing: str
    forward_samples: int
    backward_samples: int
    seconds: float
    precision: str = "fp32"
    draws: int = Field(1, description="passes averaged for one answer; above 1 for a model that answers at random")
    problems: tuple[str, ...] = Field((), description="each of them voids the number")
    soundness: Soundness | None = Field(None, description="what was checked before the number is believed")

    def held(self) -> np.ndarray:
        """Bool [N]: which samples withstood every attack."""
        bits = np.frombuffer(base64.b64decode(self.standing), dtype=np.uint8)
        return np.unpackbits(bits, count=self.robust.n).astype(bool)

    @classmethod
    def of(cls, outcomes: Outcomes, *, curve: tuple[CurvePoint, ...] = (), confidence: float = 0.95) -> "ThreatReport":
        """The report of what measure() returned."""
        n = len(outcomes.fooled)
        standing, rows = n - int((~outcomes.clean_correct).sum()), []
        clean = Share.of(standing, n, confidence=confidence)
        for a in outcomes.attacks:
            standing -= int(a.fooled.sum())
            rows.append(
                AttackRow(
                    name=a.name,
                    tried=int(a.tried.sum()),
                    fooled=int(a.fooled.sum()),
                    robust=Share.of(standing, n, confidence=confidence),
                    forward_samples=a.forward_samples,
                    backward_samples=a.backward_samples,
                    seconds=a.seconds,
                    error=a.error,
                )
            )
        return cls(
            threat=outcomes.threat,
            suite=outcomes.suite.name,
            suite_digest=outcomes.suite.digest,
            clean=clean,
            robust=Share.of(int((~outcomes.fooled).sum()), n, confidence=confidence),
            attacks=tuple(rows),
            curve=curve,
            standing=base64.b64encode(np.packbits((~outcomes.fooled).numpy()).tobytes()).decode(),
            forward_samples=outcomes.forward_samples,
            backward_samples=outcomes.backward_samples,
            seconds=outcomes.seconds,
            precision=outcomes.precision,
            draws=outcomes.draws,
            problems=outcomes.problems,
        )


class RobustnessReport(BaseModel, frozen=True, extra="forbid"):
    """One model, one split, every threat model, with all that a reader needs to trust or doubt the numbers."""

    stage: str
    split: str
    data: str
    data_digest: str
    weights_digest: str
    clean: Share
    threats: tuple[ThreatReport, ...] = Field(min_length=1)
    confidence: float
    seed: int
    device: str
    versions: dict[str, str]
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Every number under the name that it bears in MLflow."""
        named = _interval("clean_accuracy", self.clean)
        for report in self.threats:
            key = f"robust_accuracy/{report.threat.name}"
            named |= _interval(key, report.robust)
            named |= {f"{key}/{row.name.replace(':', '.')}": row.robust.value for row in report.attacks}
            named[f"problems/{report.threat.name}"] = float(len(report.problems))
        named["forward_samples"] = float(sum(report.forward_samples for report in self.threats))
        named["backward_samples"] = float(sum(report.backward_samples for report in self.threats))
        named["seconds"] = self.seconds
        return named

    def comparable_with(self, other: "RobustnessReport") -> str | None:
        """None if both measured the same samples under the same threats and suite, else the first difference."""

        def facts(report: "RobustnessReport") -> dict[str, object]:
            return {
                "split": report.split,
                "data": report.data_digest,
                "number of samples": report.clean.n,
                "seed": report.seed,
                "list of threat models": [t.threat for t in report.threats],
                "suite": [t.suite_digest for t in report.threats],
            }

        mine, theirs = facts(self), facts(other)
        return next((what for what in mine if mine[what] != theirs[what]), None)


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
    progress: bool = False,
) -> tuple[RobustnessReport, list[Outcomes]]:
    """Measure the model under every threat model; the report, and behind it each sample's outcome.

    Raises what measure() raises.
    """
    started, suite, results, reports = time.perf_counter(), config.resolved_suite(), [], []
    for threat in config.threats:
        outcomes = measure(
            model,
            x,
            y,
            threat=threat,
            suite=suite,
            seed=config.seed,
            precision=config.precision,
            progress=progress,
        )
        outcomes, curve = security_curve(model, x, y, outcomes=outcomes, confidence=config.confidence)
        reports.append(ThreatReport.of(outcomes, curve=curve, confidence=config.confidence))
        results.append(outcomes)
    device = next((p.device.type for p in model.parameters()), "cpu")
    report = RobustnessReport(
        stage=stage,
        split=split,
        data=data,
        data_digest=data_digest,
        weights_digest=weights_digest,
        clean=reports[0].clean,
        threats=tuple(reports),
        confidence=config.confidence,
        seed=config.seed,
        device=device,
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        seconds=time.perf_counter() - started,
    )
    return report, results


def choose_rows(n: int, samples: int | None, seed: int) -> Tensor:
    """Which rows of a split of n are measured: all, or a fixed random choice, in ascending order: [samples]."""
    if samples is None or samples >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:samples].sort().values


def _interval(key: str, share: Share) -> dict[str, float]:
    return {key: share.value, f"{key}/lo": share.lo, f"{key}/hi": share.hi}
