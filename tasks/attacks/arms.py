"""The engine's arms: each tries to fool some of the samples of a search, and notes what it met.

An arm is (search, rows, *, parameters) -> None, rows [R] being the samples to try. Called by name, each is an attack
like any other; within a suite they share what they learnt.
"""

from functools import partial

import torch
from torch import Tensor

from tasks.attacks.geometry import ascend, farthest, per_sample, sample, to_hyperplane
from tasks.attacks.search import ANY, At, Move, Search, margins, run_rows

FIRST, LAST = 1.0, 0.05  # of eps: the first and the last step's size
BIAS = 0.1  # FAB: how far a step may be pulled back towards the original (alpha_max in the paper)
OVERSHOOT = 1.05  # FAB: how far a step goes beyond the hyperplane (eta)
STARTS = (("noise", 1), ("blocks", 0), ("nearest", 1), ("noise", 2), ("stripes", 0))  # and which class: 0 is any
RETREAT = 0.9  # FAB: what is left of a perturbation that fools, as it looks for a smaller one (beta)


def margin(search: Search, rows: Tensor, *, steps: int = 8) -> None:
    """Lower the margin to the nearest class, from the clean input, along steps that shrink geometrically.

    After APGD (Croce and Hein, 2020, https://arxiv.org/abs/2003.01690) with the raw margin as loss and without its
    momentum and look-backs, which do not pay within so few steps.
    """
    start = torch.zeros_like(search.x[rows])
    run_rows(search, rows, torch.full_like(rows, ANY), start, _climb(search, steps), steps=steps)


def classes(search: Search, rows: Tensor, *, steps: int = 10, chunk: int = 0) -> None:
    """Aim from the clean input at every other class.

    With chunk > 0 each visit tries only so many pairs of sample and class: the most promising of those that are left,
    whose margin is small on the clean input and at the nearest point taken together.
    """
    seen = _known_logits(search, rows)
    pairs, targets = _pairs(search, rows, 0)
    left = (~search.aimed[pairs, targets]).nonzero().flatten()
    pairs, targets = pairs[left], targets[left]
    promise = margins(seen[pairs], search.y[pairs], targets) + margins(search.clean[pairs], search.y[pairs], targets)
    best = promise.argsort(stable=True)[: chunk or None]
    pairs, targets = pairs[best], targets[best]
    search.aimed[pairs, targets] = True
    run_rows(search, pairs, targets, torch.zeros_like(search.x[pairs]), _climb(search, steps), steps=steps)


def restarts(search: Search, rows: Tensor, *, steps: int = 24) -> None:
    """Start again elsewhere: from noise, from blocks or stripes at the edge of the ball, from the nearest point.

    Visits take turns among the starts, and between aiming at a likely class and at whichever is nearest. In L2 and L1
    the ball is larger at first and shrinks to eps: there the way to the boundary leads around the corners of the box.
    """
    start, rank = STARTS[_visit(search, "restarts") % len(STARTS)]
    target, within = torch.full_like(rows, ANY), search.within(rows)
    if rank:
        _known_logits(search, rows)
        ranked = _ranked(search, rows)
        target = ranked[:, min(rank, ranked.shape[1]) - 1]
    if start == "noise":
        delta = sample(search.x[rows], search.threat, search.rng)
    elif start == "nearest":
        delta = search.nearest[rows] - search.x[rows]
    else:
        delta = farthest(pattern(search, rows, stripes=start == "stripes"), search.threat, within)
    wide = 1.5 if search.threat.norm in ("l2", "l1") else 1.0
    run_rows(search, rows, target, delta, _climb(search, steps, wide=wide), steps=steps, inside=wide == 1.0)


def fab(search: Search, rows: Tensor, *, steps: int = 30, count: int = 3) -> None:
    """Walk to the decision boundary of the likeliest classes with the smallest perturbation, and stop within eps.

    Fast Adaptive Boundary, Croce and Hein, 2020, https://arxiv.org/abs/1907.02044. The projections respect the box.
    The first visit starts at the clean input, later ones at random ones.
    """
    visit = _visit(search, "fab")
    samples, targets = _pairs(search, rows, count)
    start = torch.zeros_like(search.x[samples])
    if visit:
        start = farthest(pattern(search, samples), search.threat, search.within(samples)) / 2
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
    coarse = torch.randn(
        (len(samples), *shape[:-2], rows, columns), generator=rng, device=x.device, dtype=x.dtype
    )
    tall = shape[-2] if stripes else size
    return coarse.repeat_interleave(tall, -2).repeat_interleave(size, -1)[..., : shape[-2], : shape[-1]].contiguous()


def _climb(search: Search, steps: int, *, first: float = FIRST, wide: float = 1.0) -> Move:
    """Down the margin's slope; the ball starts `wide` times as large and has shrunk to eps after half of the steps."""
    i = torch.arange(steps, dtype=torch.float32, device=search.x.device)
    shares = first * (LAST / first) ** (i / max(steps - 1, 1))
    radii = search.threat.eps * (1 + (wide - 1) * (1 - i / max(steps / 2, 1)).clamp_min(0))

    def move(at: At) -> Tensor:
        eps = float(radii[at.step].amin())
        threat = search.threat if eps == search.threat.eps else search.threat.model_copy(update={"eps": eps})
        return ascend(at.delta, -at.grad, threat, search.within(at.rows), shares[at.step])

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


def _ranked(search: Search, samples: Tensor) -> Tensor:
    """The other classes, likeliest first: [R, C - 1]."""
    assert search.logits is not None
    others = search.logits[samples].scatter(1, search.y[samples].unsqueeze(1), float("-inf"))
    return others.argsort(1, descending=True)[:, :-1]


def _pairs(search: Search, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Every (sample, other class), or the likeliest `count` of each sample; a sample's likeliest class first."""
    _known_logits(search, rows)
    ranked = _ranked(search, rows)
    ranked = ranked[:, :count] if count else ranked
    return rows.repeat(ranked.shape[1]), ranked.T.flatten()


def _known_logits(search: Search, rows: Tensor) -> Tensor:
    if search.logits is None:
        search.look(rows, search.x[rows])
    assert search.logits is not None
    return search.logits


def _visit(search: Search, arm: str) -> int:
    search.visits[arm] = search.visits.get(arm, -1) + 1
    return search.visits[arm]
