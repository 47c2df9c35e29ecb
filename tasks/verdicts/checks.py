"""Check and Verdict: questions with their answers, and what they come to together."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field

Outcome = Literal["pass", "fail", "cannot tell"]


class Check(BaseModel, frozen=True, extra="forbid"):
    """One question that the policy asks, and its answer."""

    name: str
    outcome: Outcome
    reason: str


class Verdict(BaseModel, frozen=True, extra="forbid"):
    """The answer for one model. Any failed check fails it; without one, any open check leaves it open."""

    outcome: Outcome
    checks: tuple[Check, ...] = Field(min_length=1)

    @classmethod
    def of(cls, checks: Sequence[Check]) -> Self:
        """What the checks come to together."""
        outcomes = [check.outcome for check in checks]
        worst: Outcome = next((o for o in ("fail", "cannot tell") if o in outcomes), "pass")
        return cls(outcome=worst, checks=tuple(checks))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not a pass, or for a pass what was shown."""
        decisive = [c for c in self.checks if c.outcome == self.outcome]
        return tuple(c.reason for c in decisive)
