"""Square attack: random search with the model's scores alone."""

import math

import torch
from torch import Tensor

from tasks.attacks.arms import pattern
from tasks.attacks.geometry import farthest, moved, per_sample, project
from tasks.attacks.search import Search, margins

HALVE_AFTER = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the horizon (paper, section 5)


def square(search: Search, rows: Tensor, *, queries: int = 5000, p: float = 0.8, horizon: int = 5000) -> None:
    """Change one random window at a time and keep what lowers the margin. At most `queries` passes a sample.

    Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049. p is the first window's share of the input; it
    halves along the horizon. The first visit starts at stripes, later ones at the best point so far. Outside of
    L-inf the window's content joins the direction along which the ball is filled.
    """
    visit = search.visits["square"] = search.visits.get("square", -1) + 1
    delta = search.nearest[rows] - search.x[rows]
    if visit == 0:
        delta = farthest(pattern(search, rows, stripes=True), search.threat, search.within(rows))
    best = torch.full((len(rows),), float("inf"), device=rows.device)
    for query in range(queries):
        left = (~search.fooled[rows]).nonzero().flatten()
        if not len(left):
            return
        tried = delta[left]
        if query:
            share = ((visit * queries + query) / horizon) % 1.0
            tried = _changed(search, rows[left], tried, p / 2 ** sum(share > at for at in HALVE_AFTER))
        margin = _look(search, rows[left], tried)
        better = margin < best[left]
        best[left] = torch.where(better, margin, best[left])
        delta[left] = torch.where(per_sample(better, like=tried), tried, delta[left])


@torch.no_grad()
def _look(search: Search, rows: Tensor, delta: Tensor) -> Tensor:
    found = []
    for part, d in zip(rows.split(search.batch), delta.split(search.batch), strict=True):
        x_adv = moved(search.x[part], d, search.threat)
        logits = search.model(x_adv)
        search.see(part, x_adv, logits, inside=True)
        found.append(margins(logits.float(), search.y[part]))
    return torch.cat(found)


def _changed(search: Search, rows: Tensor, delta: Tensor, p: float) -> Tensor:
    """Delta with one window of each sample set anew."""
    threat, within = search.threat, search.within(rows)
    window = _window(search, delta, p)
    signs = torch.randn((len(delta), *_channels(delta)), generator=search.rng, device=delta.device, dtype=delta.dtype)
    if threat.norm in ("linf", "unbounded"):
        return torch.where(window, farthest(signs.expand_as(delta), threat, within), delta)
    if threat.norm.startswith("l0"):
        fresh = farthest(torch.randn(delta.shape, generator=search.rng, device=delta.device), threat, within)
        swapped = torch.where(window, fresh, delta)
        return project(swapped, threat, within)
    size = delta.flatten(1).norm(dim=1) / math.sqrt(max(float(window[0].sum()), 1.0))
    emptied = delta.masked_fill(_window(search, delta, p), 0.0)
    direction = torch.where(window, per_sample(size, like=delta) * signs.sign() + emptied, emptied)
    if threat.norm == "l2":
        return farthest(direction, threat, within)
    return project(2 * direction, threat, within)


def _channels(delta: Tensor) -> tuple[int, ...]:
    return (delta.shape[1], *[1] * (delta.ndim - 2)) if delta.ndim > 2 else (1,) * (delta.ndim - 1)


def _window(search: Search, delta: Tensor, p: float) -> Tensor:
    """One window per sample: a square of images, a random share of the features of rows: bool [B, ...]."""
    rng, device = search.rng, delta.device
    if delta.ndim < 3:
        count = max(int(p * delta[0].numel()), 1)
        chosen = torch.rand(delta.shape, generator=rng, device=device).flatten(1).topk(count, dim=1).indices
        flat = torch.zeros_like(delta, dtype=torch.bool).flatten(1)
        return flat.scatter(1, chosen, True).view_as(delta)
    height, width = delta.shape[-2:]
    side = min(max(round(math.sqrt(p * height * width)), 1), height, width)
    top, left = (
        torch.randint(0, room - side + 1, (len(delta),), generator=rng, device=device) for room in (height, width)
    )
    at_rows, at_columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (at_rows >= top[:, None]) & (at_rows < top[:, None] + side)
    in_columns = (at_columns >= left[:, None]) & (at_columns < left[:, None] + side)
    window = in_rows[:, :, None] & in_columns[:, None, :]
    return window.view(len(delta), *[1] * (delta.ndim - 3), height, width).expand_as(delta)
