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
        count, units = best.shape[1], gains[0].shape[1]
        unit, which = best % units, best >= units
        chosen = torch.zeros_like(promised[:, None, :units], dtype=torch.bool).repeat(1, count, 1)
        chosen = _spread(search, chosen.scatter(2, unit.unsqueeze(2), True).flatten(0, 1))
        corner = torch.where(
            per_sample(which.flatten(), like=chosen),
            away.repeat_interleave(count, 0),
            towards.repeat_interleave(count, 0),
        )
        tried = torch.where(chosen, corner, delta.repeat_interleave(count, 0))
        if not sparse:
            tried = project(tried, search.threat, search.within(rows.repeat_interleave(count)))
        lowest = search.ask(rows.repeat_interleave(count), tried).view(len(rows), count).argmin(1)
        at = torch.arange(len(rows), device=rows.device)
        delta = tried[at * count + lowest]
        for half in (0, units):  # a feature once changed is not offered again, at either bound
            taken[at, unit[at, lowest] + half] = float("inf")


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
