"""RobustnessReport: what one evaluation found, small enough to travel between steps and to be read by people."""

import base64
import re

import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from tasks.attacks import ThreatModel
from tasks.metrics.curve import CurvePoint
from tasks.metrics.groups import ClassRow, PairRow
from tasks.metrics.outcomes import Outcomes
from tasks.metrics.pairs import PairReport
from tasks.metrics.soundness import Soundness
from tasks.statistics import Share, Spread


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
    of_suite: bool = Field(True, description="false: of the curve, of the signs or of the escalation")


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
    pairs: tuple[PairReport, ...] = Field((), description="the critical pairs, in the config's order")
    classes: tuple[ClassRow, ...] = Field((), description="each class against the others, corrected for their number")
    confusions: tuple[PairRow, ...] = Field((), description="what fooled samples were taken for, most frequent first")
    measured_at: str = Field("", description="ISO 8601, UTC; what comes from the store keeps the time of its measuring")
    spread: Spread | None = Field(None, description="the suite's robust accuracy with each seed, if there are several")

    def held(self) -> np.ndarray:
        """Bool [N]: which samples withstood every attack. Raises ValueError if `standing` is not of N samples."""
        return unpacked(self.standing, self.robust.n)

    @classmethod
    def of(cls, outcomes: Outcomes, *, curve: tuple[CurvePoint, ...] = (), confidence: float = 0.95) -> "ThreatReport":
        """The report of what measure() returned."""
        n = len(outcomes.fooled)
        standing, rows = n - int((~outcomes.clean_correct).sum()), []
        named = {attack.name for attack in outcomes.suite.attacks}
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
                    of_suite=a.name in named,
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
            standing=packed(~outcomes.fooled),
            forward_samples=outcomes.forward_samples,
            backward_samples=outcomes.backward_samples,
            seconds=outcomes.seconds,
            precision=outcomes.precision,
            draws=outcomes.draws,
            problems=outcomes.problems,
        )


class RobustnessReport(BaseModel, frozen=True, extra="forbid"):
    """One model, one split, every threat model, with all that a reader needs to trust or doubt the numbers.

    `correct` packs one bit a sample: 1 where the model was right on the unchanged input.
    """

    stage: str
    split: str
    data: str
    data_digest: str
    weights_digest: str
    model_code: str = Field("", description="digest of the code that the model is built by")
    clean: Share
    threats: tuple[ThreatReport, ...] = Field(min_length=1)
    confidence: float
    seed: int
    seeds: int = 1
    correct: str = ""
    measured_at: str = Field("", description="when the oldest of its numbers was measured: ISO 8601, UTC")
    warm: str = Field("", description="digest of the examples that the attacks began at; empty for a cold start")
    recalled: tuple[str, ...] = Field((), description="threat models whose whole result came from the store of cells")
    device: str
    versions: dict[str, str]
    seconds: float

    def correct_samples(self) -> np.ndarray:
        """Bool [N]: which samples were right as they are. Raises ValueError if `correct` is not of N samples."""
        return unpacked(self.correct, self.clean.n)

    @property
    def sound(self) -> bool:
        """Whether every number may be believed: checked, without an alarm that stands, without problems."""
        return all(t.soundness is not None and t.soundness.sound and not t.problems for t in self.threats)

    @property
    def worst(self) -> float:
        """The lowest robust accuracy under any threat model."""
        return min(threat.robust.value for threat in self.threats)

    def metrics(self) -> dict[str, float]:
        """Every number under the name that it bears in MLflow."""
        named = _interval("clean_accuracy", self.clean)
        for report in self.threats:
            key = f"robust_accuracy/{report.threat.name}"
            named |= _interval(key, report.robust)
            named |= {f"{key}/{_key(row.name)}": row.robust.value for row in report.attacks}
            named[f"problems/{report.threat.name}"] = float(len(report.problems))
            if report.soundness:
                named[f"alarms/{report.threat.name}"] = float(len(report.soundness.alarms))
                signs = (sign for sign in report.soundness.signs if sign.figure is not None)
                named |= {f"sign/{report.threat.name}/{_key(sign.name)}": float(sign.figure or 0.0) for sign in signs}
            if report.spread:
                named[f"{key}/seed_sd"] = report.spread.sd
            for pair in report.pairs:
                if pair.flipped:
                    named[f"flipped/{report.threat.name}/{pair.source}-{pair.target}"] = pair.flipped.value
        named["forward_samples"] = float(sum(report.forward_samples for report in self.threats))
        named["backward_samples"] = float(sum(report.backward_samples for report in self.threats))
        passes = [pair.passes for report in self.threats for pair in report.pairs]
        named |= {"pair_passes": float(sum(passes))} if passes else {}
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
                "number of seeds": report.seeds,
                "list of threat models": [t.threat for t in report.threats],
                "suite": [t.suite_digest for t in report.threats],
                "start": report.warm,
            }

        mine, theirs = facts(self), facts(other)
        return next((what for what in mine if mine[what] != theirs[what]), None)


def packed(flags: Tensor) -> str:
    """Flags [N], one bit each, as text."""
    return base64.b64encode(np.packbits(flags.numpy()).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    """Bool [n]. Raises ValueError unless the text holds exactly the bytes of n bits."""
    bits = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(bits) != (n + 7) // 8:
        raise ValueError(f"{len(bits)} bytes do not hold one bit for each of {n} samples")
    return np.unpackbits(bits, count=n).astype(bool)


def _key(name: str) -> str:
    """The name as a part of an MLflow key, which holds no colon on some stores and no punctuation on any."""
    return re.sub(r"[^\w.\- ]+", "", name.replace(":", "."))


def _interval(key: str, share: Share) -> dict[str, float]:
    return {key: share.value, f"{key}/lo": share.lo, f"{key}/hi": share.hi}
