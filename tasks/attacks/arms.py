"""The engine's arms: each tries to fool some of the samples of a search, and notes what it met.

An arm is (search, rows, *, parameters) -> None, rows [R] being the samples to try. Called by name, each is an attack
like any other; within a suite they share what they learnt.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tasks.attacks.geometry import TINY, ascend, farthest, per_sample, project, sample, to_hyperplane
from tasks.attacks.promise import promising, ranked, within_reach
from tasks.attacks.rows import At, Move, run_rows
from tasks.attacks.search import ANY, Search, margins
from tasks.attacks.threat import Norm
from tasks.errors import WrongInput

FIRST: dict[Norm, float] = {"l2": 10.0}  # the first step's size in eps, 1 elsewhere: so long a one ends at a far corner
CAREFUL, LONG = 0.7, 15  # the first step's size in L-inf where so many follow: slopes may not hold as far as eps
BOLD, LONGEST = 2.0, 40  # the same, if they were seen not to: at first from one side to the other
WHOLE: tuple[Norm, ...] = ("linf", "unbounded")  # where the first step goes as far as it may
LAST = 0.05  # of eps: the last step's size
SHRUNK = 0.25  # of the steps: by then a ball that was larger at first has come down to eps
BIAS = 0.1  # FAB: how far a step may be pulled back towards the original (alpha_max in the paper)
OVERSHOOT = 1.05  # FAB: how far a step goes beyond the hyperplane (eta)
WIDE: dict[Norm, tuple[float, ...]] = {  # the ball in which a descent begins, in eps; a sample's restarts take turns
    "l2": (3.0, 2.0),
    "l1": (6.0, 12.0, 3.0),
}
WAVED: tuple[Norm, ...] = ("l2",)  # where steps that fall along a cosine find more than ever smaller ones
FREE: tuple[Norm, ...] = ("l1",)  # where a start toward a class finds more when it may end at any other one
SOFT: dict[Norm, float] = {"l1": 16.0}  # how sharply the highest of the other logits counts, where it pays
REMEMBERED = 0.3  # L1: of a feature's worth, what it was when the feature was last changed further
BEHIND = 0.2  # L1: how far a row looks at the model behind where it has come to, of its last step
MOMENTUM = 0.5  # of the slopes that a small step follows: what is left of the earlier ones
STARTS = ("nearest", "thinned", "toward", "borrowed", "blocks", "stripes", "noise")
ROOM = 2**27  # numbers that the perturbations of one descent may hold: half a GiB
KEPT = 0.5  # of what the nearest point changes, in a start that is thinned
RETREAT = 0.9  # FAB: what is left of a perturbation that fools, as it looks for a smaller one (beta)


def margin(search: Search, rows: Tensor, *, steps: int = 8, cut: int = 0, soft: float = 0.0) -> None:
    """Lower the margin to the nearest class, from the clean input, along steps that shrink.

    After APGD (Croce and Hein, 2020, https://arxiv.org/abs/2003.01690) with the raw margin as loss and without its
    momentum and look-backs, which do not pay within so few steps. In L2 and L1 the ball is larger at first and shrinks
    to eps: there the way to the boundary leads around the corners of the box. With cut > 0 only the better third of the
    samples goes on after so many steps. soft: how sharply the highest of the other logits counts in the margin that is
    followed, as in soft_margins(); with 0 as the norm has it, alone but in L1.
    """
    target, start = torch.full_like(rows, ANY), torch.zeros_like(search.x[rows])
    first = torch.full_like(search.margin[rows], float("nan"))
    fresh = torch.equal(search.nearest[rows], search.x[rows])  # no warm start
    known = None if search.slopes is None or soft else search.slopes[rows]  # the margin's own
    _descend(search, rows, target, start, steps=steps, cut=cut, soft=soft, known=known, first=first)
    if fresh and search.straight is None and search.threat.norm in WHOLE:
        search.straight = _straight(search, rows, first)


def _straight(search: Search, rows: Tensor, first: Tensor) -> float | None:
    """Of what a descent took from the margins of rows [R] what its first step took, which left `first` [R]."""
    rows, first = rows[~first.isnan()], first[~first.isnan()]
    clean, reached = margins(search.clean[rows], search.y[rows]), search.margin[rows].clamp_min(0)
    gained = float((clean - reached).sum())
    return float((clean - first).sum()) / gained if gained > TINY else None


def classes(
    search: Search,
    rows: Tensor,
    *,
    steps: int = 10,
    cut: int = 0,
    pairs: float = 0.0,
    slopes: int = 0,
    reach: float = 0.0,
) -> None:
    """Aim from the clean input at every other class.

    With pairs > 0 each visit tries only so many pairs of sample and class per sample: the most promising of those
    that are left, whose margin is small on the clean input and at the nearest point taken together. `cut` as in
    margin, of the pairs. With slopes > 0 it looks closer at so many of a sample's most promising classes: their slopes
    on the clean input tell what is left of the margin at the far end of the budget, and where that is too much the
    class is not tried. Not where slopes wind. With reach > 0 it is tried only if what is left, as a share of the clean
    margin, is at most that, less a little for a sample that is not near to falling; and not at all where slopes wind.
    After DeepFool (Moosavi-Dezfooli et al., 2016, https://arxiv.org/abs/1511.04599).
    """
    if reach and search.winding:
        return
    closer = slopes > 0 and not search.winding
    samples, targets, left = within_reach(search, rows, slopes, reach) if closer else promising(search, rows)
    best = left.argsort(stable=True)[: math.ceil(pairs * len(rows)) or None]
    for part in best.split(max(search.batch, ROOM // search.x[0].numel())):
        rows, target = samples[part], targets[part]
        search.aimed[rows, target] = True
        _descend(search, rows, target, torch.zeros_like(search.x[rows]), steps=steps, cut=cut)


def restarts(
    search: Search,
    rows: Tensor,
    *,
    starts: str = "toward nearest blocks noise",
    steps: int = 20,
    cut: int = 0,
    soft: float = 0.0,
) -> None:
    """Start again elsewhere, and go down the margin's slope: one row for each sample and each of the starts.

    `nearest` goes on from the point of smallest margin, `thinned` from half of what that point changes, `toward` starts
    at the edge of the ball on the way to another sample that the model calls by the target's name, `borrowed` with what
    fooled the nearest sample of the class, then the next; `blocks`, `stripes` and `noise` start at random patterns. A
    sample's tries take turns among its classes. Ball, `cut` and `soft` as in margin.
    """
    if not len(rows):
        return
    turn = int(search.tried("restarts", rows).amin())
    begun = [_start(search, rows, start) for start in known_starts(starts)]
    targets, deltas = (torch.cat(parts) for parts in zip(*begun, strict=True))
    _descend(search, rows.repeat(len(begun)), targets, deltas, steps=steps, cut=cut, turn=turn, soft=soft)


def known_starts(starts: str) -> list[str]:
    """The names in `starts`. Raises WrongInput for one that nobody knows, and for none."""
    names = starts.split()
    if not names or set(names) - set(STARTS):
        raise WrongInput(f"starts={starts!r} must name some of {', '.join(STARTS)}. Write e.g. 'toward nearest'.")
    return names


def _start(search: Search, rows: Tensor, start: str) -> tuple[Tensor, Tensor]:
    """A target [R] and a perturbation [R, ...] for each sample."""
    before, within = search.tried(f"restarts/{start}", rows), search.within(rows)
    order = ranked(search, rows)
    named = order.gather(1, (before % order.shape[1]).unsqueeze(1)).squeeze(1)
    any_or_named = torch.where(before % 2 == 0, torch.full_like(rows, ANY), named)
    if start == "noise":
        return any_or_named, sample(search.x[rows], search.threat, search.rng)
    if start in ("nearest", "thinned"):
        delta = search.nearest[rows] - search.x[rows]
        if start == "nearest":
            return any_or_named, delta
        drawn = torch.rand(delta.shape, generator=search.rng, device=delta.device, dtype=torch.float32)
        return any_or_named, delta * (drawn < KEPT)
    if start == "toward":
        way = _toward(search, rows, named, before // order.shape[1])
        free = (before == 0) | (search.threat.norm in FREE)
        return torch.where(free, torch.full_like(rows, ANY), named), farthest(way, search.threat, within)
    if start == "borrowed":
        return any_or_named, _borrowed(search, rows, before)
    return any_or_named, farthest(pattern(search, rows, stripes=start == "stripes"), search.threat, within)


def fab(search: Search, rows: Tensor, *, steps: int = 30, count: int = 3) -> None:
    """Walk to the decision boundary of the likeliest classes with the smallest perturbation, and stop within eps.

    Fast Adaptive Boundary, Croce and Hein, 2020, https://arxiv.org/abs/1907.02044. The projections respect the box.
    A sample's first try starts at the sample itself, later ones at random points.
    """
    before = search.tried("fab", rows)
    samples, targets = _pairs(search, rows, count)
    start = farthest(pattern(search, samples), search.threat, search.within(samples)) / 2
    start = start * per_sample((before > 0).repeat(len(samples) // len(rows)), like=start)
    run_rows(search, samples, targets, start, partial(_boundary, search), steps=steps, inside=False)


def pattern(search: Search, samples: Tensor, *, stripes: bool = False) -> Tensor:
    """Random signs, constant over blocks or over columns: [R, ...]. For rows of features over runs of features."""
    shape, rng, x = search.x.shape[1:], search.rng, search.x
    if len(shape) < 2:
        width = int(torch.randint(1, 4, (), generator=rng, device=x.device)) if shape and shape[0] > 3 else 1
        coarse = torch.randn((len(samples), -(-shape[0] // width)), generator=rng, device=x.device, dtype=x.dtype)
        return coarse.repeat_interleave(width, 1)[:, : shape[0]]
    size = 1 if stripes else int(torch.randint(1, max(shape[-1] // 4, 2) + 1, (), generator=rng, device=x.device))
    rows, columns = (1 if stripes else -(-shape[-2] // size)), -(-shape[-1] // size)
    coarse = torch.randn((len(samples), *shape[:-2], rows, columns), generator=rng, device=x.device, dtype=x.dtype)
    tall = shape[-2] if stripes else size
    return coarse.repeat_interleave(tall, -2).repeat_interleave(size, -1)[..., : shape[-2], : shape[-1]].contiguous()


def _toward(search: Search, rows: Tensor, target: Tensor, nth: Tensor) -> Tensor:
    """The way to the nth nearest other sample that the model takes for the target; random blocks where none is."""
    other, found = _nth_nearest(search, rows, search.clean.argmax(1) == target.unsqueeze(1), nth)
    way = search.x[other] - search.x[rows]
    return torch.where(found, way, pattern(search, rows))


def _borrowed(search: Search, rows: Tensor, nth: Tensor) -> Tensor:
    """The perturbation that fooled the nth nearest sample of the class; random blocks where there is none."""
    fell = search.fooled & (search.clean.argmax(1) == search.y)
    other, found = _nth_nearest(search, rows, fell & (search.y == search.y[rows].unsqueeze(1)), nth)
    within = search.within(rows)
    lent = project(search.nearest[other] - search.x[other], search.threat, within)
    return torch.where(found, lent, farthest(pattern(search, rows), search.threat, within))


def _nth_nearest(search: Search, rows: Tensor, eligible: Tensor, nth: Tensor) -> tuple[Tensor, Tensor]:
    """For each of rows [R] the nth nearest, [R], of the samples eligible [R, N], and whether there is one."""
    away = torch.cdist(search.x[rows].flatten(1).float(), search.x.flatten(1).float())
    away = away.masked_fill(~eligible, float("inf"))
    nth = nth.clamp_max(len(search.x) - 1).unsqueeze(1)
    gap, other = (part.gather(1, nth).squeeze(1) for part in away.sort(dim=1, stable=True))
    return other, per_sample(gap.isfinite(), like=search.x)


def _descend(
    search: Search,
    rows: Tensor,
    target: Tensor,
    start: Tensor,
    *,
    steps: int,
    cut: int,
    turn: int = 0,
    soft: float = 0.0,
    known: Tensor | None = None,
    first: Tensor | None = None,
) -> None:
    """Down the margin's slope; where the norm has wide balls, the first radius is that of this turn."""
    wide = WIDE.get(search.threat.norm, (1.0,))
    move = _climb(search, start, steps, wide=wide[turn % len(wide)])
    run_rows(
        search,
        rows,
        target,
        start,
        move,
        steps=steps,
        inside=len(wide) == 1,
        cut=cut or None,
        soft=soft or SOFT.get(search.threat.norm),
        known=known,
        first=first,
    )


def _climb(search: Search, start: Tensor, steps: int, *, wide: float) -> Move:
    """Down the margin's slope; the ball starts `wide` times as large and has soon shrunk to eps."""
    i = torch.arange(steps, dtype=search.x.dtype, device=search.x.device)
    done, first = i / max(steps - 1, 1), FIRST.get(search.threat.norm, 1.0)
    if search.threat.norm == "linf" and steps >= LONG:
        first = BOLD if search.winding and steps >= LONGEST else CAREFUL
    falling, waved = first * (LAST / first) ** done, LAST + (first - LAST) * (1 + torch.cos(math.pi * done)) / 2
    shares = waved if search.threat.norm in WAVED else falling
    radii = search.threat.eps * (1 + (wide - 1) * (1 - i / max(SHRUNK * steps, 1)).clamp_min(0))
    radii[-1] = search.threat.eps  # a single step must end within the budget
    if search.threat.norm == "l1":
        return _exchange(search, start, shares, radii)

    def move(at: At) -> Tensor:
        eps = per_sample(radii[at.step], like=at.delta) if wide > 1 else None
        return ascend(at.delta, -at.grad, search.threat, search.within(at.rows), shares[at.step], eps)

    return _steadied(start, move, steps // 2) if search.threat.norm == "linf" and search.steady else move


def _steadied(start: Tensor, move: Move, late: int) -> Move:
    """As move, which from step `late` on follows a mean of the slopes so far, the last ones counting most.

    Small steps go to and fro across a crease; the mean of the slopes on its two sides leads along it. After MI-FGSM
    (Dong et al., 2018, https://arxiv.org/abs/1710.06081), which does so from the first step on.
    """
    mean = torch.zeros_like(start)

    def steadied(at: At) -> Tensor:
        size = at.grad.flatten(1).abs().sum(1)
        kept = MOMENTUM * ((at.step >= late) & (size > 0))
        grad = at.grad / per_sample(size.clamp_min(TINY), like=at.grad)
        mean[at.number] = grad + per_sample(kept.to(grad), like=grad) * mean[at.number]
        return move(replace(at, grad=mean[at.number]))

    return steadied


def _exchange(search: Search, start: Tensor, shares: Tensor, radii: Tensor) -> Move:
    """Down the margin's slope in L1, where a step gives some features up for others.

    A feature that has done its work shows little slope: what is given up is chosen by the slope of now and the one for
    which the feature was taken. And a slope is asked for a little behind each point, between it and the one before.
    """
    reached, taken = start.clone(), torch.zeros_like(start)

    def move(at: At) -> Tensor:
        here, slope, last = reached[at.number], -at.grad, at.step == len(shares) - 1
        worth = (1 - REMEMBERED) * slope + REMEMBERED * taken[at.number]
        eps = per_sample(radii[at.step], like=here)
        there = ascend(here, slope, search.threat, search.within(at.rows), shares[at.step], eps, worth=worth)
        taken[at.number] = torch.where(there.abs() > here.abs(), slope, taken[at.number])
        reached[at.number] = there
        return there + per_sample((BEHIND * ~last).to(there), like=there) * (here - there)

    return move


def _boundary(search: Search, at: At) -> Tensor:
    """One step of FAB: from here and from the original onto the hyperplane, and a point between the two."""
    threat, (low, high) = search.threat, (search.box[0][at.rows], search.box[1][at.rows])  # the radius is no limit yet
    crossed = at.margin < 0
    here = to_hyperplane(at.grad, at.margin.clamp_min(0), threat, (low - at.delta, high - at.delta))
    at_origin = at.margin - (at.grad * at.delta).flatten(1).sum(1)
    origin = to_hyperplane(at.grad, at_origin.clamp_min(0), threat, (low, high))
    a, b = here.flatten(1).norm(dim=1), origin.flatten(1).norm(dim=1)
    pull = per_sample((a / (a + b).clamp_min(1e-12)).clamp_max(BIAS), like=here)
    stepped = (1 - pull) * (at.delta + OVERSHOOT * here) + pull * OVERSHOOT * origin
    stepped = torch.where(per_sample(crossed, like=stepped), RETREAT * at.delta, stepped)
    return stepped.clamp(low, high)


def _pairs(search: Search, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Every (sample, other class), or the likeliest `count` of each sample; a sample's likeliest class first."""
    order = ranked(search, rows)
    order = order[:, :count] if count else order
    return rows.repeat(order.shape[1]), order.T.flatten()
