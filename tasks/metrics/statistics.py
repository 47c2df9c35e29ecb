"""Intervals and paired comparisons of proportions."""

from statistics import NormalDist
from typing import Self

from pydantic import BaseModel, Field


class Share(BaseModel, frozen=True, extra="forbid"):
    """A proportion of n samples with its confidence interval, all in 0..1."""

    value: float = Field(ge=0, le=1)
    lo: float = Field(ge=0, le=1)
    hi: float = Field(ge=0, le=1)
    n: int = Field(ge=1)

    @classmethod
    def of(cls, count: int, n: int, *, confidence: float = 0.95) -> Self:
        """The share count / n with its Wilson interval."""
        lo, hi = wilson(count, n, confidence=confidence)
        return cls(value=count / n, lo=lo, hi=hi, n=n)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lo:.3f}, {self.hi:.3f}]"


def wilson(count: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided Wilson score interval of count / n, inside 0..1.

    Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953. Raises ValueError unless 0 <= count <= n, n >= 1.
    """
    if not (n >= 1 and 0 <= count <= n):
        raise ValueError(f"count={count} of n={n} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (count + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (count * (n - count) / n + z * z / 4) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_loss(lost: int, gained: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Estimate and one-sided upper bound of (lost - gained) / n for two models on the same n samples.

    lost counts samples that only the old model withstood, gained those that only the new one did. The bound is
    Agresti and Min's adjusted Wald interval for matched pairs (2005, https://doi.org/10.1002/sim.1781): half a
    sample is added to each of the four cells, so that it stays honest where few pairs differ.
    """
    if not (n >= 1 and lost >= 0 and gained >= 0 and lost + gained <= n):
        raise ValueError(f"lost={lost} and gained={gained} of n={n} are no matched pairs")
    b, c, m = lost + 0.5, gained + 0.5, n + 2
    shift = (b - c) / m
    error = ((b + c) - (b - c) ** 2 / m) ** 0.5 / m
    return (lost - gained) / n, shift + NormalDist().inv_cdf(confidence) * error
