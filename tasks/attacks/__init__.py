"""Attacks are functions: (model, x, y, *, threat, rng) -> x_adv. To add one, write it and name it here."""

from tasks.attacks.apgd import apgd_ce
from tasks.attacks.config import ATTACKS, AttackConfig, Suite
from tasks.attacks.fgsm import fgsm
from tasks.attacks.pgd import pgd
from tasks.attacks.suites import SUITES, as_suite
from tasks.attacks.threat import ThreatModel

__all__ = ["ATTACKS", "SUITES", "AttackConfig", "Suite", "ThreatModel", "apgd_ce", "as_suite", "fgsm", "pgd"]
