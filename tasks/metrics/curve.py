"""Robust accuracy against eps."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.metrics.outcomes import Outcomes, measure
from tasks.metrics.statistics import Share

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the threat model's eps
ALONG_THE_CURVE = Suite(name="curve", attacks=(AttackConfig(name="pgd", params={"steps": 10}),))


class CurvePoint(BaseModel, frozen=True, extra="forbid"):
    """Robust accuracy at one radius."""

    eps: float
    robust: Share


def security_curve(
    model: nn.Module, x: Tensor, y: Tensor, *, outcomes: Outcomes, confidence: float = 0.95
) -> tuple[CurvePoint, ...]:
    """Points from eps 0 to twice the threat model's eps; at eps itself the suite's own number.

    Between them PGD with 10 steps. What fools at one radius fools at every larger one, so the curve never rises.
    """
    threat, n = outcomes.threat, len(y)
    points = [CurvePoint(eps=0.0, robust=_share(outcomes.clean_correct, n, confidence))]
    fooled = ~outcomes.clean_correct
    for radius in _radii(threat):
        if radius == threat.eps:
            fooled = fooled | outcomes.fooled
        else:
            standing = (~fooled).nonzero().flatten()
            if len(standing):
                wider = threat.model_copy(update={"eps": radius})
                found = measure(
                    model, x[standing], y[standing], threat=wider, suite=ALONG_THE_CURVE, seed=outcomes.seed
                )
                fooled = fooled.index_put((standing,), found.fooled)
        points.append(CurvePoint(eps=radius, robust=_share(~fooled, n, confidence)))
    return tuple(points)


def _radii(threat: ThreatModel) -> Sequence[float]:
    low, high = threat.bounds
    largest = high - low if threat.norm == "linf" else float("inf")
    return [threat.eps * m for m in MULTIPLES if m == 1.0 or threat.eps * m < largest]


def _share(held: Tensor, n: int, confidence: float) -> Share:
    return Share.of(int(torch.count_nonzero(held)), n, confidence=confidence)
