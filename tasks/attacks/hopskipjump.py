"""A label-only attack: it sees the class that the model names, and nothing else."""

import math

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.geometry import distance, farthest, inside, l2, limits, moved, per_sample, to_hyperplane
from tasks.attacks.threat import ThreatModel

FEW_MOVE = ("l1", "l0", "l0-pixels")  # norms under which few features should move
BEYOND = (1.0, 1.1, 1.3, 1.8, 3.0, 6.0)  # times the way to the estimated boundary, until the model is fooled
ROUNDS = 8  # of halving a stride, and of halving the way to the boundary


def hopskipjump(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, queries: int = 2000
) -> Tensor:
    """Chen, Jordan and Wainwright, 2020, https://arxiv.org/abs/1904.02144: x [B, ...], y [B] -> x_adv [B, ...].

    Starts from random inputs, halves the way to the boundary, estimates the boundary's normal from labels at random
    points around it, and steps along it. Beyond the paper, it also asks the point of the ball that is farthest along
    each normal. In L1 and L0 it does not step along the normal, but to the nearest point of the estimated boundary,
    and walks features (or pixels) back to the original's values, in groups, as long as the model is fooled: the
    pointwise attack, Schott et al., 2018, https://arxiv.org/abs/1805.09190.

    A sample is asked about until it is fooled within eps, and `queries` times at most. Returns the nearest input that
    fools, brought into the ball.
    """
    oracle = _Labels(model, x, y, threat, queries)
    far = _random_start(oracle, rng)
    if threat.norm in FEW_MOVE:
        far = _walk_back(oracle, far, torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype))
    edge = _halve(oracle, far, rounds=10)
    iteration = 0
    while oracle.left():
        iteration += 1
        draws = min(int(20 * math.sqrt(iteration)), max(oracle.left() // 2, 1))
        normal = _normal(oracle, edge, draws, rng)
        oracle.fools(moved(x, farthest(normal, threat, limits(x, threat)), threat))
        if threat.norm in FEW_MOVE:
            stepped = _walk_back(oracle, _onto_plane(oracle, edge, normal), normal.abs())
        else:
            stepped = _step(oracle, edge, normal, 1 / math.sqrt(iteration))
        edge = _halve(oracle, stepped, rounds=ROUNDS)
    return oracle.nearest(edge)


class _Labels:
    """The model's labels, counted sample by sample."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, queries: int) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.low, self.high = limits(x, threat.model_copy(update={"norm": "unbounded"}))
        self.scale = torch.ones_like(x[:1])
        if threat.scale:
            self.scale = torch.tensor(threat.scale, dtype=x.dtype, device=x.device).view_as(self.scale)
        self.flat = threat.norm in ("linf", "unbounded")
        self.remaining = torch.full_like(y, queries)
        self.best, self.gap = x.clone(), torch.full((len(x),), float("inf"), device=x.device, dtype=x.dtype)

    def open(self) -> Tensor:
        """The samples that may be asked about and are not yet fooled within eps: bool [B]."""
        return (self.remaining > 0) & (self.gap > self.threat.eps)

    def left(self) -> int:
        """How often one of the open samples may still be asked about."""
        return int((self.remaining * self.open()).max())

    @torch.no_grad()
    def fools(self, points: Tensor, who: Tensor | None = None) -> Tensor:
        """Which of points [B, ...] the model gets wrong: bool [B]. Asks for the open samples among `who`, bool [B]."""
        wrong = torch.zeros_like(self.remaining, dtype=torch.bool)
        rows = (self.open() if who is None else self.open() & who).nonzero().flatten()
        if not len(rows):
            return wrong
        self.remaining[rows] -= 1
        wrong[rows] = self.model(points[rows]).argmax(1) != self.y[rows]
        gap = distance(self.x, points, self.threat).to(self.gap)
        closer = wrong & (gap < self.gap)
        self.gap = torch.where(closer, gap, self.gap)
        self.best = torch.where(per_sample(closer, like=points), points, self.best)
        return wrong

    def length(self, delta: Tensor) -> Tensor:
        """How long a change is as the walk measures it, in L-inf or L2: [B]."""
        sizes = (delta / self.scale).flatten(1)
        return sizes.abs().amax(1) if self.flat else sizes.norm(dim=1)

    def nearest(self, at: Tensor) -> Tensor:
        """The nearest point that fooled, where it is within eps; elsewhere what the ball holds of the last one."""
        within = self.gap <= self.threat.eps
        return torch.where(per_sample(within, like=at), self.best, inside(self.x, at, self.threat)).detach()


def _random_start(oracle: _Labels, rng: Generator) -> Tensor:
    """For each sample the first input that fools, or x: by turns noise, and the batch's next one under salt and pepper.

    What is only asked about for other samples' sake costs nothing of its own.
    """
    x, start, found, turn = oracle.x, oracle.x.clone(), oracle.gap.isfinite(), 0
    while (oracle.open() & ~found).any():
        share = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        delta = oracle.low + share * (oracle.high - oracle.low)
        if turn % 2:
            corner = torch.where(share < 0.5, oracle.low, oracle.high)
            delta = ((corner + x.roll(turn // 2 + 1, 0) - x) / 2).clamp(oracle.low, oracle.high)
        point = moved(x, delta, oracle.threat)
        wrong = oracle.fools(point, ~found)
        start = torch.where(per_sample(wrong, like=x), point, start)
        found, turn = found | wrong, turn + 1
    return start


def _halve(oracle: _Labels, points: Tensor, *, rounds: int) -> Tensor:
    """Nearer to the original, as long as it fools: in L-inf by clipping the change, else along the line."""
    change, size = points - oracle.x, oracle.length(points - oracle.x)
    least, most = torch.zeros_like(oracle.gap), torch.ones_like(oracle.gap)

    def at(share: Tensor) -> Tensor:
        if not oracle.flat:
            return moved(oracle.x, per_sample(share, like=change) * change, oracle.threat)
        reach = per_sample(share * size, like=change) * oracle.scale
        return moved(oracle.x, change.clamp(-reach, reach), oracle.threat)

    for _ in range(rounds):
        middle = (least + most) / 2
        wrong = oracle.fools(at(middle))
        least, most = torch.where(wrong, least, middle), torch.where(wrong, middle, most)
    return at(most)


def _normal(oracle: _Labels, edge: Tensor, draws: int, rng: Generator) -> Tensor:
    """An estimate of the slope into the other class, from the labels of random neighbours: [B, ...]."""
    radius = per_sample(oracle.length(edge - oracle.x) / math.sqrt(edge[0].numel()) + 1e-3, like=edge)
    answers, fooling, every = torch.zeros_like(oracle.gap), torch.zeros_like(edge), torch.zeros_like(edge)
    for _ in range(draws):
        u = torch.randn(edge.shape, generator=rng, device=edge.device, dtype=edge.dtype)
        delta = (edge - oracle.x + radius * oracle.scale * u / l2(u)).clamp(oracle.low, oracle.high)
        answer = 2 * oracle.fools(moved(oracle.x, delta, oracle.threat)).to(edge) - 1
        u = (delta - (edge - oracle.x)) / radius / oracle.scale
        answers, every = answers + answer, every + u
        fooling = fooling + per_sample(answer, like=u) * u
    mean = per_sample(answers / draws, like=edge)
    return torch.where(mean.abs() == 1, fooling, fooling - mean * every) / oracle.scale


def _step(oracle: _Labels, edge: Tensor, normal: Tensor, share: float) -> Tensor:
    """From the edge along the normal, by a share of its distance at first, and by half of it until that fools."""
    way = oracle.scale * normal
    way = oracle.scale * way.sign() if oracle.flat else oracle.scale * way / l2(way)
    stride, result, good = share * oracle.length(edge - oracle.x), edge, torch.zeros_like(oracle.gap, dtype=torch.bool)
    for _ in range(ROUNDS):
        delta = (edge - oracle.x + per_sample(stride, like=way) * way).clamp(oracle.low, oracle.high)
        stepped = moved(oracle.x, delta, oracle.threat)
        wrong = oracle.fools(stepped, ~good)
        result = torch.where(per_sample(wrong, like=edge), stepped, result)
        good, stride = good | wrong, stride / 2
    return result


def _onto_plane(oracle: _Labels, edge: Tensor, normal: Tensor) -> Tensor:
    """The point of the plane through the edge that is nearest in the threat's norm, or the first behind it that fools.

    The edge where none does.
    """
    drop = ((edge - oracle.x) * normal).flatten(1).sum(1).clamp_min(0)
    result, good = edge, torch.zeros_like(oracle.gap, dtype=torch.bool)
    for times in BEYOND:
        delta = to_hyperplane(-normal, times * drop, oracle.threat, (oracle.low, oracle.high))
        point = moved(oracle.x, delta, oracle.threat)
        wrong = oracle.fools(point, ~good)
        result = torch.where(per_sample(wrong, like=edge), point, result)
        good = good | wrong
    return result


def _walk_back(oracle: _Labels, point: Tensor, slope: Tensor) -> Tensor:
    """The point with every feature, or pixel, as in the original that the model is fooled without: [B, ...].

    First those whose change times `slope` [B, ...] is smallest, in groups: twice as many after a group that could go,
    half of it after one that could not.
    """
    pixels = oracle.threat.norm == "l0-pixels" and point.ndim > 2
    worth = (point - oracle.x).abs() * slope
    changed = point != oracle.x
    if pixels:
        worth, changed = worth.sum(1, keepdim=True), changed.any(1, keepdim=True)
    units = worth.shape
    order = worth.masked_fill(~changed, float("inf")).flatten(1).argsort(dim=1, stable=True)
    place = order.argsort(1).view(units)
    count = changed.flatten(1).sum(1)
    at, size = torch.zeros_like(count), (count // 2).clamp_min(1)
    while (busy := oracle.open() & (at < count)).any():
        group = (place >= per_sample(at, like=place)) & (place < per_sample(at + size, like=place))
        tried = torch.where(group, oracle.x, point)
        wrong = oracle.fools(tried, busy)
        point = torch.where(per_sample(wrong, like=point), tried, point)
        at = torch.where(busy & (wrong | (size == 1)), at + size, at)
        size = torch.minimum(torch.where(wrong, 2 * size, size // 2), count - at).clamp_min(1)
    return point
