"""What the adversary may do: a norm, a radius and the box that valid inputs live in."""

import hashlib
import math
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

Norm = Literal["linf", "l2"]


def _as_written_in_papers(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.strip()))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no radius. Write 0.03 or '8/255'.") from None


Radius = Annotated[
    float,
    BeforeValidator(_as_written_in_papers, json_schema_input_type=float | str),
    Field(gt=0, allow_inf_nan=False, description="in the units of the input: 0.03 or '8/255'"),
]


class ThreatModel(BaseModel, frozen=True, extra="forbid"):
    """The changes that an attacker may make to an input: any within eps in the norm, inside the bounds.

    Madry et al., 2018, section 2, https://arxiv.org/abs/1706.06083.
    """

    norm: Norm = Field("linf", description="linf: every feature by eps; l2: Euclidean length eps")
    eps: Radius
    bounds: tuple[float, float] = Field((0.0, 1.0), description="smallest and largest value an input may hold")

    @model_validator(mode="after")
    def _leaves_some_inputs_out_of_reach(self) -> Self:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bounds={self.bounds} are empty. Write the smallest value first, e.g. [0, 1].")
        if self.norm == "linf" and self.eps >= high - low:
            raise ValueError(
                f"eps={self.eps:g} spans the whole input range {low:g}..{high:g}, so any input could become "
                f"any other. For 8-bit images scaled to 0..1 write eps='{self.eps:g}/255'."
            )
        if self.norm == "l2" and self.bounds == (0.0, 1.0) and self.eps > 100:
            raise ValueError(
                f"eps={self.eps:g} in L2 is larger than most images. For 8-bit units write eps='{self.eps:g}/255'."
            )
        return self

    @property
    def name(self) -> str:
        """A metric key's part, e.g. linf_0.031 (https://mlflow.org/docs allows letters, digits, _ - . : /)."""
        return f"{self.norm}_{self.eps:.4g}"

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when any field does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{'L-inf' if self.norm == 'linf' else 'L2'} {self.eps:.4g}"
