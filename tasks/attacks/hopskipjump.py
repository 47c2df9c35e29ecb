"""A label-only attack: it sees the class that the model names, and nothing else."""

import math

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.geometry import distance, inside, l2, limits, moved, per_sample
from tasks.attacks.threat import ThreatModel


def hopskipjump(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, queries: int = 2000
) -> Tensor:
    """Chen, Jordan and Wainwright, 2020, https://arxiv.org/abs/1904.02144: x [B, ...], y [B] -> x_adv [B, ...].

    Starts from random inputs, halves the way to the boundary, estimates the boundary's normal from labels at random
    points around it, and steps along it. At most `queries` labels are asked of every sample. In L1 and L0 it walks
    as in L2. Returns the nearest input that fools, brought into the ball.
    """
    oracle = _Labels(model, x, y, threat, queries)
    low, high = limits(x, threat.model_copy(update={"norm": "unbounded"}))
    best = _random_start(oracle, low, high, rng)
    best = _halve(oracle, best, rounds=10)
    flat = threat.norm in ("linf", "unbounded")
    features = x[0].numel()
    iteration = 0
    while oracle.left() > 40:
        iteration += 1
        draws = min(int(20 * math.sqrt(iteration)), oracle.left() - 20)
        radius = _width(best, x, flat) / math.sqrt(features) + 1e-3
        normal = _normal(oracle, best, radius, draws, rng, flat)
        stride = _width(best, x, flat) / math.sqrt(iteration)
        for _ in range(6):
            stepped = (best + per_sample(stride, like=x) * normal).clamp(x + low, x + high)
            stepped = _halve(oracle, stepped, rounds=1, away_from=best) if oracle.left() < 2 else stepped
            good = oracle.fools(stepped)
            closer = good & oracle.found
            best = torch.where(per_sample(closer, like=x), stepped, best)
            stride = torch.where(good, stride, stride / 2)
            if good.all() or oracle.left() <= 12:
                break
        best = _halve(oracle, best, rounds=min(6, oracle.left()))
    return oracle.nearest(best)


class _Labels:
    """The model's labels, counted."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, queries: int) -> None:
        self.model, self.x, self.y, self.threat, self.queries = model, x, y, threat, queries
        self.asked, self.found = 0, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.best, self.gap = x.clone(), torch.full((len(x),), float("inf"), device=x.device, dtype=x.dtype)

    def left(self) -> int:
        return self.queries - self.asked

    @torch.no_grad()
    def fools(self, points: Tensor) -> Tensor:
        """Which of points [B, ...] the model gets wrong; none once the budget is spent."""
        if self.left() < 1:
            return torch.zeros_like(self.found)
        self.asked += 1
        wrong: Tensor = self.model(points).argmax(1) != self.y
        gap = distance(self.x, points, self.threat).to(self.gap)
        closer = wrong & (gap < self.gap)
        self.gap = torch.where(closer, gap, self.gap)
        self.best = torch.where(per_sample(closer, like=points), points, self.best)
        self.found |= wrong
        return wrong

    def nearest(self, at: Tensor) -> Tensor:
        """The nearest point that fooled, where it is within eps; elsewhere what the ball holds of the last one."""
        within = self.gap <= self.threat.eps
        return torch.where(per_sample(within, like=at), self.best, inside(self.x, at, self.threat)).detach()


def _random_start(oracle: _Labels, low: Tensor, high: Tensor, rng: Generator) -> Tensor:
    start = oracle.x.clone()
    for _ in range(min(50, oracle.queries // 4)):
        draw = low + torch.rand(low.shape, generator=rng, device=low.device, dtype=low.dtype) * (high - low)
        point = moved(oracle.x, draw, oracle.threat)
        found = oracle.found.clone()
        wrong = oracle.fools(point)
        start = torch.where(per_sample(wrong & ~found, like=start), point, start)
        if oracle.found.all():
            break
    return start


def _halve(oracle: _Labels, points: Tensor, *, rounds: int, away_from: Tensor | None = None) -> Tensor:
    """Nearer to the original, as long as it fools: in L-inf by clipping the change, else along the line."""
    goal = oracle.x if away_from is None else away_from
    flat = oracle.threat.norm in ("linf", "unbounded")
    least, most = torch.zeros_like(oracle.gap), torch.ones_like(oracle.gap)
    size = (points - goal).flatten(1).abs().amax(1)
    for _ in range(rounds):
        middle = (least + most) / 2
        if flat:
            reach = per_sample(middle * size, like=points)
            point = goal + (points - goal).clamp(-reach, reach)
        else:
            point = goal + per_sample(middle, like=points) * (points - goal)
        wrong = oracle.fools(point)
        least, most = torch.where(wrong, least, middle), torch.where(wrong, middle, most)
    if flat:
        reach = per_sample(most * size, like=points)
        return goal + (points - goal).clamp(-reach, reach)
    return goal + per_sample(most, like=points) * (points - goal)


def _normal(oracle: _Labels, at: Tensor, radius: Tensor, draws: int, rng: Generator, flat: bool) -> Tensor:
    """An estimate of the direction into the other class, from the labels of random neighbours: [B, ...]."""
    noise, labels = [], []
    for _ in range(draws):
        u = torch.randn(at.shape, generator=rng, device=at.device, dtype=at.dtype)
        point = (at + per_sample(radius, like=at) * u / l2(u)).clamp(*oracle.threat.bounds)
        noise.append((point - at) / per_sample(radius, like=at))
        labels.append(2.0 * oracle.fools(point).to(at) - 1)
    if not noise:
        return torch.zeros_like(at)
    answers = torch.stack(labels)
    mean = answers.mean(0)
    weight = torch.where(mean.abs() == 1, answers, answers - mean)
    estimate = sum(u * per_sample(w, like=u) for u, w in zip(noise, weight, strict=True))
    assert isinstance(estimate, Tensor)
    return estimate.sign() if flat else estimate / l2(estimate)


def _width(point: Tensor, x: Tensor, flat: bool) -> Tensor:
    delta = (point - x).flatten(1)
    return delta.abs().amax(1) if flat else delta.norm(dim=1)
