"""The moves that every attack is made of: start somewhere, step uphill, stay inside, measure.

Shapes: B = batch, ... = any input shape. The box matters as much as the ball: what the bounds, the mask and (in
L-inf) the radius allow is one pair of limits on delta, and every move below respects ball and limits at once.
"""

import torch
from torch import Generator, Tensor

from tasks.attacks.features import mask_of, scale_of
from tasks.attacks.threat import ThreatModel

TINY = 1e-12
SLACK = 1e-5  # of the radius and of the box: what rounding to float32 may add
ROUNDS = 10  # of filling: each one fixes the features that met their limit; more changes nothing measurable
CLOSER = 1 + 1e-6  # a round of filling that brings less than this is the last
HALVINGS = 30  # of an interval: to float32's precision
FEW = 64  # features, the worthiest, that mostly take a whole L1 budget; finding them costs a fifth of sorting all

Limits = tuple[Tensor, Tensor]
Radius = float | Tensor  # one for all, or one for each sample: [B, 1, ...]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [B] so that it broadcasts against [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def total(values: Tensor) -> Tensor:
    """The sum over each sample, [B, 1, ...]."""
    return per_sample(values.flatten(1).sum(1), like=values)


def l2(x: Tensor) -> Tensor:
    """Euclidean length of every sample, [B, 1, ...], never zero."""
    return per_sample(x.flatten(1).norm(dim=1).clamp_min(TINY), like=x)


def distance(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """How far each sample moved, in the threat's norm and scale: [B]. Infinite where a masked feature moved."""
    delta = x_adv - x
    moved = _length(delta / scale_of(threat, delta) if threat.scale else delta, threat)
    if threat.mask is not None:
        frozen = (delta * ~mask_of(threat, delta)).flatten(1).abs().amax(1) > 0
        moved = moved.masked_fill(frozen, float("inf"))
    return moved


def allowed(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """How far each sample may have moved: [B]. The radius, and what rounding adds to each feature as large as it is."""
    if threat.norm.startswith("l0"):
        return torch.full_like(x.flatten(1)[:, 0], threat.eps)
    last = torch.finfo(x.dtype).eps * torch.maximum(x.abs(), x_adv.abs())
    return threat.eps * (1 + SLACK) + _length(last / scale_of(threat, last), threat)


def limits(x: Tensor, threat: ThreatModel) -> Limits:
    """The smallest and the largest delta that bounds, mask and, in L-inf, the radius allow: [B, ...] each."""
    low, high = threat.bounds[0] - x, threat.bounds[1] - x
    low, high = low.clamp_max(0), high.clamp_min(0)
    if threat.norm == "linf":
        reach = threat.eps * scale_of(threat, x) if threat.scale else torch.as_tensor(threat.eps).to(x)
        low, high = torch.maximum(low, -reach), torch.minimum(high, reach)
    if threat.mask is not None:
        mask = mask_of(threat, x)
        low, high = low * mask, high * mask
    return low, high


def within_radius(box: Limits, threat: ThreatModel, eps: Radius) -> Limits:
    """The box, and in L-inf also the ball of this radius, as limits on delta."""
    if threat.norm != "linf":
        return box
    reach = eps * scale_of(threat, box[0])
    return torch.maximum(box[0], -reach), torch.minimum(box[1], reach)


def project(delta: Tensor, threat: ThreatModel, within: Limits, eps: Radius | None = None) -> Tensor:
    """The nearest perturbation, in the threat's scale, inside ball and limits. eps: the ball's, if not the threat's.

    In L-inf and L0 the radius cannot be set apart: there it is part of the limits, or a number of features.
    """
    eps = threat.eps if eps is None else eps
    if threat.norm in ("linf", "unbounded"):
        return delta.clamp(*within)
    if threat.scale:
        scale, plain, box = _unscaled(threat, within)
        return scale * project(delta / scale, plain, box, eps)
    if threat.norm == "l2":
        return _fill(delta, within, eps, largest=1.0)
    if threat.norm == "l1":
        return _shrink(delta, within, eps)
    clipped = delta.clamp(*within)
    return clipped * _strongest(clipped * (2 * delta - clipped), threat)


def farthest(slope: Tensor, threat: ThreatModel, within: Limits, eps: Radius | None = None) -> Tensor:
    """The perturbation inside ball and limits along which a linear function with this slope grows the most."""
    eps = threat.eps if eps is None else eps
    if threat.scale and threat.norm not in ("linf", "unbounded"):
        scale, plain, box = _unscaled(threat, within)
        return scale * farthest(slope * scale, plain, box, eps)
    if threat.norm == "l2":
        slope = _unit(slope)
        return _fill(slope / l2(slope) * eps, within, eps, largest=float("inf"))
    if threat.norm == "l1":
        return _spend(slope, within, eps)
    corner = _corner(slope, within)
    if threat.norm in ("linf", "unbounded"):
        return corner
    return corner * _strongest(slope.abs() * corner.abs(), threat)


def uphill(grad: Tensor, threat: ThreatModel, delta: Tensor | None = None, within: Limits | None = None) -> Tensor:
    """The unit step that raises a linearised loss the most; what a limit blocks is dropped before normalising."""
    if threat.norm in ("linf", "unbounded"):
        return grad.sign() * scale_of(threat, grad) if threat.scale else grad.sign()
    if threat.scale:
        grad = grad * scale_of(threat, grad)
    grad = free = _unit(grad)
    if delta is not None and within is not None:
        blocked = ((delta >= within[1]) & (grad > 0)) | ((delta <= within[0]) & (grad < 0))
        free = grad.masked_fill(blocked, 0.0)
    step = grad / l2(free)
    return step * scale_of(threat, grad) if threat.scale else step


def ascend(
    delta: Tensor,
    grad: Tensor,
    threat: ThreatModel,
    within: Limits,
    share: Tensor | float,
    eps: Radius | None = None,
    *,
    worth: Tensor | None = None,
) -> Tensor:
    """Delta after one step of `share` (a number, or [B]) of the radius up the slope, inside ball and limits.

    L-inf and L2 step along `uphill` and project. L1 and L0, whose best steps are sparse, never leave the ball: L0 goes
    that share of the way to the `farthest` corner (Frank and Wolfe, 1956); L1 takes that share of the radius from
    where it serves the slope the least and spends it where it serves the most (the pairwise step of Lacoste-Julien
    and Jaggi, 2015, https://arxiv.org/abs/1511.05932, over many features at once). There `worth`, a slope
    too, says what is given up the last.
    """
    share = per_sample(share.to(delta), like=delta) if isinstance(share, Tensor) else share
    if threat.norm == "l1":
        scale = scale_of(threat, delta)
        low, high = within[0] / scale, within[1] / scale
        worth = grad if worth is None else worth
        eps = threat.eps if eps is None else eps
        return scale * _swap(delta / scale, grad * scale, worth * scale, (low, high), eps, share)
    if threat.norm in ("linf", "unbounded", "l2"):
        length = share * (threat.eps if eps is None else eps)
        return project(delta + length * uphill(grad, threat, delta, within), threat, within, eps)
    stepped = delta + torch.as_tensor(share).clamp_max(1.0) * (farthest(grad, threat, within, eps) - delta)
    return project(stepped, threat, within, eps)


def inside(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """x_adv brought into the ball around x and into the box."""
    return moved(x, project(x_adv - x, threat, limits(x, threat)), threat)


def moved(x: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    """X + delta, without the last bit by which rounding may leave the box."""
    return (x + delta).clamp(*threat.bounds)


def sample(x: Tensor, threat: ThreatModel, rng: Generator) -> Tensor:
    """A random perturbation with the shape of x, from inside ball and limits."""
    within = limits(x, threat)
    if threat.norm in ("linf", "unbounded"):
        share = torch.empty_like(x).uniform_(0, 1, generator=rng)
        return within[0] + share * (within[1] - within[0])
    radius = per_sample(torch.rand(len(x), generator=rng, device=x.device, dtype=x.dtype), like=x)
    direction = torch.empty_like(x).normal_(generator=rng)
    if threat.norm == "l2":
        return project(threat.eps * radius * direction / l2(direction) * scale_of(threat, x), threat, within)
    return radius.clamp_min(0.5) * farthest(direction, threat, within)


def to_hyperplane(slope: Tensor, drop: Tensor, threat: ThreatModel, within: Limits) -> Tensor:
    """The smallest perturbation d within the limits with slope . d = -drop: [B, ...]; the corner where none is.

    slope [B, ...], drop [B] >= 0. Box-constrained projections as in Croce and Hein, 2020,
    https://arxiv.org/abs/1907.02044, here by filling or sorting.
    """
    if threat.scale:
        scale, plain, box = _unscaled(threat, within)
        return scale * to_hyperplane(slope * scale, drop, plain, box)
    corner = _corner(-slope, within)
    steepest = _steepest(slope)
    slope, drop = slope / per_sample(steepest, like=slope), drop / steepest
    gain, room, wanted = slope.abs(), corner.abs(), per_sample(drop, like=slope)
    if threat.norm == "l2":
        squares, full, rate = gain.square(), gain * room, torch.zeros_like(wanted)
        for _ in range(ROUNDS):
            met = rate * gain >= room
            missing = (wanted - total(full * met)).clamp_min(0)
            grown = (missing / total(squares * ~met).clamp_min(TINY)).clamp_max(torch.finfo(gain.dtype).max)
            if not (grown > rate * CLOSER).any():
                break
            rate = torch.maximum(rate, grown)
        return torch.minimum(rate * gain, room) * corner.sign()
    if threat.norm in ("linf", "unbounded"):
        return torch.minimum(room, per_sample(_level(gain, room, drop), like=room)) * corner.sign()
    worth = gain if threat.norm == "l1" else gain * room
    if threat.norm == "l0-pixels" and worth.ndim > 2:
        worth = worth.sum(1, keepdim=True).expand_as(worth)
    order = worth.flatten(1).argsort(dim=1, descending=True, stable=True)
    gains, rooms = gain.flatten(1).gather(1, order), room.flatten(1).gather(1, order)
    before = (gains * rooms).cumsum(1) - gains * rooms
    spent = torch.minimum((drop.unsqueeze(1) - before).clamp_min(0) / gains.clamp_min(TINY), rooms)
    return torch.zeros_like(spent).scatter(1, order, spent).view_as(slope) * corner.sign()


def _unscaled(threat: ThreatModel, within: Limits) -> tuple[Tensor, ThreatModel, Limits]:
    """The threat's scale, and threat and limits for what is measured in it."""
    scale = scale_of(threat, within[0])
    return scale, threat.model_copy(update={"scale": None}), (within[0] / scale, within[1] / scale)


def _corner(slope: Tensor, within: Limits) -> Tensor:
    """The limit up the slope of each feature; zero where it is level."""
    return torch.where(slope > 0, within[1], torch.where(slope < 0, within[0], torch.zeros_like(slope)))


def _unit(slope: Tensor) -> Tensor:
    """The slope with its steepest feature at 1, so that its square neither vanishes nor overflows."""
    return slope / per_sample(_steepest(slope), like=slope)


def _steepest(slope: Tensor) -> Tensor:
    return slope.flatten(1).abs().amax(1).clamp_min(torch.finfo(slope.dtype).tiny)


def _fill(direction: Tensor, within: Limits, eps: Radius, *, largest: float) -> Tensor:
    """clip(t * direction) of Euclidean length eps, or with t = largest where that is shorter."""
    low, high = within
    size, room = direction.abs(), torch.where(direction > 0, high, -low)
    squares, rooms = size.square(), room.square()
    t = (eps / l2(direction)).clamp_max(largest)
    for _ in range(ROUNDS):  # t grows, and with it the set of those that met their limit
        met = t * size >= room
        left = (eps**2 - total(rooms * met)).clamp_min(0)
        grown = (left / total(squares.masked_fill(met, 0.0)).clamp_min(TINY)).sqrt().clamp_max(largest)
        if not (grown > t * CLOSER).any():
            break
        t = torch.maximum(t, grown)
    result = (t * direction).clamp(low, high)
    return result * (eps / l2(result)).clamp_max(1.0)


def _level(gain: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """The smallest t with sum(gain * min(room, t)) = wanted, or the largest room where that is out of reach: [B]."""
    rooms, order = room.flatten(1).sort(1)
    gains = gain.flatten(1).gather(1, order)
    full = (gains * rooms).cumsum(1)
    rest = gains.flip(1).cumsum(1).flip(1)  # the gain of those whose room is not yet met
    reached = full + (rest - gains) * rooms
    at = (reached < wanted.unsqueeze(1)).sum(1).clamp_max(rooms.shape[1] - 1).unsqueeze(1)
    before = full.gather(1, at) - (gains * rooms).gather(1, at)
    t = (wanted.unsqueeze(1) - before) / rest.gather(1, at).clamp_min(TINY)
    return torch.minimum(t, rooms.gather(1, at)).clamp_min(0).squeeze(1)


def _swap(delta: Tensor, slope: Tensor, worth: Tensor, within: Limits, eps: Radius, share: Radius) -> Tensor:
    """Delta keeps what is worth the most, at most 1 - share of the radius; the rest of eps is spent up the slope."""
    kept = _fund(worth * delta.sign(), delta.abs(), (1 - torch.as_tensor(share).clamp_max(1.0)) * eps) * delta.sign()
    spent = _spend(slope, (within[0] - kept, within[1] - kept), eps - total(kept.abs()))
    return kept + spent


def _spend(slope: Tensor, within: Limits, budget: Radius) -> Tensor:
    """Changes of this sum along which a linear function with this slope grows the most."""
    corner = _corner(slope, within)
    return _fund(slope.abs(), corner.abs(), budget) * corner.sign()


def _fund(worth: Tensor, room: Tensor, budget: Radius) -> Tensor:
    """To each feature as much as it has room for, the worthiest first, until the budget is spent: [B, ...]."""
    worth, room, shape = worth.flatten(1), room.flatten(1), worth.shape
    worth = torch.where(room > 0, worth, -torch.inf)
    budget = budget.flatten(1) if isinstance(budget, Tensor) and budget.ndim else budget
    found, order = worth.topk(min(FEW, worth.shape[1]), dim=1)
    if ((room.gather(1, order).sum(1, keepdim=True) < budget) & (found[:, -1:] > -torch.inf)).any():
        order = worth.argsort(dim=1, descending=True, stable=True)
    rooms = room.gather(1, order)
    spent = torch.minimum((budget - (rooms.cumsum(1) - rooms)).clamp_min(0), rooms)
    return torch.zeros_like(room).scatter(1, order, spent).view(shape)


def _shrink(delta: Tensor, within: Limits, eps: Radius) -> Tensor:
    """Soft thresholding and clipping, with the smallest threshold that brings the sum of changes to eps."""
    size, room = delta.abs(), torch.where(delta > 0, within[1], -within[0])
    least, most = torch.zeros_like(total(size)), per_sample(size.flatten(1).amax(1), like=size)
    fits = total(torch.minimum(size, room)) <= eps
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        small = total(torch.minimum((size - middle).clamp_min(0), room)) <= eps
        least, most = torch.where(small, least, middle), torch.where(small, middle, most)
    threshold = torch.where(fits, torch.zeros_like(most), most)
    return torch.minimum((size - threshold).clamp_min(0), room) * delta.sign()


def _strongest(worth: Tensor, threat: ThreatModel) -> Tensor:
    """A mask of the eps features (or pixels) of the largest worth: bool [B, ...]."""
    pixels = threat.norm == "l0-pixels" and worth.ndim > 2
    grouped = worth.sum(1, keepdim=True) if pixels else worth
    flat = grouped.flatten(1)
    top = flat.topk(min(int(threat.eps), flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, top, True).view_as(grouped)


def _length(delta: Tensor, threat: ThreatModel) -> Tensor:
    if threat.norm in ("linf", "unbounded"):
        return delta.flatten(1).abs().amax(1)
    if threat.norm == "l0":
        return delta.flatten(1).count_nonzero(1).to(delta.dtype)
    if threat.norm == "l0-pixels":
        changed = (delta != 0).any(1) if delta.ndim > 2 else delta != 0
        return changed.flatten(1).sum(1).to(delta.dtype)
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=1 if threat.norm == "l1" else 2, dim=1)
    return length
