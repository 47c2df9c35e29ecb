"""Across the thresholds of a rounded input, those first that pay the most."""

import torch
from torch import Tensor, nn

from tasks.attacks.front import slope_behind
from tasks.attacks.geometry import distance, moved, per_sample
from tasks.attacks.search import Search, margins
from tasks.attacks.threat import ThreatModel
from tasks.attacks.thresholds import Thresholds, rounds

ASKED = 8  # samples that tell whether the input is rounded at all
FARTHEST = 8.0  # times the threat's radius: no further is a smallest perturbation looked for
NARROWED = 16  # times is the budget halved that a smallest perturbation takes
HALVINGS = 8  # of an interval in which a threshold lies


def crossings(search: Search, rows: Tensor, *, steps: int = 4, halvings: int = HALVINGS, tries: int = 2) -> None:
    """Where the model rounds its input: cross the thresholds that pay the most for the length they take.

    What is rounded shows no slope, and BPDA's stand-in spends most of an L2 or L1 budget on changes that cross
    nothing. Here the first layer is asked: by `halvings` of an interval, where each feature's next two thresholds lie,
    and by the slope behind the rounding, what it is worth to cross them. The budget goes to the best, `steps` times,
    each with the slope where the one before has led; `tries` times, from the nearest point on. A model whose input is
    not rounded is left alone, and so are the norms in which a budget is no sum.
    """
    if not rounds(search.model, search.x[rows[:ASKED]], search.threat):
        return
    for part in (part for _ in range(tries) for part in rows.split(search.batch)):
        _cross(search, part[~search.fooled[part]], steps=steps, halvings=halvings)


def smallest_crossings(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """(distance [B], x_adv [B, ...]): the smallest perturbation found that fools, up to eight times the radius.

    By halving the budget of x [B, ...], y [B]. Distance is infinite, and x_adv is x, where nothing fooled and where the
    input is not rounded.
    """
    best, nearest = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device), x.clone()
    if not rounds(model, x[:ASKED], threat):
        return best, nearest
    _, grad = slope_behind(model, x, y)
    low, high = torch.zeros_like(best), torch.full_like(best, FARTHEST * threat.eps)
    thresholds = Thresholds.ahead(model, x, grad, threat, most=FARTHEST * threat.eps, halvings=HALVINGS)
    for _ in range(NARROWED):
        middle = (low + high) / 2
        x_adv = moved(x, thresholds.crossed(grad, threat, middle), threat)
        logits, grad = slope_behind(model, x_adv, y)
        fell, far = margins(logits.float(), y) < 0, distance(x, x_adv, threat)
        closer = fell & (far < best)
        best = torch.where(closer, far, best)
        nearest = torch.where(per_sample(closer, like=x), x_adv, nearest)
        low, high = torch.where(fell, low, middle), torch.where(fell, middle, high)
    return best, nearest


def _cross(search: Search, rows: Tensor, *, steps: int, halvings: int) -> None:
    if not len(rows):
        return
    x, threat = search.x[rows], search.threat
    grad = _slope(search, rows, search.nearest[rows])
    thresholds = Thresholds.ahead(search.model, x, grad, threat, most=threat.eps, halvings=halvings)
    for step in range(steps):
        x_adv = moved(x, thresholds.crossed(grad, threat, threat.eps), threat)
        if step == steps - 1:
            search.look(rows, x_adv)
            return
        grad = _slope(search, rows, x_adv)
        left = (~search.fooled[rows]).nonzero().flatten()
        rows, x, grad, thresholds = rows[left], x[left], grad[left], thresholds.of(left)
        if not len(left):
            return


def _slope(search: Search, rows: Tensor, x_adv: Tensor) -> Tensor:
    """The margin's slope behind the rounding; takes note of the answers."""
    logits, grad = slope_behind(search.model, x_adv, search.y[rows])
    search.see(rows, x_adv, logits)
    return grad
