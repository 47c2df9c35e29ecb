"""Intervals of proportions, paired comparisons, sample sizes, many tests at once."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, mean, stdev
from typing import Self

from pydantic import BaseModel, Field

from tasks.errors import WrongInput

MOST = 10_000_000  # samples; a question that needs more is answered with an error


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


class Spread(BaseModel, frozen=True, extra="forbid"):
    """One robust accuracy measured with several attack seeds, all in 0..1; sd is of the sample, 0 for one seed."""

    values: tuple[float, ...] = Field(min_length=1, description="in the order of the seeds")
    mean: float = Field(ge=0, le=1)
    sd: float = Field(ge=0)
    worst: float = Field(ge=0, le=1, description="the lowest: every seed is an attack that an attacker may run")
    best: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of these values. Raises ValueError without any, or with one outside 0..1."""
        if not values or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{list(values)} are not shares; give one in 0..1 for each seed, one at least")
        sd = stdev(values) if len(values) > 1 else 0.0
        return cls(values=tuple(values), mean=mean(values), sd=sd, worst=min(values), best=max(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}, sd {self.sd:.3f}, {self.worst:.3f} to {self.best:.3f} over {len(self.values)} seeds"


def wilson(count: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided Wilson score interval of count / n, inside 0..1.

    Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953. Raises ValueError unless 0 <= count <= n, n >= 1.
    """
    _check_proportion(count, n)
    return _score(count, n, NormalDist().inv_cdf(0.5 + confidence / 2))


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


def anytime_interval(count: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share after count of n, inside 0..1, valid however often one looks and whenever one stops.

    With the stated confidence the true share lies inside at all n at once. It holds the shares against which a
    bettor with a Beta(1/2, 1/2) prior has not yet multiplied the stake by 1 / (1 - confidence): Robbins, 1970,
    https://doi.org/10.1214/aoms/1177696786; Howard et al., 2021, https://doi.org/10.1214/20-AOS1991. The n samples
    are independent draws of what the share is about. Raises ValueError unless 0 <= count <= n, n >= 1.
    """
    _check_proportion(count, n)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence:g} is outside 0..1")
    stake = -math.log1p(-confidence)
    return _lower_edge(count, n, stake), 1.0 - _lower_edge(n - count, n, stake)


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of matched pairs: of so uneven a split of those that differ, were both sides as likely.

    McNemar, 1947, https://doi.org/10.1007/BF02295996. Without pairs that differ it is 1. Raises ValueError on
    negative numbers.
    """
    if lost < 0 or gained < 0:
        raise ValueError(f"lost={lost} and gained={gained} are no numbers of pairs")
    return min(1.0, 2 * binomial_tail(max(lost, gained), lost + gained, 0.5))


def binomial_tail(count: int, n: int, chance: float) -> float:
    """The probability of count or more successes in n tries that succeed with this chance, in 0..1."""
    if count <= 0 or chance >= 1:
        return float(count <= n)
    if chance <= 0:
        return 0.0
    each, other = math.log(chance), math.log1p(-chance)
    terms = (math.exp(log_choose(n, k) + k * each + (n - k) * other) for k in range(count, n + 1))
    return min(1.0, math.fsum(terms))


def holm(p: Sequence[float]) -> tuple[float, ...]:
    """The p values adjusted for their number, in the given order.

    Who calls an effect real wherever its adjusted p is at most alpha is wrong anywhere with chance alpha at most,
    however the tests depend on one another: Holm, 1979, https://www.jstor.org/stable/4615733. Raises ValueError for
    a p outside 0..1.
    """
    if not all(0 <= value <= 1 for value in p):
        raise ValueError(f"{next(v for v in p if not 0 <= v <= 1)} is no p value")
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return tuple(adjusted)


def smallest_sample(floor: float, *, confidence: float = 0.95) -> int:
    """The smallest n from which on a Wilson interval can decide whether a share reaches the floor.

    From this n on a perfect result clears the floor and a result of 0 is below it. A floor of 0 is cleared by one
    sample. Raises WrongInput for a floor of 1 or outside 0..1, and where ten million samples would not do.
    """
    if not 0 <= floor <= 1:
        raise WrongInput(f"floor={floor:g} must lie in 0..1, as in floor=0.5.")
    if floor == 1:
        raise WrongInput(
            "a floor of 1 can never be cleared: the lower end of an interval stays below 1. Write e.g. floor=0.99."
        )
    if floor == 0:
        return 1
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return _first(lambda n: _score(n, n, z)[0] >= floor and _score(0, n, z)[1] < floor)


def smallest_paired(tolerance: float, *, confidence: float = 0.95) -> int:
    """The smallest n at which two models that agree on every sample are shown to differ by the tolerance at most.

    That is the n from which on paired_loss(0, 0, n) is bounded by it. Raises WrongInput for a tolerance that is not
    above 0, or that ten million samples would not show.
    """
    if not tolerance > 0:
        raise WrongInput(
            f"a tolerance of {tolerance:g} cannot be shown: the bound on the loss stays above 0. Write e.g. 0.01."
        )
    return _first(lambda n: paired_loss(0, 0, n, confidence=confidence)[1] <= tolerance)


def log_choose(n: int, k: int) -> float:
    """The logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check_proportion(count: int, n: int) -> None:
    if not (n >= 1 and 0 <= count <= n):
        raise ValueError(f"count={count} of n={n} is no proportion")


def _score(count: float, n: int, z: float) -> tuple[float, float]:
    centre = (count + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (count * (n - count) / n + z * z / 4) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _lower_edge(count: int, n: int, stake: float) -> float:
    """The share below which all are refuted by count of n: the logarithm of the bettor's gain reached the stake."""
    if count == 0:
        return 0.0
    a, b = count + 0.5, n - count + 0.5
    mixture = math.lgamma(a) + math.lgamma(b) - math.lgamma(n + 1) - math.log(math.pi)
    refuted, inside = 0.0, count / n
    for _ in range(60):
        middle = (refuted + inside) / 2
        if mixture - count * math.log(middle) - (n - count) * math.log1p(-middle) >= stake:
            refuted = middle
        else:
            inside = middle
    return refuted


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest n at which this holds, given that it holds from there on. Raises WrongInput beyond ten million."""
    low, high = 0, 1
    while not holds(high):
        if high == MOST:
            raise WrongInput(f"more than {MOST:,} samples would be needed. Ask for a wider gap or tolerance.")
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def as_share(value: object) -> object:
    """The value, unless it is a number that is no share of 1. Raises ValueError that says what to write."""
    if isinstance(value, bool):  # what YAML reads in no, off, yes and on
        raise ValueError(f"{str(value).lower()} is no share. Write a number from 0 to 1, e.g. 0.6 for 60 %.")
    if not isinstance(value, int | float) or 0 <= value <= 1:
        return value
    instead = f"{value / 100:g} for {value:g} %" if 1 < value <= 100 else "a number from 0 to 1, e.g. 0.6 for 60 %"
    raise ValueError(f"{value!r} is no share. Write {instead}.")
