"""What an installation is asked, and what it answered: findings, each with the mend for it."""

from tasks.health.finding import Finding, Outcome, bounded, failed, fine, skipped, warned

__all__ = ["Finding", "Outcome", "bounded", "failed", "fine", "skipped", "warned"]
