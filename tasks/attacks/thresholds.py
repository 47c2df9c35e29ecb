"""Where a rounded input crosses its thresholds, and which crossings are worth their length.

Shapes: B = batch, ... = any input shape.
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn

from tasks.attacks.features import scale_of
from tasks.attacks.front import shown
from tasks.attacks.geometry import HALVINGS, TINY, Limits, Radius, limits, moved, per_sample, total
from tasks.attacks.threat import Norm, ThreatModel

FINE: dict[Norm, float] = {"l2": 1 / 4, "l1": 1 / 32}  # of the way that a feature mostly goes: what moves is smooth
STEPPED = 0.5  # of the features stand still
LEFTOVERS = 2  # thresholds that are bought with what a knapsack leaves over
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, without their whole parts, never repeat
CLOSEST = 2**-8  # of a feature's reach: thresholds are not looked for nearer than that


def rounds(model: nn.Module, x: Tensor, threat: ThreatModel) -> bool:
    """Whether each feature of x [B, ...] stands still under a small change of its own, and moves under a large one.

    As the first layer is given them, in the order of x: of features in another order thresholds would be taken for
    those of others.

    For norms whose budget is a sum over the features, L2 and L1; False under others.
    """
    if threat.norm not in FINE or not len(x):
        return False
    low, high = _box(x, threat)
    ahead = torch.where(high >= -low, high, low)
    far = threat.eps * scale_of(threat, x) / (math.sqrt(x[0].numel()) if threat.norm == "l2" else 1)
    a_little = FINE[threat.norm] * torch.minimum(ahead.abs(), far) * ahead.sign()
    place = torch.arange(x[0].numel(), device=x.device, dtype=torch.float64)
    half = ((place * GOLDEN % 1) < 0.5).to(x).view_as(x[:1])  # which of them no turning around of features leaves alone
    still = shown(model, x)
    if still is None:
        return False
    nudged, every_other, pushed = (_shown(model, x, delta, threat) for delta in (a_little, half * ahead, ahead))
    movable = pushed != still
    alone = torch.equal(every_other, torch.where(half > 0, pushed, still))
    return alone and bool(movable.any()) and float((nudged == still)[movable].float().mean()) > STEPPED


@dataclass(frozen=True)
class Thresholds:
    """The thresholds that lie ahead of each feature, [B, ...] each: which way; how far the first, and what it changes.

    Then the same of every further one, taken for as far apart as the first two, and how many there are.
    """

    way: Tensor
    first: Tensor
    shift: Tensor
    gap: Tensor
    further: Tensor
    count: Tensor

    @classmethod
    def ahead(
        cls, model: nn.Module, x: Tensor, slope: Tensor, threat: ThreatModel, *, most: float, halvings: int
    ) -> Self:
        """Those of x [B, ...] down the slope [B, ...] of what the first layer is given, up to `most` in the scale."""
        low, high = _box(x, threat)
        still, far = shown(model, x), torch.where(high >= -low, high, low)
        assert still is not None  # as it was not when the model was first asked
        rising = ((_shown(model, x, far, threat) - still) * far).sign()
        way = -slope.sign() * rising
        reach = torch.where(way > 0, high, torch.where(way < 0, -low, torch.zeros_like(way)))
        reach = torch.minimum(reach, most * scale_of(threat, x))
        farthest = _shown(model, x, way * reach, threat)

        def next_one(begun: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Between which lengths beyond `begun` the next threshold lies, and what is seen behind it."""
            near, far, behind = CLOSEST * reach, reach - begun, farthest
            for _ in range(halvings):
                middle = (near * far).clamp_min(0).sqrt()
                seen = _shown(model, x, way * (begun + middle), threat)
                across = seen != before
                near, far = torch.where(across, near, middle), torch.where(across, middle, far)
                behind = torch.where(across, seen, behind)
            return near * (near > CLOSEST * reach), far, behind

        near, first, behind = next_one(torch.zeros_like(reach), still)
        _, gap, behind_it = next_one(first, behind)
        gap = (gap + first - near).clamp_min(TINY)  # none of the further thresholds is missed
        one, more = behind != still, behind_it != behind
        count = torch.where(more, 1 + ((reach - first) / gap).floor(), one.to(reach))
        return cls(way, first, behind - still, gap, behind_it - behind, count)

    def of(self, rows: Tensor) -> Self:
        """Those of some of the samples."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def crossed(self, slope: Tensor, threat: ThreatModel, eps: Radius) -> Tensor:
        """The changes within eps, [B, ...], after which a function with this slope is the lowest.

        slope [B, ...]: by what the first layer is given. eps: a number, or one for each sample, [B]. Each feature goes
        to one of its thresholds or not at all: a knapsack, filled by its Lagrangian (Everett, 1963,
        https://doi.org/10.1287/opre.11.3.399), then with the best of what still fits.
        """
        power, scale = (1 if threat.norm == "l1" else 2), scale_of(threat, slope)
        first, gap, gain, gains = self.first / scale, self.gap / scale, -slope * self.shift, -slope * self.further
        beyond = (self.count - 1).clamp_min(0)

        def lengths(rate: Tensor) -> Tensor:
            """How far each feature goes where length has this price."""
            rate = per_sample(rate, like=slope)
            if power == 1:
                more = beyond * (gains > rate * gap)
            else:
                more = ((gains / (2 * rate * gap) - first) / gap).round().clamp_min(0).minimum(beyond)
            length = first + more * gap
            return length * ((self.count > 0) & (gain + more * gains > rate * length**power))

        def one_more(length: Tensor) -> Tensor:
            """With what is left over, one more threshold of the feature where that pays the most."""
            none, left = length == 0, eps**power - total(length**power).flatten()
            further, worth = torch.where(none, first, length + gap), torch.where(none, gain, gains)
            price, there = further**power - length**power, further < first + (self.count - 0.5) * gap
            open_ = there & (worth > 0) & (price <= per_sample(left, like=price))
            rate, best = (worth / price.clamp_min(TINY)).masked_fill(~open_, 0.0).flatten(1).max(1, keepdim=True)
            chosen = torch.zeros_like(open_).flatten(1).scatter(1, best, rate > 0).view_as(length)
            return torch.where(chosen, further, length)

        dear = (gain / first.clamp_min(TINY) ** power).maximum(gains / gap**power).flatten(1).amax(1)
        least, most = torch.zeros_like(dear), dear.clamp_min(TINY)
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            fits = total(lengths(middle) ** power).flatten() <= eps**power
            least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
        length = lengths(most)
        for _ in range(LEFTOVERS):
            length = one_more(length)
        return self.way * length * scale


def _box(x: Tensor, threat: ThreatModel) -> Limits:
    """What bounds and mask allow, whatever the radius."""
    return limits(x, threat.model_copy(update={"norm": "unbounded"}))


def _shown(model: nn.Module, x: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    seen = shown(model, moved(x, delta, threat))
    assert seen is not None  # as it was not for x itself
    return seen
