"""Greedy search for sparse changes: one feature (or pixel) after another, each tried before it is taken."""

import torch
from torch import Tensor

from tasks.attacks.geometry import moved, per_sample, project
from tasks.attacks.search import Search, margins, slope

OTHERWISE = 4  # changes under a norm that does not count them


def greedy(search: Search, rows: Tensor, *, width: int = 64) -> None:
    """Set to a bound, one at a time, the feature that lowers the margin the most; under l0-pixels a pixel.

    After the saliency attack of Papernot et al., 2016, https://arxiv.org/abs/1511.07528, but every candidate is passed
    through the model: of both bounds of every feature the `width` that the slope promises the most, fewer where eps
    allows many changes. With eps=1 and no more than width / 2 features that is exhaustive.
    """
    for part in rows.split(max(1, search.batch // width)):
        _grow(search, part, max(4, 2 * width // (int(search.threat.eps) + 1)))


def _grow(search: Search, rows: Tensor, width: int) -> None:
    low, high = search.within(rows)
    delta, taken = torch.zeros_like(search.x[rows]), None
    sparse = search.threat.norm.startswith("l0")
    for _ in range(min(int(search.threat.eps), search.x[0].numel()) if sparse else OTHERWISE):
        left = ~search.fooled[rows]
        if not left.any():
            return
        rows, delta, low, high = rows[left], delta[left], low[left], high[left]
        x_adv = moved(search.x[rows], delta, search.threat).requires_grad_()
        margin = margins(search.model(x_adv).float(), search.y[rows])
        grad = slope(margin.sum(), x_adv)
        towards, away = torch.where(grad > 0, low, high), torch.where(grad > 0, high, low)
        gains = [_units(search, -grad * (corner - delta)) for corner in (towards, away)]
        promised = torch.cat(gains, 1)
        taken = torch.zeros_like(promised) if taken is None else taken[left]
        best = (promised - taken).topk(min(width, promised.shape[1]), dim=1).indices
        delta, unit = _lowered(search, rows, delta, (towards, away), best, gains[0].shape[1])
        at = torch.arange(len(rows), device=rows.device)
        for half in (0, gains[0].shape[1]):  # a feature once changed is not offered again, at either bound
            taken[at, unit + half] = float("inf")


def _lowered(
    search: Search, rows: Tensor, delta: Tensor, corners: tuple[Tensor, Tensor], best: Tensor, units: int
) -> tuple[Tensor, Tensor]:
    """Delta [R, ...] with the change that lowers the margin the most, and its unit [R].

    best [R, C] names the changes that are tried: a unit, or units + a unit, whose features go to the first or to the
    second of the corners [R, ...]. Of a sample only as many are laid out at once as pass through the model, or twice as
    many where they are projected: a projection's last bit may follow from the others beside it.
    """
    room = search.batch if search.threat.norm.startswith("l0") else 2 * search.batch
    at = torch.arange(len(rows), device=rows.device)
    least, found, unit = None, delta, best[:, 0] % units
    for part in best.split(room, dim=1):
        count = part.shape[1]
        tried = _tried(search, rows, delta, corners, part, units)
        margin = search.ask(rows.repeat_interleave(count), tried).view(len(rows), count)
        lowest = margin.argmin(1)
        less = torch.ones_like(at, dtype=torch.bool) if least is None else margin[at, lowest] < least
        least = margin[at, lowest] if least is None else torch.where(less, margin[at, lowest], least)
        found = torch.where(per_sample(less, like=delta), tried[at * count + lowest], found)
        unit = torch.where(less, part[at, lowest] % units, unit)
    return found, unit


def _tried(
    search: Search, rows: Tensor, delta: Tensor, corners: tuple[Tensor, Tensor], best: Tensor, units: int
) -> Tensor:
    """Delta with each of these changes in turn: [R * C, ...]."""
    count = best.shape[1]
    chosen = torch.zeros(len(rows) * count, units, dtype=torch.bool, device=rows.device)
    chosen = _spread(search, chosen.scatter(1, best.flatten().unsqueeze(1) % units, True))
    first, second = (corner.repeat_interleave(count, 0) for corner in corners)
    corner = torch.where(per_sample(best.flatten() >= units, like=chosen), second, first)
    tried = torch.where(chosen, corner, delta.repeat_interleave(count, 0))
    if search.threat.norm.startswith("l0"):
        return tried
    return project(tried, search.threat, search.within(rows.repeat_interleave(count)))


def _units(search: Search, gain: Tensor) -> Tensor:
    """The gain of each feature, or of each pixel with its channels together: [R, units]."""
    pixels = search.threat.norm == "l0-pixels" and gain.ndim > 2
    return (gain.sum(1) if pixels else gain).flatten(1)


def _spread(search: Search, chosen: Tensor) -> Tensor:
    """Flags of units [R, units] as flags of features [R, ...]."""
    shape = search.x.shape[1:]
    if search.threat.norm == "l0-pixels" and len(shape) > 1:
        return chosen.view(len(chosen), 1, *shape[1:]).expand(len(chosen), *shape)
    return chosen.view(len(chosen), *shape)
