"""Robust accuracy against eps, over the whole range, from one search for the smallest perturbations."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.crossings import smallest_crossings
from tasks.attacks.fmn import minimum_norm
from tasks.attacks.geometry import distance
from tasks.attacks.search import at_once, margins
from tasks.metrics.cell import BLOCK, CPU, judged
from tasks.metrics.code import grounds
from tasks.metrics.draws import generator, seed_all
from tasks.metrics.isolation import Meter, at_home, untouched
from tasks.metrics.outcomes import AttackOutcome, Outcomes
from tasks.metrics.store import CellStore, Entry, tensor_digest
from tasks.redact import told
from tasks.statistics import Share

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # of eps; up to where nothing stands
NEARBY, ELSEWHERE = 20, 10  # steps from the nearest point known, and from halfway to a sample of another class
NAME = "minimum-norm"  # of the search's row among the attacks


class CurvePoint(BaseModel, frozen=True, extra="forbid"):
    """Robust accuracy at one radius."""

    eps: float
    robust: Share


@dataclass(frozen=True)
class Smallest:
    """The smallest perturbations that were found for R samples, and what the search took."""

    distance: Tensor  # float [R]; infinite where nothing fooled
    x_adv: Tensor  # [R, ...]
    forward_samples: int
    backward_samples: int
    seconds: float


@torch.inference_mode(False)  # a caller who asks for no gradients means his own
def security_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    outcomes: Outcomes,
    confidence: float = 0.95,
    store: CellStore | None = None,
    weights: str = "",
) -> tuple[Outcomes, tuple[CurvePoint, ...]]:
    """The outcomes with what the search found besides, and points from eps 0 to where no sample stands.

    For every sample that is classified correctly, the smallest perturbation that fools is looked for from the nearest
    point that the suite met, and from halfway to a sample of another class; the curve at eps is the share of samples
    whose smallest one is longer. A sample that falls within the threat's eps here, after standing against the suite,
    counts as fooled, so that the curve and the headline agree where they meet. An unbounded threat has no curve. Where
    the model raises there is none either, and the outcomes name it as a problem. store and weights as in measure():
    the search goes in the suite's blocks of 512 samples, and none of them is made twice.
    """
    threat = outcomes.threat
    if threat.norm == "unbounded":
        return outcomes, ()
    try:
        outcomes, away = _searched(model, x, y, outcomes, store, weights)
    except Exception as failure:  # a model may raise under a gradient; the number is void, the report goes on
        problem = f"{NAME}: raised {told(failure)}"
        return replace(outcomes, problems=(*outcomes.problems, problem)), ()
    points = [CurvePoint(eps=0.0, robust=_standing(away, 0.0, confidence))]
    for radius in _radii(threat):
        points.append(CurvePoint(eps=radius, robust=_standing(away, radius, confidence)))
        if points[-1].robust.value == 0.0:
            break
    return outcomes, tuple(points)


def _searched(
    model: nn.Module, x: Tensor, y: Tensor, outcomes: Outcomes, store: CellStore | None, weights: str
) -> tuple[Outcomes, Tensor]:
    """The outcomes with the search as one more attack, and each sample's smallest fooling distance, [N]."""
    threat, (x, y) = outcomes.threat, at_home(model, x, y)
    device, dtype, nearest = x.device, x.dtype, outcomes.nearest.to(x.device)
    correct, fooled = outcomes.clean_correct.to(device), outcomes.fooled.to(device)
    away, x_adv, blocks = torch.zeros(len(x), dtype=dtype, device=device), outcomes.x_adv.to(device).clone(), []
    with untouched(model) as meter:
        search = _search(meter, x, y, outcomes, store, weights, tensor_digest(x, y) if store is not None else "")
        for number, block in enumerate(torch.arange(len(x), device=device).split(BLOCK)):
            rows = block[correct[block]]
            if not len(rows):
                continue
            blocks.append(search(rows, nearest[rows], number=number))
            away[rows] = blocks[-1].distance.to(away)
            fell = (away[rows] <= threat.eps) & ~fooled[rows]
            x_adv[rows[fell]] = blocks[-1].x_adv.to(x)[fell]
        started, forward = time.perf_counter(), meter.forward_samples
        seed_all(generator(CPU, outcomes.seed, NAME, "judge").initial_seed())
        logits, prediction = judged(meter, x_adv)
    known = outcomes.fooled.to(device) & correct
    late = (prediction != y) & ~fooled & (distance(x, x_adv, threat) <= threat.eps) & correct
    away[known] = torch.minimum(away[known], distance(x, x_adv, threat)[known])
    away[known | late] = away[known | late].clamp_max(threat.eps)  # rounding may have added a last bit
    away[correct & ~known & ~late] = away[correct & ~known & ~late].clamp_min(threat.eps * (1 + 1e-6))
    row = AttackOutcome(
        name=NAME,
        tried=(correct & ~fooled).cpu(),
        fooled=late.cpu(),
        forward_samples=meter.forward_samples - forward + sum(block.forward_samples for block in blocks),
        backward_samples=sum(block.backward_samples for block in blocks),
        seconds=time.perf_counter() - started + sum(block.seconds for block in blocks),
    )
    margin = torch.where(late, margins(logits.float(), y), outcomes.margin.to(device))
    return outcomes.joined(row, x_adv, prediction, margin=margin), away.cpu()


def search_block(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    number: int,
    *,
    outcomes: Outcomes,
    store: CellStore,
    weights: str,
    samples: str,
) -> None:
    """Make the curve's search on one block of x [N, ...], y [N], so that security_curve() finds it in the store.

    x, y as at_home() gives them, samples the digest of both; outcomes are those of this block's samples alone.
    """
    device, correct = x.device, outcomes.clean_correct.to(x.device)
    rows = torch.arange(number * BLOCK, min((number + 1) * BLOCK, len(x)), device=device)[correct]
    if len(rows) and outcomes.threat.norm != "unbounded":
        with untouched(model) as meter:
            search = _search(meter, x, y, outcomes, store, weights, samples)
            search(rows, outcomes.nearest.to(device)[correct], number=number)


def _search(
    meter: Meter, x: Tensor, y: Tensor, outcomes: Outcomes, store: CellStore | None, weights: str, samples: str
) -> Callable[..., Smallest]:
    """The search on some rows [R] of x, y as a function of them, their nearest points known and their block's number.

    It looks into the store first, if there is one, and compares samples only where nothing is found there. samples is
    the digest of x and y: among all of them the rows find those of another class.
    """
    meter.draws, threat = outcomes.draws, outcomes.threat
    facts = {"stage": "curve", "weights": weights, "threat": threat.digest, "seed": outcomes.seed, "all": samples}
    facts |= {"draws": meter.draws, **grounds(meter, x)}

    def of(rows: Tensor, nearest: Tensor, *, number: int) -> Smallest:
        def search() -> Smallest:
            begin = {NEARBY: nearest, ELSEWHERE: (x[rows] + _of_another_class(x, y, rows)) / 2}
            return _smallest(meter, x[rows], y[rows], begin, threat=threat, seed=outcomes.seed, number=number)

        if store is None or not weights:
            return search()
        own = {**facts, "cell": number, "samples": tensor_digest(x[rows], y[rows], nearest)}
        found: Smallest = store.once(own, search, save=Entry.of, load=lambda entry: Smallest(**entry.fields))
        return found

    return of


def _smallest(
    meter: Meter, x: Tensor, y: Tensor, begin: Mapping[int, Tensor], *, threat: ThreatModel, seed: int, number: int
) -> Smallest:
    """The search on x [R, ...], y [R]: begin holds, by the number of steps, the points [R, ...] to go out from."""
    started, forward, backward = time.perf_counter(), meter.forward_samples, meter.backward_samples
    seed_all(generator(CPU, seed, NAME, number).initial_seed())  # of models that draw
    found = [
        _nearest_fooling(meter, x[part], y[part], {steps: start[part] for steps, start in begin.items()}, threat)
        for part in torch.arange(len(x), device=x.device).split(at_once(x))
    ]
    distance, x_adv = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Smallest(
        distance=distance,
        x_adv=x_adv,
        forward_samples=meter.forward_samples - forward,
        backward_samples=meter.backward_samples - backward,
        seconds=time.perf_counter() - started,
    )


def _nearest_fooling(
    meter: Meter, x: Tensor, y: Tensor, begin: Mapping[int, Tensor], threat: ThreatModel
) -> tuple[Tensor, Tensor]:
    """How far the nearest fooling point is that was found, [R], and the point, [R, ...]."""
    found = [minimum_norm(meter, x, y, threat=threat, steps=steps, start=start) for steps, start in begin.items()]
    found.append(smallest_crossings(meter, x, y, threat=threat))
    smallest, which = torch.stack([away for away, _ in found]).min(0)
    return smallest, torch.stack([x_adv for _, x_adv in found])[which, torch.arange(len(x), device=x.device)]


def _of_another_class(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """For each of these samples the nearest one with another label, or itself where there is none: [R, ...]."""
    away = torch.cdist(x[rows].flatten(1), x.flatten(1)).masked_fill(y[rows, None] == y, float("inf"))
    gap, other = away.min(1)
    return x[torch.where(gap.isfinite(), other, rows)]


def _radii(threat: ThreatModel) -> Sequence[float]:
    """The curve's radii, in ascending order; whole numbers in L0, and in L-inf no more than the input's range."""
    low, high = threat.bounds
    radii = [threat.eps * m for m in MULTIPLES]
    if threat.norm.startswith("l0"):
        return sorted({max(1.0, float(round(radius))) for radius in radii})
    largest = high - low if threat.norm == "linf" and threat.scale is None else float("inf")
    return [radius for radius in radii if radius == threat.eps or radius < largest]


def _standing(away: Tensor, radius: float, confidence: float) -> Share:
    return Share.of(int((away > radius).sum()), len(away), confidence=confidence)
