"""Verdicts: pure functions of reports and policy."""

from tasks.verdicts.champion import Asked, Champion, why_unusable
from tasks.verdicts.checks import Check, Outcome, Verdict
from tasks.verdicts.decide import judge
from tasks.verdicts.policy import Policy

__all__ = ["Asked", "Champion", "Check", "Outcome", "Policy", "Verdict", "judge", "why_unusable"]
