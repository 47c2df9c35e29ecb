"""Which classes are worth aiming at: what the slopes at the clean input promise of each pair of sample and class.

Shapes: R rows, P pairs, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.attacks.geometry import TINY, farthest
from tasks.attacks.search import Search, margins, slope

REACH = 0.7  # of the clean margin: what the slopes may leave of it, and a class is tried
NEAR = 0.3  # how much a sample's margin, in median ones, tells beside what the slopes leave


class Pairs(NamedTuple):
    """Pairs of sample and class that have not been tried."""

    samples: Tensor  # [P]
    targets: Tensor  # [P]
    left: Tensor  # of the way to the class, as far as it is known: the less, the better, [P]


def promising(search: Search, rows: Tensor) -> Pairs:
    """The pairs of rows [R], by the margins on the clean input and at the nearest point taken together."""
    own = search.y[rows].unsqueeze(1)
    near, clean = (logits[rows].gather(1, own) - logits[rows] for logits in (search.logits, search.clean))
    order = ranked(search, rows)
    way, left = (near + clean).gather(1, order).T, ~search.aimed[rows].gather(1, order).T
    return Pairs(rows.expand_as(left)[left], order.T[left], way[left])


def within_reach(search: Search, rows: Tensor, slopes: int, reach: float) -> Pairs:
    """As promising(), of pairs within reach alone, and by what the slopes leave of their margins.

    Where none is left, the slopes of so many more of each sample's classes are asked for.
    """
    found = _foretold(search, rows, reach)
    if len(found.samples):
        return found
    if search.slopes is not None:
        rival = search.clean[rows].scatter(1, search.y[rows].unsqueeze(1), float("-inf")).argmax(1)
        _note(search, rows, rival, search.slopes[rows])
    _ask(search, rows, slopes)
    return _foretold(search, rows, reach)


def _foretold(search: Search, rows: Tensor, reach: float) -> Pairs:
    samples, targets, _ = promising(search, rows)
    left, clean = search.foretold[samples, targets], _clean(search, samples, targets)
    within = left <= REACH * clean  # not of a pair whose slopes nobody has asked for, which is nan
    if reach:
        typical = search.margin[~search.fooled].median().clamp_min(TINY)
        within &= left / clean + NEAR * search.margin[samples] / typical <= reach
    near = within.nonzero().flatten()
    return Pairs(samples[near], targets[near], left[near])


def _ask(search: Search, rows: Tensor, slopes: int) -> None:
    """Foretell the margins to so many classes a sample: of the pairs that are not known, the most promising ones."""
    samples, targets, way = promising(search, rows)
    fresh = search.foretold[samples, targets].isnan().nonzero().flatten()
    best = fresh[way[fresh].argsort(stable=True)[: slopes * len(rows)]]
    asked = torch.zeros_like(search.aimed)
    asked[samples[best], targets[best]] = True
    counts = asked.sum(1)
    for count in counts[counts > 0].unique().tolist():  # once through the model, and back once for each class
        group = (counts == count).nonzero().flatten()
        chosen = asked[group].nonzero()[:, 1].view(-1, count)
        for part, named in zip(group.split(search.batch), chosen.split(search.batch), strict=True):
            points = search.x[part].clone().requires_grad_()
            logits = search.model(points).float()
            for k in range(count):
                lead = margins(logits, search.y[part], named[:, k])
                _note(search, part, named[:, k], slope(lead.sum(), points, again=k < count - 1))


def _note(search: Search, rows: Tensor, target: Tensor, grad: Tensor) -> None:
    """Note what slopes [R, ...] at the clean input leave of the margins to the targets [R] within the budget."""
    fall = (grad * farthest(-grad, search.threat, search.within(rows))).flatten(1).sum(1)
    search.foretold[rows, target] = _clean(search, rows, target) + fall.to(search.clean)


def _clean(search: Search, rows: Tensor, target: Tensor) -> Tensor:
    """The margins of rows [R] to the targets [R] before anything was changed."""
    return search.clean[rows, search.y[rows]] - search.clean[rows, target]


def ranked(search: Search, samples: Tensor) -> Tensor:
    """The other classes, likeliest first: [R, C - 1]."""
    others = search.logits[samples].scatter(1, search.y[samples].unsqueeze(1), float("-inf"))
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]
