"""What the adversary may do: a norm, a radius and the box that valid inputs live in."""

import hashlib
import math
import re
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tasks.lookup import did_you_mean

Norm = Literal["linf", "l2", "l1", "l0", "l0-pixels", "unbounded"]
NAMES: dict[Norm, str] = {"linf": "L-inf", "l2": "L2", "l1": "L1", "l0": "L0", "l0-pixels": "L0 in pixels"}


def _as_written_in_papers(value: object) -> object:
    radius = value
    if isinstance(value, str):
        try:
            radius = float(Fraction(value.strip()))
        except (ValueError, ZeroDivisionError):
            radius = math.nan
    if isinstance(radius, bool) or (isinstance(radius, float) and math.isnan(radius)):
        raise ValueError(f"eps={value!r} is no radius. Write 0.03 or '8/255'.")
    if isinstance(radius, int | float) and radius <= 0:
        raise ValueError(
            f"eps={value!r} allows no change, so any model would look robust. Write a radius above 0, e.g. '8/255'; "
            "accuracy without an attacker stands beside every result as clean_accuracy."
        )
    return radius


Radius = Annotated[
    float,
    BeforeValidator(_as_written_in_papers, json_schema_input_type=float | str),
    Field(gt=0, allow_inf_nan=False, description="in the units of the input: 0.03 or '8/255'; l0: how many"),
]


class ThreatModel(BaseModel, frozen=True, extra="forbid"):
    """The changes that an attacker may make to an input: any within eps in the norm, inside the bounds.

    Madry et al., 2018, section 2, https://arxiv.org/abs/1706.06083. `unbounded` is a control, not a threat: every
    valid input is in reach, so an attack that fails there is broken.
    """

    norm: Norm = Field(
        "linf",
        description="linf: every feature by eps; l2: Euclidean length; l1: sum of changes; l0: number of features; "
        "l0-pixels: number of pixels, all channels of one counting once; unbounded: anything, needs no eps",
    )
    eps: Radius
    bounds: tuple[float, float] = Field((0.0, 1.0), description="smallest and largest value an input may hold")
    scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(
        None, description="one number per feature: changes are measured in it, so linf allows eps * scale"
    )
    mask: tuple[bool, ...] | None = Field(None, description="one flag per feature: true where it may be changed")

    @field_validator("norm", mode="before")
    @classmethod
    def _is_known(cls, norm: Any) -> Any:
        known = get_args(Norm)
        if not isinstance(norm, str) or norm in known:
            return norm
        plain = re.sub(r"[^a-z0-9]", "", norm.lower())  # L2, L-inf
        hint = f" Did you mean {plain!r}?" if plain in known else did_you_mean(norm, known)
        raise ValueError(f"unknown norm {norm!r}.{hint} Known: {', '.join(known)}.")

    @model_validator(mode="before")
    @classmethod
    def _everything_is_in_reach(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("norm") == "unbounded" and values.get("eps") in (None, math.inf):
            low, high = values.get("bounds", (0.0, 1.0))
            return values | {"eps": high - low}
        return values

    @model_validator(mode="after")
    def _leaves_some_inputs_out_of_reach(self, info: ValidationInfo) -> Self:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bounds={self.bounds} are empty. Write the smallest value first, e.g. [0, 1].")
        if self.norm == "linf" and self.scale is None and self.eps >= high - low:
            raise ValueError(
                f"eps={self.eps:g} spans the whole input range {low:g}..{high:g}, so any input could become "
                f"any other. For 8-bit images scaled to 0..1 write eps='{self.eps:g}/255'; for that very control "
                "write norm='unbounded'."
            )
        if self.norm == "l2" and self.bounds == (0.0, 1.0) and self.eps > 100:
            raise ValueError(
                f"eps={self.eps:g} in L2 is larger than most images. For 8-bit units write eps='{self.eps:g}/255'."
            )
        if self.norm.startswith("l0") and (self.eps < 1 or self.eps != int(self.eps)):
            raise ValueError(f"eps={self.eps:g} in L0 is a number of changes. Write a whole number, 1 or more.")
        stored = info.mode == "json"  # the user's own words come as Python's values; evidence is read as it was written
        if self.norm == "unbounded" and not stored and not math.isclose(self.eps, high - low, rel_tol=1e-6):
            raise ValueError(
                f"unbounded takes no eps, but eps={self.eps:g} was given: every input within {low:g}..{high:g} is in "
                f"reach. Leave eps out, or write norm='linf', eps={self.eps:g}."
            )
        if self.norm == "unbounded" and self.scale is not None:
            raise ValueError("scale means nothing where there is no bound. Leave it out, or write norm='linf'.")
        if self.mask is not None and not any(self.mask):
            raise ValueError("mask lets the attacker change nothing. Write true for one feature at least.")
        if self.mask and self.scale and len(self.mask) != len(self.scale):
            raise ValueError(f"mask has {len(self.mask)} features, scale {len(self.scale)}. Give both one per feature.")
        return self

    @property
    def features(self) -> int | None:
        """How many features scale or mask describe; None if neither is given."""
        return next((len(part) for part in (self.scale, self.mask) if part is not None), None)

    @property
    def name(self) -> str:
        """A metric key's part, e.g. linf_0.031 (https://mlflow.org/docs allows letters, digits, _ - . : /)."""
        if self.norm == "unbounded":
            return "unbounded"
        special = f"_{self.digest[:6]}" if self.features else ""
        return f"{self.norm}_{self.eps:.4g}{special}"

    def covers(self, other: "ThreatModel") -> bool:
        """Whether it allows every change that the other allows. Those of another norm or scale are not compared."""
        if (self.norm, self.scale) != (other.norm, other.scale) or self.eps < other.eps:
            return False
        wide = self.bounds[0] <= other.bounds[0] and self.bounds[1] >= other.bounds[1]
        if self.mask is None or other.mask is None:
            return wide and self.mask is None
        same = len(self.mask) == len(other.mask)
        return wide and same and all(mine >= theirs for mine, theirs in zip(self.mask, other.mask, strict=True))

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when any field does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def __str__(self) -> str:
        if self.norm == "unbounded":
            return "no bound"
        parts = [what for what, given in (("scaled", self.scale), ("masked", self.mask)) if given]
        return f"{NAMES[self.norm]} {self.eps:.4g}" + (f" ({', '.join(parts)})" if parts else "")
