"""decide_early(): measure samples only until it is clear on which side of the floor the robust accuracy lies."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.errors import WrongInput
from tasks.metrics.escalation import examine
from tasks.metrics.outcomes import Outcomes, measure
from tasks.metrics.signs.measuring import ONE_ANSWER
from tasks.metrics.signs.probe import said_unchanged
from tasks.metrics.soundness import Sign
from tasks.statistics import Share, anytime_interval

Side = Literal["above the floor", "below the floor", "undecided"]


class EarlyDecision(BaseModel, frozen=True, extra="forbid"):
    """On which side of a floor the robust accuracy lies, and what it took to know."""

    outcome: Side
    floor: float = Field(ge=0, le=1)
    samples: int = Field(ge=1, description="measured")
    of: int = Field(ge=1, description="that could have been measured")
    clean: float = Field(ge=0, le=1, description="accuracy on the samples measured, unchanged")
    robust: Share = Field(description="of the samples measured, with an interval that is valid whenever one stops")
    passes: int = Field(description="forward and backward, in samples")
    problems: tuple[str, ...] = Field((), description="each of them voids the number; the outcome is then undecided")
    rows: tuple[int, ...] = Field(description="places of the samples measured, in their random order")


def decide_early(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    floor: float,
    suite: str | Suite | Sequence[str | AttackConfig] = "standard",
    seed: int = 0,
    confidence: float = 0.95,
    block: int = 32,
    draws: int | None = None,
) -> EarlyDecision:
    """The side of the floor, from as many of x [N, ...], y [N] as it took: blocks in random order until it is decided.

    Undecided where all samples leave the floor inside the interval, where a block reports a problem, at which it
    stops, and where a sign of soundness stands that would void the answer: each block is examined, and its alarms are
    answered, as in a whole evaluation. Nothing is above the floor before the model has answered more than one class, if
    y holds more. About the source that the samples are drawn from, above or below is wrong with
    a chance of 1 - confidence at most, though it looks after every block. A floor of 1 is never reached.

    The first block holds `block` samples, each later one as many as were measured before it: suites that draw samples
    spend several times the passes per sample on small blocks. So up to twice the samples needed are measured, and a
    close case costs about twice one measure() of all. Order and attacks follow from the seed.

    Raises WrongInput for a floor outside 0..1, and what measure() raises about the samples that it comes to.
    """
    _check(x, y, floor, confidence, block)
    y, order = y.to(x.device), torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    measured = right = stood = passes = number = 0
    outcome: Side = "undecided"
    problems: tuple[str, ...] = ()
    alarms: list[Sign] = []
    said: set[int] = set()  # classes that the model answers to samples as they are
    while measured < len(x) and outcome == "undecided" and not problems:
        rows = order[measured : measured + max(block, measured)]
        found = measure(model, x[rows], y[rows], threat=threat, suite=suite, seed=seed + number, draws=draws)
        found, _, soundness = examine(model, x[rows], y[rows], outcomes=found)
        said |= set(said_unchanged(found, y[rows]).tolist())
        alarms += [sign for sign in soundness.alarms if sign.name != ONE_ANSWER]
        number, measured, stood = number + 1, measured + len(rows), stood + int((~found.fooled).sum())
        passes, right = passes + found.passes + soundness.passes, right + int(found.clean_correct.sum())
        lo, hi = anytime_interval(stood, measured, confidence=confidence)
        outcome = _side(lo, hi, floor)
        problems = (*_problems(found), *_voiding(alarms, outcome))
        if outcome == "above the floor" and not problems and len(said) == 1 and len(y.unique()) > 1:
            outcome, problems = "undecided", () if measured < len(x) else (f"{ONE_ANSWER}: class {said.pop()}",)
        outcome = "undecided" if problems else outcome
    return EarlyDecision(
        outcome=outcome,
        floor=floor,
        samples=measured,
        of=len(x),
        clean=right / measured,
        robust=Share(value=stood / measured, lo=lo, hi=hi, n=measured),
        passes=passes,
        problems=problems,
        rows=tuple(order[:measured].tolist()),
    )


def _side(lo: float, hi: float, floor: float) -> Side:
    if lo >= floor:
        return "above the floor"
    return "below the floor" if hi < floor else "undecided"


def _voiding(alarms: Sequence[Sign], outcome: Side) -> tuple[str, ...]:
    """The alarms that forbid this answer. What hides from the search can only make a number too kind."""
    stand = [sign for sign in alarms if sign.kind == "measurement" or outcome == "above the floor"]
    return tuple({sign.name: f"{sign.name}: {sign.says}" for sign in stand}.values())  # the latest of each name


def _problems(found: Outcomes) -> tuple[str, ...]:
    """What voids a block's number: what measure() says, or that nothing was tried on samples that stood."""
    own = {attack.name for attack in found.suite.attacks}  # what the signs tried besides does not make up for it
    if found.clean_correct.any() and not any(bool(a.tried.any()) for a in found.attacks if a.name in own):
        return (*found.problems, f"no attack tried a sample under {found.threat}")
    return found.problems


def _check(x: Tensor, y: Tensor, floor: float, confidence: float, block: int) -> None:
    if not 0 <= floor <= 1:
        raise WrongInput(f"floor={floor:g} is no robust accuracy. Write a share in 0..1, e.g. floor=0.5.")
    if not 0 < confidence < 1:
        raise WrongInput(f"confidence={confidence:g} must lie between 0 and 1. Write e.g. confidence=0.95.")
    if block < 1:
        raise WrongInput(f"block={block} measures nothing. Write how many samples to begin with, e.g. block=32.")
    if len(x) == 0 or len(x) != len(y):
        raise WrongInput(f"x {list(x.shape)} and y {list(y.shape)} must hold the same number of samples, one at least.")
