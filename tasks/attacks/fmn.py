"""Fast minimum-norm: how far each sample is from the boundary, at any radius."""

import math

import torch
from torch import Tensor, nn

from tasks.attacks.geometry import (
    Limits,
    ascend,
    distance,
    limits,
    moved,
    per_sample,
    to_hyperplane,
    within_radius,
)
from tasks.attacks.search import Search, margins, slope
from tasks.attacks.sigma_zero import sparsest
from tasks.attacks.threat import ThreatModel

FIRST, LAST = 1.0, 0.05  # of the radius: the first and the last step's size
OVERSHOOT = 1.02  # how far beyond the hyperplane a sample goes that nothing has fooled yet
GAMMA = (0.2, 0.005)  # by how much the radius shrinks after a success and grows after a failure: first and last


def fmn(search: Search, rows: Tensor, *, steps: int = 40) -> None:
    """Look for the smallest perturbation that fools, from the nearest point on; it may leave the ball on its way.

    Pintor et al., 2021, https://arxiv.org/abs/2102.12827. In L0 the search is sigma-zero's.
    """
    x, y, start = search.x[rows], search.y[rows], search.nearest[rows]
    found = [
        minimum_norm(search.model, *part, threat=search.threat, steps=steps, start=begin, enough=search.threat.eps)[1]
        for *part, begin in zip(x.split(search.batch), y.split(search.batch), start.split(search.batch), strict=True)
    ]
    search.look(rows, torch.cat(found))


def minimum_norm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int = 40,
    start: Tensor | None = None,
    enough: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(distance [B], x_adv [B, ...]): the smallest perturbation found that fools, whatever the threat's radius.

    Distance is infinite, and x_adv the last point met, where nothing fooled. Like the paper: after a success the
    radius falls below the smallest one known, after a failure it grows, and before the first success it is what the
    margin and its slope promise. start [B, ...] are inputs to begin at, x itself if not given. Stops once
    all distances are `enough`.
    """
    if threat.norm.startswith("l0"):
        return sparsest(model, x, y, threat=threat, steps=steps)
    box = limits(x, threat.model_copy(update={"norm": "unbounded"}))
    delta = torch.zeros_like(x) if start is None else start - x
    best, nearest = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device), moved(x, delta, threat)
    radius = torch.full_like(best, threat.eps)
    for i in range(steps + 1):
        x_adv = moved(x, delta, threat).detach().requires_grad_()
        logits = model(x_adv)
        margin, far = margins(logits.float(), y), distance(x, x_adv.detach(), threat)
        closer = (margin < 0) & (far < best)
        best = torch.where(closer, far, best)
        nearest = torch.where(per_sample(closer, like=x), x_adv.detach(), nearest)
        if i == steps or bool((best <= enough).all()):
            break
        grad = slope(margin.sum(), x_adv)
        if not grad.any():  # nothing leads on from here
            break
        wave = (1 + math.cos(math.pi * i / steps)) / 2
        gamma = GAMMA[1] + (GAMMA[0] - GAMMA[1]) * wave
        promised = _promised(grad, margin.detach(), far, delta, threat, box, unknown=~best.isfinite())
        known = torch.where(margin < 0, best * (1 - gamma), radius * (1 + gamma))
        radius = torch.where(best.isfinite(), known, torch.minimum(promised, 2 * radius))
        radius = torch.minimum(radius, best * (1 - GAMMA[1])).clamp_min(1e-6 * threat.eps).detach()
        share = LAST + (FIRST - LAST) * wave
        delta = _step(delta, grad, threat, box, share, radius)
    return best, torch.where(per_sample(best.isfinite(), like=x), nearest, x_adv.detach())


def _promised(
    grad: Tensor, margin: Tensor, far: Tensor, delta: Tensor, threat: ThreatModel, box: Limits, *, unknown: Tensor
) -> Tensor:
    """How far each sample goes by what its margin and its slope promise: [B]; told at least where it is unknown [B].

    In L-inf each sample's way is found by itself. In the other norms one round of filling more, for the sake of another
    sample, may move its last bit: there it is all or none.
    """
    promised = torch.full_like(far, float("inf"))
    if not unknown.any():
        return promised
    alone = threat.norm in ("linf", "unbounded") and not unknown.all()
    rows = unknown.nonzero().flatten() if alone else slice(None)
    within = box[0][rows] - delta[rows], box[1][rows] - delta[rows]
    there = to_hyperplane(grad[rows], margin[rows].clamp_min(0), threat, within)
    promised[rows] = far[rows] + OVERSHOOT * distance(torch.zeros_like(there), there, threat)
    return promised


def _step(delta: Tensor, grad: Tensor, threat: ThreatModel, box: Limits, share: float, radius: Tensor) -> Tensor:
    """One step down the margin's slope inside each sample's own ball."""
    eps = per_sample(radius, like=delta)
    return ascend(delta, -grad, threat, within_radius(box, threat, eps), share, eps)
