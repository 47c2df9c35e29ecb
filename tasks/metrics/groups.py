"""Which classes are weaker than the others, and which class an attacked one is taken for, with the luck taken out."""

import math

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from tasks.errors import WrongInput
from tasks.metrics.outcomes import Outcomes
from tasks.statistics import Share, binomial_tail, holm, log_choose


class ClassRow(BaseModel, frozen=True, extra="forbid"):
    """One class's result. The intervals are each class's own; p and worse allow for the number of classes."""

    cls: int = Field(ge=0)
    robust: Share
    clean: Share
    p: float = Field(ge=0, le=1, description="of a robust accuracy this low, were the class like all others; adjusted")
    worse: bool = Field(description="p is at most 1 - confidence")


class PairRow(BaseModel, frozen=True, extra="forbid"):
    """How often an attack turned one class into another. p and frequent allow for the number of pairs."""

    source: int = Field(ge=0, description="the true class")
    target: int = Field(ge=0, description="the class that the fooled model answered")
    count: int = Field(ge=1, description="samples of the source that were fooled into the target")
    of: int = Field(ge=1, description="samples of the source that were right before the attack")
    share: Share
    p: float = Field(ge=0, le=1, description="of so many, were the fooled spread evenly over the classes; adjusted")
    frequent: bool = Field(description="p is at most 1 - confidence")


def by_class(outcomes: Outcomes, y: Tensor, confidence: float = 0.95) -> tuple[ClassRow, ...]:
    """A row for each class that y [N] holds, in ascending order.

    Each class's robust accuracy is held against that of all other samples (Fisher's exact test, one-sided), and p is
    adjusted over the classes (Holm). Where all classes are alike, any of them is called worse with a chance of
    1 - confidence at most. A class alone has p 1. Raises WrongInput for labels that do not fit the outcomes.
    """
    y = _labels(outcomes, y)
    stands, n = ~outcomes.fooled, len(y)
    of_class = [(int(c), y == c) for c in y.unique()]
    held = {c: int(stands[rows].sum()) for c, rows in of_class}
    size = {c: int(rows.sum()) for c, rows in of_class}
    p = holm([fisher(held[c], size[c], sum(held.values()) - held[c], n - size[c]) for c in held])
    return tuple(
        ClassRow(
            cls=c,
            robust=Share.of(held[c], size[c], confidence=confidence),
            clean=Share.of(int(outcomes.clean_correct[rows].sum()), size[c], confidence=confidence),
            p=adjusted,
            worse=adjusted <= 1 - confidence,
        )
        for (c, rows), adjusted in zip(of_class, p, strict=True)
    )


def by_pair(outcomes: Outcomes, y: Tensor, classes: int, confidence: float = 0.95) -> tuple[PairRow, ...]:
    """A row for each true class and class it was fooled into, the most frequent first; y [N] in 0..classes - 1.

    Counted are the samples that were right before the attack and fooled by it. A target's part of its source's
    fooled samples is held against 1 / (classes - 1) (binomial, one-sided), and p is adjusted (Holm) over all targets
    of every source that has fooled samples. With two classes there is one target, and p is 1. Raises WrongInput for
    labels or predictions that do not fit.
    """
    y = _labels(outcomes, y)
    highest = max(int(y.max()), int(outcomes.prediction.max()))
    if classes < 2 or highest >= classes:
        raise WrongInput(f"classes={classes}, but the outcomes hold class {highest}. Write the width of the logits.")
    fell = outcomes.clean_correct & outcomes.fooled
    pairs = y[fell] * classes + outcomes.prediction[fell]
    table = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
    right = torch.bincount(y[outcomes.clean_correct], minlength=classes).tolist()
    fooled = table.sum(1).tolist()
    found = [(int(s), int(t), int(table[s, t])) for s, t in table.nonzero()]
    p = [binomial_tail(count, fooled[s], 1 / (classes - 1)) for s, _, count in found]
    possible = sum(1 for count in fooled if count) * (classes - 1)
    adjusted = holm([*p, *[1.0] * (possible - len(p))])
    rows = [
        PairRow(
            source=s,
            target=t,
            count=count,
            of=right[s],
            share=Share.of(count, right[s], confidence=confidence),
            p=value,
            frequent=value <= 1 - confidence,
        )
        for (s, t, count), value in zip(found, adjusted, strict=False)  # the rest never occurred
    ]
    return tuple(sorted(rows, key=lambda row: (-row.count, -row.share.value, row.source, row.target)))


def fisher(held: int, n: int, others_held: int, others: int) -> float:
    """Fisher's exact one-sided p: held or fewer of n, had they the same chance as the others.

    Fisher, 1935, https://doi.org/10.2307/2342435. The chance of so few among n drawn without replacement from all.
    """
    hits, both = held + others_held, n + others
    fewest = max(0, hits - others)
    whole = log_choose(both, n)
    terms = (math.exp(log_choose(hits, k) + log_choose(both - hits, n - k) - whole) for k in range(fewest, held + 1))
    return min(1.0, math.fsum(terms))


def _labels(outcomes: Outcomes, y: Tensor) -> Tensor:
    """Y as whole numbers beside the outcomes, [N]. Raises WrongInput."""
    if y.ndim != 1 or len(y) != len(outcomes.fooled) or len(y) == 0 or y.is_floating_point() or int(y.min()) < 0:
        raise WrongInput(
            f"y {list(y.shape)} must hold a class number for each of the {len(outcomes.fooled)} samples measured."
        )
    return y.cpu().long()
