"""Findings in the order in which people should look at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tasks.posture.finding import Finding, State
from tasks.posture.findings import age_days, at, overdue

STANDING: tuple[State, ...] = ("regressed", "open", "mitigated")  # neither mended nor accepted, the gravest first
STATES: tuple[State, ...] = (*STANDING, "accepted", "verified")


@dataclass(frozen=True)
class Listed:
    """A finding as it stands now, its age in whole days, and whether it has stood for longer than it may."""

    finding: Finding
    days: int
    overdue: bool

    @property
    def stands(self) -> bool:
        """Whether it is neither mended nor accepted."""
        return self.finding.state in STANDING

    @property
    def versions(self) -> str:
        """Those between which it is known."""
        first, last = self.finding.first_version, self.finding.last_version
        known = f"version {first}" if first == last else f"versions {first} to {last}"
        return f"{known}; {self.finding.state} as of version {last}"

    @property
    def ends(self) -> str:
        """What became of it, in a few words; empty while it stands."""
        finding = self.finding
        if finding.state == "accepted":
            return f"accepted by {finding.owner} until {finding.expires}: {finding.reason}"
        if finding.state == "verified":
            closed = "closed" if finding.closed_at else "no version that has it mended is champion yet"
            return f"mended in version {finding.verified_version}, {closed}"
        return ""

    @property
    def costs(self) -> str:
        """What it took an attacker, per fooled sample; empty where nobody counted."""
        cost = self.finding.cost
        if cost is None:
            return ""
        return f"{cost.queries:,.0f} queries, {cost.gradients:,.0f} gradients, {cost.seconds:,.2g} s per fooled sample"


def by_age(findings: Sequence[Finding], now: datetime, *, max_days: float | None = None) -> list[Listed]:
    """The overdue ones first, then by state (what stands before what is dealt with), then the oldest first.

    max_days: how long a finding may stand; None, and none is overdue.
    """
    late = {finding.id for finding in overdue(findings, max_days, now)} if max_days is not None else set()
    standing = [at(finding, now) for finding in findings]
    listed = [Listed(finding, max(0, int(age_days(finding, now))), finding.id in late) for finding in standing]
    return sorted(listed, key=lambda one: (not one.overdue, STATES.index(one.finding.state), -one.days, one.finding.id))
