"""What we measure and how we say it."""

from tasks.metrics.binarisation import Binarisation, binarise
from tasks.metrics.curve import CurvePoint, security_curve
from tasks.metrics.escalation import examine
from tasks.metrics.gate import EarlyDecision, decide_early
from tasks.metrics.groups import ClassRow, PairRow, by_class, by_pair
from tasks.metrics.outcomes import AttackOutcome, Outcomes, measure
from tasks.metrics.pairs import PairReport, measure_pairs
from tasks.metrics.report import (
    AttackRow,
    EvaluationConfig,
    RobustnessReport,
    ThreatReport,
    choose_rows,
    evaluate,
)
from tasks.metrics.seeds import merged
from tasks.metrics.soundness import Sign, Soundness, Step
from tasks.statistics import (
    Share,
    Spread,
    anytime_interval,
    holm,
    mcnemar,
    paired_loss,
    smallest_paired,
    smallest_sample,
    wilson,
)

__all__ = [
    "AttackOutcome",
    "AttackRow",
    "Binarisation",
    "ClassRow",
    "CurvePoint",
    "EarlyDecision",
    "EvaluationConfig",
    "Outcomes",
    "PairReport",
    "PairRow",
    "RobustnessReport",
    "Share",
    "Sign",
    "Soundness",
    "Spread",
    "Step",
    "ThreatReport",
    "anytime_interval",
    "binarise",
    "by_class",
    "by_pair",
    "choose_rows",
    "decide_early",
    "evaluate",
    "examine",
    "holm",
    "mcnemar",
    "measure",
    "measure_pairs",
    "merged",
    "paired_loss",
    "security_curve",
    "smallest_paired",
    "smallest_sample",
    "wilson",
]
