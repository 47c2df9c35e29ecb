"""Suites: the ordered attacks with all their parameters, and a digest that stands beside every number."""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn

from tasks.attacks import arms
from tasks.attacks.apgd import apgd_ce
from tasks.attacks.controls import noise, transfer
from tasks.attacks.fgsm import fgsm
from tasks.attacks.hopskipjump import hopskipjump
from tasks.attacks.pgd import pgd
from tasks.attacks.search import Search
from tasks.attacks.sigma_zero import sigma_zero
from tasks.attacks.square import square
from tasks.attacks.threat import Norm, ThreatModel
from tasks.errors import UnknownPart, WrongInput
from tasks.lookup import did_you_mean, lookup

Attack = Callable[..., Tensor]
Arm = Callable[..., None]

# What takes part in the engine's search: (search, rows, *, parameters) -> None.
ARMS: dict[str, Arm] = {
    "classes": arms.classes,
    "fab": arms.fab,
    "margin": arms.margin,
    "restarts": arms.restarts,
    "square": square,
}


def alone(arm: Arm) -> Attack:
    """The arm as an attack of its own: (model, x, y, *, threat, rng, parameters) -> x_adv [B, ...].

    Returns for each sample the input that fools, or else the one of smallest margin.
    """

    def attack(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, **params: Any) -> Tensor:
        search = Search(model, x, y, threat=threat, rng=rng)
        arm(search, torch.arange(len(x), device=x.device), **params)
        return search.nearest

    own = [p for p in inspect.signature(arm).parameters.values() if p.kind is p.KEYWORD_ONLY]
    given = [p for p in inspect.signature(attack).parameters.values() if p.kind is not p.VAR_KEYWORD]
    attack.__signature__ = inspect.Signature([*given, *own])  # type: ignore[attr-defined]
    attack.__name__, attack.__doc__ = arm.__name__, arm.__doc__
    return attack


ATTACKS: dict[str, Attack] = {
    "apgd-ce": apgd_ce,
    "fgsm": fgsm,
    "hopskipjump": hopskipjump,
    "noise": noise,
    "pgd": pgd,
    "sigma-zero": sigma_zero,
    "transfer": transfer,
    **{name: alone(arm) for name, arm in ARMS.items()},
}


class AttackConfig(BaseModel, frozen=True, extra="forbid"):
    """One attack by name, the parameters that differ from its defaults, and which of the samples it is given."""

    name: str = Field(description="a name from the table, or 'package.module:function'")
    params: dict[str, float | int | str | bool] = Field(default_factory=dict, description="e.g. {steps: 100}")
    samples: Literal["all", "nearest", "drawn"] = Field(
        "all",
        description="all that stand; nearest: in chunks from the smallest margin outwards, until a chunk gives nothing; "
        "drawn: the same, taking turns with its neighbours in the table by what each earns per pass",
    )
    chunk: int = Field(24, ge=1, description="samples per chunk")
    probe: int = Field(0, ge=0, description="far samples tried at random; if one falls, all are tried")
    patience: int = Field(1, ge=1, description="drawn: how many walks in a row may give nothing")
    norms: tuple[Norm, ...] | None = Field(None, description="only under these norms; all if empty")

    def function(self) -> Attack:
        """The attack with its parameters bound. Raises UnknownPart for a name or a parameter nobody knows."""
        return partial(self._known(), **self.params)

    def arm(self) -> Arm | None:
        """The arm with its parameters bound, or None for an attack that takes no part in the engine's search."""
        self._known()
        arm = ARMS.get(self.name)
        return partial(arm, **self.params) if arm else None

    def resolved(self) -> dict[str, Any]:
        """Every field and parameter with its value, and the digest of the code where the attack is the user's."""
        attack = lookup("attack", self.name, ATTACKS)
        row: dict[str, Any] = self.model_dump() | {"params": {**_defaults(attack), **self.params}}
        if self.name not in ATTACKS:
            row["source"] = _source_digest(attack)
        return row

    def _known(self) -> Attack:
        attack = lookup("attack", self.name, ATTACKS)
        known = _defaults(attack)
        for key in self.params:
            if key not in known:
                raise UnknownPart(
                    f"attack {self.name!r} has no parameter {key!r}.{did_you_mean(key, known)} "
                    f"It takes: {', '.join(known) or 'none'}."
                )
        return attack


class Suite(BaseModel, frozen=True, extra="forbid"):
    """Attacks in the order in which they run. A sample that one of them fools is not tried again."""

    name: str
    attacks: tuple[AttackConfig, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when an attack, its order or any parameter does."""
        rows = [attack.resolved() for attack in self.attacks]
        return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def under(self, threat: ThreatModel) -> tuple[AttackConfig, ...]:
        """The attacks that run under this threat model. Raises WrongInput where there is none."""
        rows = tuple(a for a in self.attacks if a.norms is None or threat.norm in a.norms)
        if not rows:
            raise WrongInput(f"suite {self.name!r} holds no attack for {threat}. Write suite='standard'.")
        return rows


def _row(name: str, params: dict[str, Any], **how: Any) -> AttackConfig:
    return AttackConfig(name=name, params=params, **how)


SPARSE: tuple[Norm, ...] = ("l0", "l0-pixels")
DENSE: tuple[Norm, ...] = ("linf", "l2", "l1", "unbounded")
ALL = 10_000  # a chunk that holds a whole cell

SUITES: dict[str, Suite] = {
    "quick": Suite(
        name="quick",
        attacks=(
            _row("margin", {"steps": 6}),
            _row("classes", {"steps": 6, "chunk": 96}, samples="nearest", chunk=ALL),
            _row("restarts", {"steps": 10}, samples="drawn", chunk=16, probe=16, norms=DENSE),
            _row("fab", {"steps": 10, "count": 2}, samples="drawn", chunk=16, norms=("l2", "l1")),
        ),
    ),
    "standard": Suite(
        name="standard",
        attacks=(
            _row("margin", {"steps": 8}),
            _row("sigma-zero", {"steps": 100}, norms=SPARSE),
            _row("classes", {"steps": 10, "chunk": 128}, samples="drawn", chunk=ALL),
            _row("restarts", {"steps": 24}, samples="drawn", chunk=24, probe=16, patience=3),
            _row("fab", {"steps": 15, "count": 2}, samples="drawn", chunk=12, norms=("linf", "unbounded")),
            _row("fab", {"steps": 30, "count": 3}, samples="drawn", chunk=24, patience=2, norms=("l2", "l1")),
            _row("square", {"queries": 40}, samples="drawn", chunk=8, probe=8),
        ),
    ),
    "deep": Suite(
        name="deep",
        attacks=(
            _row("margin", {"steps": 20}),
            _row("apgd-ce", {"steps": 100}),
            _row("sigma-zero", {"steps": 300}, norms=SPARSE),
            _row("classes", {"steps": 20}),
            _row("restarts", {"steps": 40}, samples="drawn", chunk=64, probe=64, patience=10),
            _row("fab", {"steps": 60, "count": 9}, samples="drawn", chunk=64, probe=32, patience=3),
            _row("square", {"queries": 1000}, samples="drawn", chunk=64, probe=64, patience=3),
            _row("hopskipjump", {"queries": 2000}, samples="nearest", chunk=64),
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
