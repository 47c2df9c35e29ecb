"""What we measure and how we say it."""

from tasks.metrics.curve import CurvePoint, security_curve
from tasks.metrics.outcomes import AttackOutcome, Outcomes, measure
from tasks.metrics.report import (
    AttackRow,
    EvaluationConfig,
    RobustnessReport,
    ThreatReport,
    choose_rows,
    evaluate,
)
from tasks.metrics.soundness import Sign, Soundness, Step
from tasks.metrics.statistics import Share, paired_loss, wilson

__all__ = [
    "AttackOutcome",
    "AttackRow",
    "CurvePoint",
    "EvaluationConfig",
    "Outcomes",
    "RobustnessReport",
    "Share",
    "Sign",
    "Soundness",
    "Step",
    "ThreatReport",
    "choose_rows",
    "evaluate",
    "measure",
    "paired_loss",
    "security_curve",
    "wilson",
]
