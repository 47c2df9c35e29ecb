"""How far a report's numbers may be believed: in both directions, only where they are low, or not at all."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np

from tasks.metrics import PairReport, RobustnessReport, Share, ThreatReport
from tasks.verdicts.checks import Check

ROUNDING = 1e-9  # an interval's end is computed, and may miss the share of 0 or 1 that it ends at

Trust = Literal["sound", "too kind", "void"]


def trust_in_clean(report: RobustnessReport) -> Trust:
    """Whether the labels, the data and the model's answers on unchanged inputs mean what they claim.

    Void as well where the report contradicts itself, or where no threat model's soundness was checked: then nobody
    looked whether the labels fit.
    """
    broken = any(problem.startswith("clean:") for threat in report.threats for problem in threat.problems)
    mistaken = any(sign.kind == "measurement" for t in report.threats if t.soundness for sign in t.soundness.alarms)
    checked = any(was_checked(threat) for threat in report.threats)
    return "void" if broken or mistaken or not checked or contradictions(report) else "sound"


def trust_under(report: RobustnessReport, threat: ThreatReport) -> Trust:
    """How far the numbers under one of the report's threat models may be believed.

    Every success was measured again, so an alarm about the search leaves a number that can only be too kind. A
    measurement that is mistaken, or an evaluation that broke, leaves one that means nothing in either direction.
    """
    if trust_in_clean(report) == "void" or problems(threat) or not was_checked(threat):
        return "void"
    alarms = threat.soundness.alarms if threat.soundness else ()
    return "too kind" if alarms or not any(row.tried and row.of_suite for row in threat.attacks) else "sound"


def was_checked(threat: ThreatReport) -> bool:
    """Whether any sign of its soundness was looked at."""
    signs = threat.soundness.signs if threat.soundness else ()
    return any(sign.state in ("ok", "alarm") for sign in signs)


def problems(threat: ThreatReport) -> tuple[str, ...]:
    """What broke while it was measured, an attack's error included."""
    errors = (f"{row.name}: {row.error}" for row in threat.attacks if row.error)
    return tuple(dict.fromkeys((*threat.problems, *errors)))


def contradictions(report: RobustnessReport) -> tuple[str, ...]:
    """What in the report is no number, or does not agree with its own samples; empty where all does."""
    n, found = report.clean.n, []
    if not is_number(report.clean):
        found.append("clean accuracy is not a number")
    elif not _counts(report.clean, report.correct_samples):
        found.append("clean accuracy does not agree with the samples that were correct")
    for threat in report.threats:
        if not is_number(threat.robust):
            found.append(f"robust accuracy under {threat.threat} is not a number")
        elif threat.robust.n != n:
            found.append(f"{threat.robust.n} samples were measured under {threat.threat}, {n} on unchanged inputs")
        elif not _counts(threat.robust, threat.held):
            found.append(f"robust accuracy under {threat.threat} does not agree with the samples that stood")
    return tuple(found)


def pair_is_whole(pair: PairReport) -> bool:
    """Whether the pair was measured, without problems, and its number agrees with its rows."""
    share = pair.flipped
    if pair.n == 0 or pair.problems or share is None or not is_number(share) or share.n != pair.n:
        return False
    return round(share.value * share.n) == len(pair.rows)


def is_number(share: Share) -> bool:
    """Whether the share and its interval are finite, in order and inside 0..1."""
    values = (0.0, share.lo, share.value, share.hi, 1.0)
    in_order = all(low <= high + ROUNDING for low, high in pairwise(values))
    return all(math.isfinite(value) for value in values) and in_order and share.n >= 1


def believed(check: Check, trust: Trust) -> Check:
    """The check as far as its number may be believed: void decides nothing, too kind does not pass."""
    if trust == "void" and check.outcome != "cannot tell":
        reason = f"{check.reason}, but the number is void"
        return Check(name=check.name, outcome="cannot tell", reason=reason)
    if trust == "too kind" and check.outcome == "pass":
        reason = f"{check.reason}, but the number may be too kind"
        return Check(name=check.name, outcome="cannot tell", reason=reason)
    return check


def _counts(share: Share, samples: Callable[[], np.ndarray]) -> bool:
    """Whether the samples' bits can be read and hold the share."""
    try:
        return int(samples().sum()) == round(share.value * share.n)
    except ValueError:
        return False
