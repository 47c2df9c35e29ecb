"""The comparison with the champion: not worse by more than the policy tolerates, on the same samples."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, Field

from tasks.attacks import ThreatModel
from tasks.metrics import RobustnessReport, mcnemar, paired_loss
from tasks.verdicts.checks import Check, Outcome
from tasks.verdicts.policy import Policy
from tasks.verdicts.trust import believed, trust_in_clean, trust_under

ASKED = "champion's questions"  # how the check is called
CLOCKS_DIFFER = timedelta(days=1)  # a timestamp further ahead than this is a wrong one


class Asked(BaseModel, frozen=True, extra="forbid"):
    """What a version was held against: threat models, and pairs [source class, target class]."""

    threats: tuple[ThreatModel, ...] = ()
    critical_pairs: tuple[tuple[int, int], ...] = ()
    unreadable: str = Field("", description="what cannot be read, so that there may be more of them; empty if nothing")

    @classmethod
    def of(cls, reports: Iterable[RobustnessReport], unreadable: str = "") -> Self:
        """What these reports answer, together."""
        threats = [threat for report in reports for threat in report.threats]
        pairs = [(pair.source, pair.target) for threat in threats for pair in threat.pairs]
        return cls(
            threats=tuple(dict.fromkeys(threat.threat for threat in threats)),
            critical_pairs=tuple(dict.fromkeys(pairs)),
            unreadable=unreadable,
        )


class Champion(BaseModel, frozen=True, extra="forbid"):
    """The version that others are compared with, and what is known of it on the same samples."""

    version: int = Field(ge=1)
    evidence: str = Field("", description="SHA-256 of its newest evidence; empty where it has none")
    report: RobustnessReport
    asked: Asked = Field(Asked(), description="what it was asked when it became champion")

    @property
    def facts(self) -> dict[str, Any]:
        """What evidence says of it."""
        return {"version": self.version, "evidence": self.evidence, "weights_digest": self.report.weights_digest}


def why_unusable(champion: RobustnessReport, *, max_age_days: float, now: datetime | None = None) -> str | None:
    """Why the champion's report can be compared with nothing until it is measured again; None if it can be."""
    try:
        measured = datetime.fromisoformat(champion.measured_at)
    except ValueError:
        return f"the champion's report does not say when it was measured ({champion.measured_at!r})"
    if measured.tzinfo is None:
        return f"the champion's report names no time zone for when it was measured ({champion.measured_at!r})"
    age = (now or datetime.now(UTC)).astimezone(UTC) - measured
    if age < -CLOCKS_DIFFER:
        return f"the champion's report was measured in the future ({champion.measured_at})"
    if age > timedelta(days=max_age_days):
        days = round(age / timedelta(days=1), 1)
        return f"the champion was measured {days:g} days ago, the policy allows {max_age_days:g}"
    doubtful = next((t.threat for t in champion.threats if trust_under(champion, t) != "sound"), None)
    return f"the champion's robust accuracy under {doubtful} is not sound, or nobody checked" if doubtful else None


def against(champion: RobustnessReport, report: RobustnessReport, policy: Policy, now: datetime | None) -> list[Check]:
    """One check for clean accuracy and one for each threat model, or a single one that says why nothing is compared."""
    unusable = why_unusable(champion, max_age_days=policy.max_age_days, now=now)
    difference = report.comparable_with(champion)
    if unusable is None and difference:
        unusable = f"the champion was measured with another {difference}"
    if unusable:
        reason = f"{unusable}; measure it again before comparing"
        return [Check(name="champion", outcome="cannot tell", reason=reason)]
    if trust_in_clean(report) == "void":
        reason = "the numbers are void, so they are not compared with the champion's"
        return [Check(name="champion", outcome="cannot tell", reason=reason)]
    now_right, then_right = report.correct_samples(), champion.correct_samples()
    same = report.weights_digest != "" and _network(report) == _network(champion)
    checks = [_no_worse("clean accuracy", now_right, then_right, report.confidence, policy.clean_budget, same)]
    for mine, theirs in zip(report.threats, champion.threats, strict=True):
        what = f"robust accuracy under {mine.threat}"
        check = _no_worse(what, mine.held(), theirs.held(), report.confidence, policy.tolerance, same)
        checks.append(believed(check, trust_under(report, mine)))
    return checks


def asks_as_much(report: RobustnessReport, asked: Asked, policy: Policy) -> list[Check]:
    """Whether the report answers all that the champion was asked: easier questions make no better model.

    Empty where the policy lets a version be asked less.
    """
    if policy.may_ask_less:
        return []
    here = [threat.threat for threat in report.threats]
    pairs = {(pair.source, pair.target) for threat in report.threats for pair in threat.pairs}
    missing = [str(before) for before in asked.threats if not any(threat.covers(before) for threat in here)]
    missing += [f"class {one} taken for {other}" for one, other in asked.critical_pairs if (one, other) not in pairs]
    or_less = "or let a version take its place with less, this once: policy.may_ask_less=true"
    if asked.unreadable:
        reason = f"what the champion was asked cannot be read ({asked.unreadable}); restore it, {or_less}"
    elif missing:
        named = ", ".join(dict.fromkeys(missing))
        reason = f"the champion passed under {named}, which was not asked here; ask for it too, {or_less}"
    else:
        return [Check(name=ASKED, outcome="pass", reason="what the champion was asked was asked again")]
    return [Check(name=ASKED, outcome="cannot tell", reason=reason)]


def _network(report: RobustnessReport) -> tuple[str, str]:
    """What computes the model's answers: its weights and its code."""
    return report.weights_digest, report.model_code


def _no_worse(
    what: str, held: np.ndarray, before: np.ndarray, confidence: float, tolerated: float, same: bool
) -> Check:
    """The paired comparison on the same samples: held [N] now, before [N] by the champion; same: of one network."""
    lost, gained = int((before & ~held).sum()), int((held & ~before).sum())
    loss, bound = paired_loss(lost, gained, len(held), confidence=confidence)
    figure = (
        f"against the champion, {what}: {lost} samples lost, {gained} gained, loss {loss:+.1%} (at most {bound:+.1%}, "
        f"McNemar's p {mcnemar(lost, gained):.2g}); tolerated {tolerated:.0%}"
    )
    if same and lost == 0:
        told = f"against the champion, {what}: the very same weights, and of {len(held)} samples none lost"
        return Check(name=f"champion, {what}", outcome="pass", reason=told)
    if bound <= tolerated:
        outcome: Outcome = "pass"
    else:
        outcome = "fail" if loss > tolerated else "cannot tell"
    return Check(name=f"champion, {what}", outcome=outcome, reason=figure)
