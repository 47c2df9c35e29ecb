"""Square attack: random search with the model's scores alone."""

from functools import partial

import torch
from torch import Tensor

from tasks.attacks.arms import pattern
from tasks.attacks.geometry import farthest, l2, per_sample, project
from tasks.attacks.search import Search

LOCAL = 2 / 3  # of the tries in L2 move length from one window to another and leave the rest
ABREAST = 64  # rows of a pass: few samples try several windows at once, and keep the best
HALVE_AFTER = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the horizon (paper, section 5)


def square(
    search: Search, rows: Tensor, *, queries: int = 5000, burst: int = 5000, horizon: int = 5000, p: float = 0.8
) -> None:
    """Change one random window at a time and keep what lowers the margin. At most `queries` passes a sample in all.

    The look at the sample itself counts as one of them.

    Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049. p is the first window's share of the input; it
    halves along the horizon, again and again. A sample's first try starts at stripes; each try makes `burst` queries
    and goes on from the best point so far. Outside of L-inf the window's content joins the direction along which the
    ball is filled; in L2 two of three windows only get what another one gives up.
    """
    before = search.tried("square", rows)
    rows, before = rows[before * burst < queries - 1], before[before * burst < queries - 1]
    delta = search.nearest[rows] - search.x[rows]
    stripes = farthest(pattern(search, rows, stripes=True), search.threat, search.within(rows))
    delta = torch.where(per_sample(before > 0, like=delta), delta, stripes)
    best = torch.where(before > 0, search.margin[rows], torch.full_like(search.margin[rows], float("inf")))
    most, query = queries - 1, 0  # one has gone to the sample itself
    while query < min(burst, most):
        left = ((~search.fooled[rows]) & (before * burst + query < most)).nonzero().flatten()
        if not len(left):
            return
        abreast = max(1, min(ABREAST // len(left), burst - query, most - int(before[left].max()) * burst - query))
        abreast = abreast if query else 1
        many = left.repeat_interleave(abreast)
        tried = _changed(search, rows[many], delta[many], _window_share(before[many] * burst + query, horizon, p))
        if not query:
            tried = torch.where(per_sample(before[many] > 0, like=tried), tried, delta[many])
        margin, choice = search.ask(rows[many], tried, inside=True).view(len(left), abreast).min(1)
        tried = tried[torch.arange(len(left), device=rows.device) * abreast + choice]
        better = margin < best[left]
        best[left] = torch.where(better, margin, best[left])
        delta[left] = torch.where(per_sample(better, like=tried), tried, delta[left])
        query += abreast


def _window_share(query: Tensor, horizon: int, p: float) -> Tensor:
    """The window's share of the input at each sample's number of queries so far: [R]."""
    done = (query % horizon).float() / horizon
    halvings = sum((done > at).float() for at in HALVE_AFTER)
    return p / 2**halvings


def _changed(search: Search, rows: Tensor, delta: Tensor, p: Tensor) -> Tensor:
    """Delta with one window of each sample set anew."""
    threat, within = search.threat, search.within(rows)
    window = _window(search, delta, p)
    signs = torch.randn((len(delta), *_channels(delta)), generator=search.rng, device=delta.device, dtype=delta.dtype)
    if threat.norm in ("linf", "unbounded"):
        return torch.where(window, farthest(signs.expand_as(delta), threat, within), delta)
    if threat.norm.startswith("l0"):
        drawn = torch.randn(delta.shape, generator=search.rng, device=delta.device, dtype=torch.float32)
        fresh = farthest(drawn, threat, within)
        swapped = torch.where(window, fresh, delta)
        return project(swapped, threat, within)
    signs, emptied = signs.sign(), _window(search, delta, p)
    kept = delta.masked_fill(emptied, 0.0)
    whole = l2(delta) / per_sample(window.flatten(1).sum(1).clamp_min(1).float().sqrt(), like=delta)
    direction = torch.where(window, whole * signs + kept, kept)
    if threat.norm == "l1":
        return project(2 * direction, threat, within)
    local = torch.where(window, _moved_in(threat.eps, delta, window, emptied, signs), kept)
    chosen = torch.rand(len(delta), generator=search.rng, device=delta.device, dtype=torch.float32) < LOCAL
    return farthest(torch.where(per_sample(chosen, like=delta), local, direction), threat, within)


def _moved_in(eps: float, delta: Tensor, window: Tensor, emptied: Tensor, signs: Tensor) -> Tensor:
    """What a window gets of the length that it, another one and the unspent part of the ball have (paper, section 3.3).

    Its content so far and the signs count the same; the paper has hills and hollows in place of even signs, which find
    less here.
    """
    old, new = delta * window, signs * window
    spread = old / l2(old) + new / l2(new)
    left = (eps**2 - l2(delta).square()).clamp_min(0) + l2(delta * (window | emptied)).square()
    return spread / l2(spread) * left.sqrt()


def _channels(delta: Tensor) -> tuple[int, ...]:
    return (delta.shape[1], *[1] * (delta.ndim - 2)) if delta.ndim > 2 else (1,) * (delta.ndim - 1)


def _window(search: Search, delta: Tensor, p: Tensor) -> Tensor:
    """One window per sample: a square of images, a random share of the features of rows: bool [B, ...]."""
    device = delta.device
    uniform = partial(torch.rand, generator=search.rng, device=device, dtype=torch.float32)
    if delta.ndim < 3:
        draw = uniform(delta.shape).flatten(1)
        count = (p * draw.shape[1]).long().clamp_min(1) - 1
        return (draw <= draw.sort(1).values.gather(1, count.unsqueeze(1))).view_as(delta)
    height, width = delta.shape[-2:]
    side = (p * height * width).sqrt().round().clamp(1, min(height, width))
    top, left = ((uniform(len(delta)) * (room - side + 1)).floor() for room in (height, width))
    in_rows, in_columns = (
        (place >= start[:, None]) & (place < (start + side)[:, None])
        for place, start in ((torch.arange(height, device=device), top), (torch.arange(width, device=device), left))
    )
    window = in_rows[:, :, None] & in_columns[:, None, :]
    return window.view(len(delta), *[1] * (delta.ndim - 3), height, width).expand_as(delta)
