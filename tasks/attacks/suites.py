"""Suites: the ordered attacks with all their parameters, and a digest that stands beside every number."""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, Field
from torch import Tensor

from tasks.attacks.apgd import apgd_ce
from tasks.attacks.fgsm import fgsm
from tasks.attacks.pgd import pgd
from tasks.errors import UnknownPart, WrongInput
from tasks.lookup import did_you_mean, lookup

Attack = Callable[..., Tensor]

ATTACKS: dict[str, Attack] = {"apgd-ce": apgd_ce, "fgsm": fgsm, "pgd": pgd}


class AttackConfig(BaseModel, frozen=True, extra="forbid"):
    """One attack by name, with the parameters that differ from its defaults."""

    name: str = Field(description="a name from the table, or 'package.module:function'")
    params: dict[str, float | int | str | bool] = Field(default_factory=dict, description="e.g. {steps: 100}")

    def function(self) -> Attack:
        """The attack with its parameters bound. Raises UnknownPart for a name or a parameter nobody knows."""
        attack = lookup("attack", self.name, ATTACKS)
        known = _defaults(attack)
        for key in self.params:
            if key not in known:
                raise UnknownPart(
                    f"attack {self.name!r} has no parameter {key!r}.{did_you_mean(key, known)} "
                    f"It takes: {', '.join(known) or 'none'}."
                )
        return partial(attack, **self.params)

    def resolved(self) -> dict[str, Any]:
        """Name, every parameter with its value, and the digest of the code where the attack is the user's."""
        attack = lookup("attack", self.name, ATTACKS)
        row: dict[str, Any] = {"name": self.name, "params": {**_defaults(attack), **self.params}}
        if self.name not in ATTACKS:
            row["source"] = _source_digest(attack)
        return row


class Suite(BaseModel, frozen=True, extra="forbid"):
    """Attacks in the order in which they run. A sample that one of them fools is not tried again."""

    name: str
    attacks: tuple[AttackConfig, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when an attack, its order or any parameter does."""
        rows = [attack.resolved() for attack in self.attacks]
        return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]


SUITES: dict[str, Suite] = {
    "quick": Suite(name="quick", attacks=(AttackConfig(name="fgsm"), AttackConfig(name="pgd", params={"steps": 20}))),
    "standard": Suite(
        name="standard",
        attacks=(
            AttackConfig(name="fgsm"),
            AttackConfig(name="pgd", params={"steps": 40}),
            AttackConfig(name="apgd-ce", params={"steps": 100}),
        ),
    ),
}


def as_suite(suite: "str | Suite | Sequence[str | AttackConfig]") -> Suite:
    """A suite from its name, or from a list of attacks. Raises UnknownPart before anything runs."""
    if isinstance(suite, str):
        suite = lookup("suite", suite, SUITES)
    if not isinstance(suite, Suite):
        if not suite:
            raise WrongInput("an empty list of attacks measures nothing. Write suite='standard'.")
        attacks = tuple(AttackConfig(name=a) if isinstance(a, str) else a for a in suite)
        suite = Suite(name="custom", attacks=attacks)
    for attack in suite.attacks:
        attack.function()
    return suite


def _defaults(attack: Attack) -> dict[str, Any]:
    parameters = inspect.signature(attack).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _source_digest(attack: Attack) -> str:
    while isinstance(attack, partial):
        attack = attack.func
    return hashlib.sha256(inspect.getsource(attack).encode()).hexdigest()[:16]
