"""judge(): pass, fail or cannot tell, with the reasons. Fails closed: no verdict is better than a kind one."""

import math
from typing import Literal

from pydantic import BaseModel, Field

from tasks.metrics import RobustnessReport, Share, ThreatReport, paired_loss

Outcome = Literal["pass", "fail", "cannot tell"]
UnitInterval = Field(ge=0, le=1)


class Policy(BaseModel, frozen=True, extra="forbid"):
    """The numbers that a verdict needs. A floor is held against the interval's end, not against the estimate."""

    floor: float = Field(0.5, ge=0, le=1, description="robust accuracy, under every threat model")
    floors: dict[str, float] = Field(default_factory=dict, description="per threat model, e.g. {linf_0.1: 0.6}")
    clean_floor: float = Field(0.8, ge=0, le=1, description="accuracy on unchanged inputs")
    tolerance: float = Field(0.03, ge=0, le=1, description="robust accuracy that may be lost against the champion")
    min_samples: int = Field(100, ge=1, description="fewer samples than this decide nothing")
    max_rounds: int = Field(2, ge=0, description="how often hardening is tried")


class Check(BaseModel, frozen=True, extra="forbid"):
    """One question that the policy asks, and its answer."""

    name: str
    outcome: Outcome
    reason: str


class Verdict(BaseModel, frozen=True, extra="forbid"):
    """The answer for one model. Any failed check fails it; without one, any open check leaves it open."""

    outcome: Outcome
    checks: tuple[Check, ...] = Field(min_length=1)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not a pass, or for a pass what was shown."""
        decisive = [c for c in self.checks if c.outcome == self.outcome]
        return tuple(c.reason for c in decisive)


def judge(report: RobustnessReport, policy: Policy, champion: RobustnessReport | None = None) -> Verdict:
    """The verdict on a report: floors, sample size, problems, and the loss against the champion if there is one."""
    checks = [_enough(report, policy), _floor("clean accuracy", report.clean, policy.clean_floor)]
    for threat in report.threats:
        checks.append(_sound(threat))
        floor = policy.floors.get(threat.threat.name, policy.floor)
        checks.append(_floor(f"robust accuracy under {threat.threat}", threat.robust, floor))
    unknown = set(policy.floors) - {threat.threat.name for threat in report.threats}
    if unknown:
        missing = f"policy.floors names {', '.join(sorted(unknown))}, which was not measured"
        checks.append(Check(name="coverage", outcome="cannot tell", reason=missing))
    if champion is not None:
        checks += _against(champion, report, policy)
    outcomes = [check.outcome for check in checks]
    worst: Outcome = next((o for o in ("fail", "cannot tell") if o in outcomes), "pass")
    return Verdict(outcome=worst, checks=tuple(checks))


def _floor(what: str, share: Share, floor: float) -> Check:
    figure = f"{what} {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]"
    if not all(math.isfinite(v) for v in (share.value, share.lo, share.hi)):
        return Check(name=what, outcome="cannot tell", reason=f"{what} is not a number")
    if share.lo >= floor:
        return Check(name=what, outcome="pass", reason=f"{figure} clears the floor of {floor:.0%}")
    if share.hi < floor:
        return Check(name=what, outcome="fail", reason=f"{figure} is below the floor of {floor:.0%}")
    reason = f"{figure} straddles the floor of {floor:.0%}: {share.n} samples are too few to decide"
    return Check(name=what, outcome="cannot tell", reason=reason)


def _enough(report: RobustnessReport, policy: Policy) -> Check:
    n = report.clean.n
    if n >= policy.min_samples:
        return Check(name="sample size", outcome="pass", reason=f"{n} samples were measured")
    reason = f"{n} samples were measured, the policy asks for {policy.min_samples}"
    return Check(name="sample size", outcome="cannot tell", reason=reason)


def _sound(threat: ThreatReport) -> Check:
    name = f"attacks under {threat.threat}"
    if threat.problems:
        return Check(name=name, outcome="cannot tell", reason="; ".join(threat.problems))
    names = ", ".join(row.name for row in threat.attacks if row.tried)
    if not names:
        return Check(name=name, outcome="cannot tell", reason=f"no attack tried a sample under {threat.threat}")
    return Check(name=name, outcome="pass", reason=f"{names} ran to the end under {threat.threat}")


def _against(champion: RobustnessReport, report: RobustnessReport, policy: Policy) -> list[Check]:
    difference = report.comparable_with(champion)
    if difference:
        reason = f"the champion was measured with another {difference}; measure it again before comparing"
        return [Check(name="champion", outcome="cannot tell", reason=reason)]
    return [
        _no_worse(f"robust accuracy under {mine.threat}", mine, theirs, report.confidence, policy)
        for mine, theirs in zip(report.threats, champion.threats, strict=True)
    ]


def _no_worse(what: str, mine: ThreatReport, theirs: ThreatReport, confidence: float, policy: Policy) -> Check:
    held, before = mine.held(), theirs.held()
    lost, gained = int((before & ~held).sum()), int((held & ~before).sum())
    loss, bound = paired_loss(lost, gained, len(held), confidence=confidence)
    figure = (
        f"against the champion, {what}: {lost} samples lost, {gained} gained, loss {loss:+.1%} (at most {bound:+.1%})"
    )
    if bound <= policy.tolerance:
        outcome: Outcome = "pass"
    else:
        outcome = "fail" if loss > policy.tolerance else "cannot tell"
    return Check(name=f"champion, {what}", outcome=outcome, reason=f"{figure}; tolerated {policy.tolerance:.0%}")
