"""Attacks are functions: (model, x, y, *, threat, rng) -> x_adv. To add one, write it and name it here."""

from tasks.attacks.config import ATTACKS, AttackConfig, Suite
from tasks.attacks.suites import SUITES, as_suite
from tasks.attacks.threat import ThreatModel

apgd_ce, fgsm, pgd = ATTACKS["apgd-ce"], ATTACKS["fgsm"], ATTACKS["pgd"]

__all__ = ["ATTACKS", "SUITES", "AttackConfig", "Suite", "ThreatModel", "apgd_ce", "as_suite", "fgsm", "pgd"]
