"""Across the thresholds of a rounded input, those first that pay the most."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tasks.attacks.front import shown, slope_behind
from tasks.attacks.geometry import HALVINGS, TINY, moved, per_sample, scale_of, total
from tasks.attacks.search import Search
from tasks.attacks.threat import Norm, ThreatModel

ASKED = 8  # samples that tell whether the input is rounded at all
FINE: dict[Norm, float] = {"l2": 1 / 4, "l1": 1 / 32}  # of the way that a feature mostly goes: what moves is smooth
STEPPED = 0.5  # of the features stand still
CLOSEST = 2**-10  # of a feature's reach: thresholds are not looked for nearer than that


def crossings(search: Search, rows: Tensor, *, steps: int = 4, halvings: int = 8, rounds: int = 2) -> None:
    """Where the model rounds its input: cross the thresholds that pay the most for the length they take.

    What is rounded shows no slope, and BPDA's stand-in spends most of an L2 or L1 budget on changes that cross
    nothing. Here the first layer is asked: by halving, where each feature's next two thresholds lie, the others being
    taken for as far apart; by the slope behind the rounding, what it is worth to cross them. The budget goes to the
    best (a knapsack by its Lagrangian: Everett, 1963, https://doi.org/10.1287/opre.11.3.399), `steps` times, each with
    the slope where the one before has led; `rounds` times, from the nearest point on. A model whose input is not
    rounded is left alone, and so are the norms in which a budget is no sum.
    """
    if search.threat.norm not in FINE or not len(rows) or not _rounds(search, rows[:ASKED]):
        return
    for part in (part for _ in range(rounds) for part in rows.split(search.batch)):
        _cross(search, part[~search.fooled[part]], steps=steps, halvings=halvings)


def _rounds(search: Search, rows: Tensor) -> bool:
    """Whether each feature stands still under a small change of its own, and moves under a large one."""
    x, ahead, threat = search.x[rows], _ahead(search, rows), search.threat
    far = threat.eps * scale_of(threat, x) / (math.sqrt(x[0].numel()) if threat.norm == "l2" else 1)
    a_little = FINE[threat.norm] * torch.minimum(ahead.abs(), far) * ahead.sign()
    half = (torch.arange(x[0].numel(), device=x.device) % 2).view_as(x[:1])
    still = shown(search.model, x)
    if still is None:
        return False
    nudged, every_other, pushed = (_shown(search, rows, delta) for delta in (a_little, half * ahead, ahead))
    movable = pushed != still
    alone = torch.equal(every_other, torch.where(half > 0, pushed, still))
    return alone and bool(movable.any()) and float((nudged == still)[movable].float().mean()) > STEPPED


def _ahead(search: Search, rows: Tensor) -> Tensor:
    """To the end of the box that is farther away, feature by feature."""
    low, high = search.box[0][rows], search.box[1][rows]
    return torch.where(high >= -low, high, low)


def _cross(search: Search, rows: Tensor, *, steps: int, halvings: int) -> None:
    if not len(rows):
        return
    x, (low, high), threat = search.x[rows], (search.box[0][rows], search.box[1][rows]), search.threat
    still, ahead = _shown(search, rows, 0 * x), _ahead(search, rows)
    rising = ((_shown(search, rows, ahead) - still) * ahead).sign()
    grad = _slope(search, rows, search.nearest[rows] - x)
    way = -grad.sign() * rising
    reach = torch.where(way > 0, high, torch.where(way < 0, -low, torch.zeros_like(way)))
    reach = torch.minimum(reach, threat.eps * scale_of(threat, x))
    thresholds = _Thresholds.seen(search, rows, still, way, reach, halvings=halvings)
    for step in range(steps):
        delta = way * thresholds.bought(-grad, threat)
        if step == steps - 1:
            search.look(rows, moved(x, delta, threat))
            return
        grad = _slope(search, rows, delta)
        left = (~search.fooled[rows]).nonzero().flatten()
        rows, x, way, grad, thresholds = rows[left], x[left], way[left], grad[left], thresholds.of(left)
        if not len(left):
            return


def _shown(search: Search, rows: Tensor, delta: Tensor) -> Tensor:
    seen = shown(search.model, moved(search.x[rows], delta, search.threat))
    assert seen is not None  # as it was not when the model was first asked
    return seen


def _slope(search: Search, rows: Tensor, delta: Tensor) -> Tensor:
    """The margin's slope behind the rounding, at the samples moved by delta; takes note of the answers."""
    x_adv = moved(search.x[rows], delta, search.threat)
    logits, grad = slope_behind(search.model, x_adv, search.y[rows])
    search.see(rows, x_adv, logits)
    return grad


@dataclass(frozen=True)
class _Thresholds:
    """The thresholds that lie ahead of each feature, [R, ...] each: how far the first, and what it changes behind it.

    Then the same of every further one; how many there are.
    """

    first: Tensor
    shift: Tensor
    gap: Tensor
    further: Tensor
    count: Tensor

    @classmethod
    def seen(cls, search: Search, rows: Tensor, still: Tensor, way: Tensor, reach: Tensor, *, halvings: int) -> Self:
        """What the first layer, given `still` for the samples themselves, shows of them up to `reach` on that way."""
        farthest = _shown(search, rows, way * reach)

        def next_one(begun: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Between which lengths beyond `begun` the next threshold lies, and what is seen behind it."""
            near, far, behind = CLOSEST * reach, reach - begun, farthest
            for _ in range(halvings):
                middle = (near * far).clamp_min(0).sqrt()
                seen = _shown(search, rows, way * (begun + middle))
                across = seen != before
                near, far = torch.where(across, near, middle), torch.where(across, middle, far)
                behind = torch.where(across, seen, behind)
            return near * (near > CLOSEST * reach), far, behind

        near, first, behind = next_one(torch.zeros_like(reach), still)
        _, gap, behind_it = next_one(first, behind)
        gap = (gap + first - near).clamp_min(TINY)  # none of the further thresholds is missed
        one, more = behind != still, behind_it != behind
        count = torch.where(more, 1 + ((reach - first) / gap).floor(), one.to(reach))
        return cls(first, behind - still, gap, behind_it - behind, count)

    def of(self, rows: Tensor) -> Self:
        """Those of some of the rows."""
        return type(self)(*(part[rows] for part in (self.first, self.shift, self.gap, self.further, self.count)))

    def bought(self, worth: Tensor, threat: ThreatModel) -> Tensor:
        """How far each feature goes for the most worth within eps: to one of its thresholds, or not at all.

        worth [R, ...]: of a change behind the rounding.
        """
        power, scale = (1 if threat.norm == "l1" else 2), scale_of(threat, worth)
        first, gap, gain, gains = self.first / scale, self.gap / scale, worth * self.shift, worth * self.further
        beyond = (self.count - 1).clamp_min(0)

        def chosen(rate: Tensor) -> Tensor:
            rate = per_sample(rate, like=worth)
            if power == 1:
                more = beyond * (gains > rate * gap)
            else:
                more = ((gains / (2 * rate * gap) - first) / gap).round().clamp_min(0).minimum(beyond)
            length = first + more * gap
            pays = (self.count > 0) & (gain + more * gains > rate * length**power)
            return length * pays

        dear = (gain / first.clamp_min(TINY) ** power).maximum(gains / gap**power).flatten(1).amax(1)
        least, most = torch.zeros_like(dear), dear.clamp_min(TINY)
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            fits = total(chosen(middle) ** power).flatten() <= threat.eps**power
            least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
        return chosen(most) * scale
