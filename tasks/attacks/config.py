"""Attacks by name with their parameters, and suites of them, with a digest that stands beside every number."""

import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from tasks.attacks import arms
from tasks.attacks.alone import Arm, Attack, alone, anywhere
from tasks.attacks.apgd import apgd_ce
from tasks.attacks.code import attack_code
from tasks.attacks.controls import noise, transfer
from tasks.attacks.crossings import crossings
from tasks.attacks.fgsm import fgsm
from tasks.attacks.fmn import fmn
from tasks.attacks.greedy import greedy
from tasks.attacks.hopskipjump import hopskipjump
from tasks.attacks.pgd import pgd
from tasks.attacks.sigma_zero import sigma_zero
from tasks.attacks.square import square
from tasks.attacks.sweep import sweep
from tasks.attacks.threat import Norm, ThreatModel
from tasks.errors import UnknownPart, WrongInput
from tasks.lookup import did_you_mean, imported, lookup

# What came later: a row that leaves these at their defaults has the digest, and the draws, that it had before.
LATER = ("near", "fewest", "growth", "free")
LATER_PARAMS = (("soft", 0.0), ("reach", 0.0))

# What takes part in the engine's search: (search, rows, *, parameters) -> None.
ARMS: dict[str, Arm] = {
    "classes": arms.classes,
    "crossings": crossings,
    "fab": arms.fab,
    "fmn": fmn,
    "greedy": greedy,
    "margin": arms.margin,
    "restarts": arms.restarts,
    "square": square,
    "sweep": sweep,
}

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}  # what a config can hold
LEAST: dict[str, int] = {  # of a number that an attack of ours takes: below 1 nothing is tried; 0 has a meaning
    **dict.fromkeys(("burst", "draws", "halvings", "horizon", "points", "queries", "steps", "tries", "width"), 1),
    **dict.fromkeys(("count", "cut", "p", "pairs", "reach", "slopes", "soft"), 0),
    "square queries": 2,  # the first is the look at the sample itself
}
MOST = {"p": 1.0}


ATTACKS: dict[str, Attack] = {
    name: anywhere(attack)
    for name, attack in {
        "apgd-ce": apgd_ce,
        "fgsm": fgsm,
        "hopskipjump": hopskipjump,
        "noise": noise,
        "pgd": pgd,
        "sigma-zero": sigma_zero,
        "transfer": transfer,
        **{name: alone(arm) for name, arm in ARMS.items()},
    }.items()
}


class AttackConfig(BaseModel, frozen=True, extra="forbid"):
    """One attack by name, the parameters that differ from its defaults, and which of the samples it is given."""

    name: str = Field(description="a name from the table, or 'package.module:function'")
    params: dict[str, float | int | str | bool] = Field(default_factory=dict, description="e.g. {steps: 100}")
    samples: Literal["all", "nearest", "drawn", "spare", "winding"] = Field(
        "all",
        description="all: every sample that stands, once; nearest: those of them that are nearest to falling, once; "
        "drawn: a few at a time, the nearest to falling first, taking turns with its neighbours in the table by what "
        "each earns per pass; spare: as drawn, once late turns gain; winding: as drawn, where slopes wind, in place of "
        "those of its neighbours that follow slopes",
    )
    share: float = Field(
        0.06,
        gt=0,
        le=1,
        description="nearest: how many, of all samples; drawn: samples per turn, of those that stand; growth times as "
        "many after a turn that gained",
    )
    near: float | None = Field(
        None,
        gt=0,
        le=1,
        description="drawn: a sample about to fall gets (1 + near) / near times the turns of one with the median "
        "margin; if empty, one turn more than it",
    )
    fewest: int = Field(8, ge=1, description="nearest, drawn: at least so many samples, if so many stand")
    growth: float = Field(2.0, ge=1, le=10, description="drawn: how much larger a turn is after one that gained")
    norms: tuple[Norm, ...] | None = Field(None, description="only under these norms; all if empty")
    free: int | None = Field(None, ge=1, description="only where a mask lets at most so many features change")

    @field_validator("params")
    @classmethod
    def _can_be_meant(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        attack = ATTACKS.get(info.data.get("name", ""))  # one of the user's own is imported later, and only if it runs
        if params and attack is not None:
            _check_values(info.data["name"], params, _parameters(attack))
        return params

    @property
    def in_turns(self) -> bool:
        """Whether it takes turns with its neighbours in the table."""
        return self.samples in ("drawn", "spare", "winding")

    def runs(self, threat: ThreatModel) -> bool:
        """Whether it has a part under this threat model."""
        few = self.free is None or (threat.mask is not None and sum(threat.mask) <= self.free)
        return few and (self.norms is None or threat.norm in self.norms)

    def function(self) -> Attack:
        """The attack with its parameters bound.

        Raises UnknownPart for a name or a parameter nobody knows, WrongInput for a value that cannot be meant.
        """
        return partial(self._known(), **self.params)

    def arm(self) -> Arm | None:
        """The arm with its parameters bound, or None for an attack that takes no part in the engine's search."""
        self._known()
        arm = ARMS.get(self.name)
        return partial(arm, **self.params) if arm else None

    def resolved(self) -> dict[str, Any]:
        """Every field and parameter with its value, and the digest of the code where the attack is the user's."""
        attack = lookup("attack", self.name, ATTACKS)
        unsaid = {name for name in LATER if getattr(self, name) == type(self).model_fields[name].default}
        params = {**_defaults(attack), **self.params}
        params = {key: value for key, value in params.items() if (key, value) not in LATER_PARAMS}
        row: dict[str, Any] = self.model_dump(exclude=unsaid) | {"params": params}
        if self.name not in ATTACKS:
            row["source"] = _source_digest(attack)
        return row

    def _known(self) -> Attack:
        attack = lookup("attack", self.name, ATTACKS)
        _check_function(self.name, attack)
        parameters, known = _parameters(attack), _defaults(attack)
        for key in self.params:
            if key not in known:
                raise UnknownPart(
                    f"attack {self.name!r} has no parameter {key!r}.{did_you_mean(key, known)} "
                    f"It takes: {', '.join(known) or 'none'}."
                )
        _check_values(self.name, self.params, parameters)
        if "starts" in known:
            arms.known_starts(str(self.params.get("starts", known["starts"])))
        if self.name == "transfer" and "surrogate" in self.params:
            imported("surrogate", str(self.params["surrogate"]))
        return attack


class End(BaseModel, frozen=True, extra="forbid"):
    """When the drawing ends: once `again` times the passes that its last success took have brought no other."""

    again: float | None = Field(
        1.0,
        gt=0,
        description="drawn: effort after the last success, as a multiple of that before it; effort is passes per "
        "sample that stands. If empty, the drawing goes on to a limit",
    )
    passes: float | None = Field(None, gt=0, description="drawn: no further turn beyond so many passes a sample")
    effort: float | None = Field(None, gt=0, description="drawn: no further turn beyond so much effort")
    whole: float | None = Field(
        None, gt=0, description="no further turn beyond so many passes a sample, those before the drawing counted too"
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.again is None and self.passes is None and self.effort is None and self.whole is None:
            raise ValueError("again is empty, so nothing ends the drawing. Give passes, effort or whole as a limit.")
        return self

    def reached(self, passes: float, effort: float) -> bool:
        """Whether a limit is reached by so many passes a sample, and so many per sample that stands."""
        return passes >= (self.passes or math.inf) or effort >= (self.effort or math.inf)

    def __str__(self) -> str:
        """In words, without a full stop."""
        words = [f"until {self.again:g} of the effort up to the last success brings no other"] if self.again else []
        words += [f"at most {self.passes:g} passes a sample"] if self.passes else []
        words += [f"at most {self.effort:g} passes per sample that stands"] if self.effort else []
        words += [f"at most {self.whole:g} passes a sample in all"] if self.whole else []
        return f"drawn {', '.join(words)}"


class Suite(End, frozen=True, extra="forbid"):
    """Attacks in the order in which they run. A sample that one of them fools is not tried again."""

    name: str
    attacks: tuple[AttackConfig, ...] = Field(min_length=1)
    ends: dict[Norm, End] = Field(default_factory=dict, description="another end of the drawing under these norms")

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when an attack's code, its place in the order or any parameter does."""
        rows = [attack.resolved() for attack in self.attacks]
        whole = {"attacks": rows, **self.model_dump(exclude={"name", "attacks"}), "code": attack_code()}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """The suite as a table: its digest, then a row for each attack with all parameters."""
        lines = [f"{self.name}, digest {self.digest}"]
        for attack in self.attacks:
            row = attack.resolved()
            said = row["params"] | {name: row[name] for name in LATER if name in row}
            params = " ".join(f"{key}={value}" for key, value in said.items())
            who = attack.samples if attack.samples == "all" else f"{attack.samples} {100 * attack.share:g}%"
            norms = " ".join(attack.norms) if attack.norms else "every norm"
            lines.append(f"  {attack.name:12}{who:11}  {params}  ({norms})")
        if any(attack.in_turns for attack in self.attacks):
            lines.append(f"  {super().__str__()}")
            lines += [f"  under {norm} {end}" for norm, end in self.ends.items()]
        return "\n".join(lines)

    def within(self, passes: float) -> Self:
        """The suite, in which no further turn begins once so many passes a sample are spent.

        Before the drawing, attacks on the nearest samples get what can be afforded; those on all are not cut short.
        Raises WrongInput where passes is not above 0.
        """
        if not passes > 0:
            raise WrongInput(f"passes={passes:g} leaves nothing to spend. Give what a sample may take, e.g. 20.")
        ends = {norm: end.model_copy(update={"whole": passes}) for norm, end in self.ends.items()}
        return self.model_copy(update={"whole": passes, "ends": ends})

    def end(self, threat: ThreatModel) -> End:
        """When the drawing ends under this threat model."""
        return self.ends.get(threat.norm, self)

    def under(self, threat: ThreatModel) -> tuple[AttackConfig, ...]:
        """The attacks that run under this threat model. Raises WrongInput where there is none."""
        rows = tuple(attack for attack in self.attacks if attack.runs(threat))
        if not rows:
            raise WrongInput(f"suite {self.name!r} holds no attack for {threat}. Write suite='standard'.")
        return rows


def _defaults(attack: Attack) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in _parameters(attack).items()}


def _parameters(attack: Attack) -> dict[str, inspect.Parameter]:
    """The parameters that have a default."""
    parameters = inspect.signature(attack).parameters.values()
    return {p.name: p for p in parameters if p.default is not inspect.Parameter.empty}


def _check_values(name: str, params: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raise WrongInput for a value of another type than its default, and for a number that our attack cannot use."""
    for key in (key for key in params if key in parameters):
        value, default, kinds = params[key], parameters[key].default, _kinds(parameters[key])
        if kinds and type(value) not in kinds and not (type(value) is int and float in kinds):
            raise WrongInput(
                f"attack {name!r}: {key}={value!r} is {KINDS.get(type(value), type(value).__name__)}. "
                f"Write {' or '.join(KINDS[kind] for kind in kinds)}"
                + (f", e.g. {key}={default!r}." if default is not None else ".")
            )
        if name in ATTACKS and type(value) in (int, float):
            _check_range(name, key, value)


def _check_range(name: str, key: str, value: float) -> None:
    least, most = LEAST.get(f"{name} {key}", LEAST.get(key, -math.inf)), MOST.get(key, math.inf)
    if least <= value <= most and math.isfinite(value):
        return
    why = ", which leaves nothing to try: any model would look robust" if least > 0 else ""
    until = f"from {least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
    raise WrongInput(f"attack {name!r}: {key}={value!r} is out of range{why}. Write {until}.")


def _kinds(parameter: inspect.Parameter) -> list[type]:
    """The types that a config may give it: the default's, and others that the annotation names; empty if any."""
    words = set(re.findall(r"\w+", str(parameter.annotation)))
    default = next((kind for kind in KINDS if isinstance(parameter.default, kind)), None)
    if "Any" in words or (default is None and parameter.default is not None):
        return []
    return [kind for kind in KINDS if kind is default or kind.__name__ in words]


def _check_function(name: str, attack: object) -> None:
    """Raise WrongInput for what is no function, since no digest would hold what it does, or cannot be called as one."""
    if not inspect.isroutine(inspect.unwrap(_unbound(attack))):
        raise WrongInput(
            f"attack {name!r} is a {type(attack).__name__} and no function, so that no digest would tell what it does. "
            "Write a function (model, x, y, *, threat, rng), and parameters as functools.partial of it."
        )
    try:
        inspect.signature(attack).bind("model", "x", "y", threat="threat", rng="rng")  # type: ignore[arg-type]
    except TypeError as error:
        instead = f"Write def {name.rpartition(':')[2]}(model, x, y, *, threat, rng), and a default for all else."
        raise WrongInput(f"attack {name!r} cannot be called: {error}. {instead}") from error


def _unbound(attack: Any) -> Any:
    while isinstance(attack, partial):
        attack = attack.func
    return attack


def _source_digest(attack: Attack) -> str:
    attack = _unbound(attack)
    return hashlib.sha256(inspect.getsource(attack).encode()).hexdigest()[:16]
