"""binarise(): does an attack find an adversarial example that is known to exist? A test of the attack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.geometry import farthest, limits, moved, sample, within_radius
from tasks.errors import WrongInput
from tasks.lookup import did_you_mean
from tasks.metrics.cell import BLOCK
from tasks.metrics.draws import generator, seed_all
from tasks.metrics.inputs import check_suite, checked
from tasks.metrics.isolation import PROBE, Meter, untouched
from tasks.metrics.outcomes import measure
from tasks.statistics import Share

BAR = 0.95  # of the hidden examples: an attack that finds fewer fails, as in the paper
INNER = 500  # points that the boundary point is told from; the more, the harder it is to find
TRIES = 64  # points that noise draws, about as many passes as a gradient attack has steps
INSIDE = 0.95  # of the radius: how far the inner points go
CLOSE = 0.9  # of the way from the largest inner score to the boundary point's: where class 1 begins
ROUNDS = 3000  # of looking for the readout; it ends earlier where the readout is found
NEARLY = 0.9  # of the widest margin is wide enough


class Binarisation(BaseModel, frozen=True, extra="forbid"):
    """How often a suite found an adversarial example that was put there for it, and how often noise did."""

    suite: str
    score: Share | None = Field(description="of the tested samples: the suite succeeded; empty where none is tested")
    by_noise: Share | None = Field(description="of the same samples: random points of the ball succeeded")
    tested: int = Field(ge=0, description="samples whose boundary point a readout tells from the inner points")
    skipped: int = Field(ge=0, description="samples for which no such readout was found")
    missed: tuple[int, ...] = Field((), description="rows of x on which the suite failed")
    passes: int = Field(0, ge=0, description="forward and backward, in samples")
    problems: tuple[str, ...] = Field((), description="each of them voids the number")

    @property
    def passed(self) -> bool:
        """Whether the suite found nearly all of what was hidden, and noise clearly less."""
        if self.score is None or self.by_noise is None or self.problems:
            return False
        return self.score.value >= BAR and self.by_noise.hi < self.score.lo

    @property
    def says(self) -> str:
        """In plain sentences: what was hidden, what was found, and what follows."""
        if self.score is None or self.by_noise is None:
            return f"No adversarial example could be hidden in the balls of {self.skipped} samples: nothing was tested."
        found, noisy = self.tested - len(self.missed), round(self.by_noise.value * self.tested)
        told = (
            f"Each of {self.tested} balls holds an adversarial example for sure. Suite {self.suite!r} found {found} of "
            f"them, {TRIES} random points in each ball {noisy}."
        )
        if self.skipped:
            told += f" {self.skipped} more samples were left out: no readout told their boundary point from the others."
        if self.problems:
            return f"{told} This is void: {self.problems[0]}."
        if self.score.value < BAR:
            return f"{told} What the suite misses here it may miss elsewhere: do not trust the robustness it reports."
        return told if self.passed else f"{told} So few samples, or ones so easy for noise, prove nothing of the suite."


class Features(nn.Module):
    """What a layer of the model is given, or the model's logits where no layer is named."""

    def __init__(self, model: nn.Module, layer: nn.Module | None) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> features [B, F]. The hook is there during the pass only, so the model keeps none."""
        if self.layer is None:
            logits: Tensor = self.model(x)
            return logits.flatten(1)
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(next(iter((*args, *kwargs.values()))))

        hook = self.layer.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model(x)
        finally:
            hook.remove()
        if not caught or len(caught[-1]) != len(x):
            seen = "was not called" if not caught else f"was given {list(caught[-1].shape)} for {len(x)} samples"
            raise WrongInput(f"the layer that the features are taken from {seen}. Name another one as layer='...'.")
        return caught[-1].flatten(1)


class Readout(nn.Module):
    """Two classes read linearly off frozen features: 0 for a sample and its inner points, 1 for its boundary point."""

    origin: Tensor  # [F]: the sample's features
    direction: Tensor  # [F], so long that class 1 begins 1 away from the origin: then cross-entropy has a slope there

    def __init__(self, features: nn.Module, origin: Tensor, direction: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("origin", origin)
        self.register_buffer("direction", direction)

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, 2]."""
        return self.read(self.features(x))

    def read(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, 2]."""
        score = ((features.to(self.origin) - self.origin) * self.direction).sum(1) - 1
        return torch.stack([-score, score], dim=1)


@dataclass(frozen=True)
class Hidden:
    """A two-class model with an adversarial example that surely exists, and whether noise comes upon one."""

    readout: Readout
    by_noise: bool


@torch.inference_mode(False)  # as measure()
def binarise(
    model: nn.Module,
    x: Tensor,
    *,
    threat: ThreatModel,
    suite: str | Suite | Sequence[str | AttackConfig] = "standard",
    samples: int = 64,
    seed: int = 0,
    layer: str | None = None,
    confidence: float = 0.95,
) -> Binarisation:
    """How often the suite finds an adversarial example that is known to exist, for at most `samples` rows of x.

    Zimmermann et al., 2022, https://arxiv.org/abs/2206.13991. For each sample the model's last layer is replaced by a
    linear readout that tells one point on the ball's edge from 500 points of the ball with 0.95 of its radius. What
    the suite misses then is the suite's fault. It says nothing of what the model does behind its features: logits
    that are saturated, or a detector beside them.

    x [N, ...] as in measure(); labels are not needed. layer: whose input the features are, by its name in
    model.named_modules(); by default the last nn.Linear's, and of a model without one the logits. The model is left
    as it was. Raises WrongInput for a threat whose ball has no edge to hide a point on (L0, unbounded), for an
    unknown layer, for a model that answers at random, and for what measure() refuses.
    """
    suite, (at_home, _) = as_suite(suite), checked(model, x, torch.zeros(len(x), dtype=torch.long), threat)
    check_suite(suite, threat, None, x)
    if threat.norm == "unbounded" or threat.norm.startswith("l0"):
        raise WrongInput(
            f"under {threat} a ball has no edge that sets a hidden point apart. Write norm='linf', 'l2' or 'l1'."
        )
    order = torch.randperm(len(x), generator=generator(torch.device("cpu"), seed, "binarise"))
    rows = order[:samples].sort().values
    x = at_home[rows.to(at_home.device)]
    device = x.device
    starts = dict(zip(rows.tolist(), x.split(1), strict=True))
    with untouched(Features(model, _layer(model, layer))) as meter:
        _check_steady(meter, x[:PROBE])
        hidden = {row: _hide(meter, start, threat, generator(device, seed, row)) for row, start in starts.items()}
        passes = meter.passes
    puzzles = {row: puzzle for row, puzzle in hidden.items() if puzzle}
    attack = partial(measure, y=torch.zeros(1, dtype=torch.long), threat=threat, suite=suite)
    outcomes = {row: attack(puzzle.readout, starts[row], seed=seed + row) for row, puzzle in puzzles.items()}
    missed = tuple(row for row, found in outcomes.items() if not found.fooled.any())
    noisy, tested = sum(puzzle.by_noise for puzzle in puzzles.values()), len(puzzles)
    return Binarisation(
        suite=suite.name,
        score=Share.of(tested - len(missed), tested, confidence=confidence) if tested else None,
        by_noise=Share.of(noisy, tested, confidence=confidence) if tested else None,
        tested=tested,
        skipped=len(rows) - tested,
        missed=missed,
        passes=passes + sum(found.passes for found in outcomes.values()),
        problems=tuple(dict.fromkeys(problem for found in outcomes.values() for problem in found.problems)),
    )


def _layer(model: nn.Module, name: str | None) -> nn.Module | None:
    """The layer of this name, or else the last linear one, if there is any. Raises WrongInput."""
    if name is None:
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        return linear[-1] if linear else None
    known: dict[str, nn.Module] = {key: module for key, module in model.named_modules() if key}
    if name not in known:
        raise WrongInput(
            f"the model has no layer {name!r}.{did_you_mean(name, known)} Known: {', '.join(known) or 'none'}."
        )
    return known[name]


@torch.no_grad()
def _check_steady(meter: Meter, x: Tensor) -> None:
    """Raise WrongInput for a model that answers at random, or by the global seed."""
    seed_all(0)
    first = meter.once(x)
    seed_all(1)
    if not torch.allclose(first, meter.once(x), rtol=1e-3, atol=1e-4, equal_nan=True):
        raise WrongInput(
            "the model answers at random, so no example that is hidden in it is sure to stay where it is. "
            "Give a copy of it whose noise is switched off."
        )


@torch.no_grad()
def _hide(meter: Meter, x: Tensor, threat: ThreatModel, rng: Generator) -> Hidden | None:
    """The two-class model for a sample x [1, ...]; None where no readout tells the boundary point from the others."""
    smaller = threat.model_copy(update={"eps": INSIDE * threat.eps})
    inner = moved(x, _scattered(x, smaller, INNER, rng), threat)
    edge = moved(x, _to_the_edge(x, threat, rng), threat)
    points = torch.cat([meter.once(part) for part in torch.cat([edge, x, inner]).split(BLOCK)])
    readout = _readout(meter.model, points)
    if readout is None:
        return None
    answers = [int(readout.read(meter.once(point)).argmax()) for point in (x, edge)]
    if answers != [0, 1]:  # asked alone, as the attack will ask, and not in the company of the others
        return None
    tries = moved(x, _scattered(x, threat, TRIES, rng), threat)
    return Hidden(readout, bool((readout.read(meter.once(tries)).argmax(1) == 1).any()))


def _scattered(x: Tensor, threat: ThreatModel, count: int, rng: Generator) -> Tensor:
    """Random perturbations of x [1, ...], half of them anywhere in the ball and half on its edge: [count, ...]."""
    half = x.expand(count // 2, *x.shape[1:])
    return torch.cat([sample(half, threat, rng), _to_the_edge(half, threat, rng)])


def _to_the_edge(x: Tensor, threat: ThreatModel, rng: Generator) -> Tensor:
    """Random perturbations that reach the edge of ball or box, with the shape of x [B, ...]."""
    within = limits(x, threat)
    if threat.norm == "l1":  # else one feature takes the whole radius, and there are few such corners to draw from
        most = threat.eps / math.ceil(x[0].numel() ** 0.5)
        within = within_radius(within, threat.model_copy(update={"norm": "linf"}), most)
    return farthest(torch.empty_like(x).normal_(generator=rng), threat, within)


def _readout(features: nn.Module, points: Tensor) -> Readout | None:
    """The readout of nearly the widest margin for features [1 + 1 + n, F] of boundary point, sample, inner points."""
    wide = torch.promote_types(points.dtype, torch.float32)
    exact = points.double().cpu()
    gaps = exact[0] - exact[1:]
    if not bool(gaps.isfinite().all()):
        return None
    direction = _nearest_to_zero(gaps @ gaps.T) @ gaps
    leads = gaps @ direction  # of the boundary point's score over the others'
    gap = leads.min()
    if not gap > 0:
        return None
    beginning = leads[0] - (1 - CLOSE) * gap
    return Readout(features, points[1].to(wide), (direction / beginning).to(points.device, wide))


def _nearest_to_zero(gram: Tensor) -> Tensor:
    """Weights [n] of the mean of n vectors with these inner products [n, n] that is nearest to zero.

    Gilbert, 1966, https://doi.org/10.1137/0304007. Of the vectors from each inner point to the boundary point this
    mean is the normal of the widest margin, and zero where no plane lies between them.
    """
    weights = torch.full_like(gram[0], 1 / len(gram))
    for _ in range(ROUNDS):
        along = gram @ weights
        square, worst = weights @ along, int(along.argmin())
        gain = square - along[worst]
        if along[worst] >= NEARLY * square:
            break
        share = (gain / (gain + gram[worst, worst] - along[worst])).clamp(0, 1)
        weights = (1 - share) * weights
        weights[worst] += share
    return weights
