"""Verdicts: pure functions of reports and policy."""

from tasks.verdicts.decide import Check, Outcome, Policy, Verdict, judge

__all__ = ["Check", "Outcome", "Policy", "Verdict", "judge"]
