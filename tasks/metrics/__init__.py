"""What we measure and how we say it."""

from tasks.metrics.binarisation import Binarisation, binarise
from tasks.metrics.code import engine_code
from tasks.metrics.config import EvaluationConfig, choose_rows
from tasks.metrics.corpus import Corpus, Replay, begin_at, replay
from tasks.metrics.curve import CurvePoint, security_curve
from tasks.metrics.escalation import examine
from tasks.metrics.evaluation import evaluate, identity
from tasks.metrics.gate import EarlyDecision, decide_early
from tasks.metrics.groups import ClassRow, PairRow, by_class, by_pair
from tasks.metrics.outcomes import AttackOutcome, Outcomes, measure
from tasks.metrics.pairs import PairReport, measure_pairs
from tasks.metrics.report import (
    AttackRow,
    RobustnessReport,
    ThreatReport,
)
from tasks.metrics.seeds import merged
from tasks.metrics.shards import Shards, Unit
from tasks.metrics.soundness import Sign, Soundness, Step
from tasks.metrics.store import CellStore
from tasks.metrics.transfer import Transfer, transfer
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
    "CellStore",
    "ClassRow",
    "Corpus",
    "CurvePoint",
    "EarlyDecision",
    "EvaluationConfig",
    "Outcomes",
    "PairReport",
    "PairRow",
    "Replay",
    "RobustnessReport",
    "Shards",
    "Share",
    "Sign",
    "Soundness",
    "Spread",
    "Step",
    "ThreatReport",
    "Transfer",
    "Unit",
    "anytime_interval",
    "begin_at",
    "binarise",
    "by_class",
    "by_pair",
    "choose_rows",
    "decide_early",
    "engine_code",
    "evaluate",
    "examine",
    "holm",
    "identity",
    "mcnemar",
    "measure",
    "measure_pairs",
    "merged",
    "paired_loss",
    "replay",
    "security_curve",
    "smallest_paired",
    "smallest_sample",
    "transfer",
    "wilson",
]
