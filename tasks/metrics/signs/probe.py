"""A number under examination, and how a sign is made of what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import per_sample
from tasks.attacks.search import CLOSE_CALL, Search, at_once, compared, margins
from tasks.metrics.cell import judged
from tasks.metrics.curve import CurvePoint
from tasks.metrics.isolation import Meter
from tasks.metrics.outcomes import AttackOutcome, Outcomes
from tasks.metrics.soundness import Kind, Sign, State

FEWEST = 8  # samples of a probe, however small its part of the budget
LEAST = 3  # samples that must raise a sign, where so many were asked: fewer may be chance
SAME, SAME_HALF = 1e-3, 3e-2  # of the largest logit: answers that differ by less are the same


@dataclass
class Probe:
    """A measured number under examination, and the view of the model through which it is examined."""

    meter: Meter  # the model as it is
    view: nn.Module  # what gradients are asked of: the meter, or the adaptive attacker's stand-in
    x: Tensor
    y: Tensor
    outcomes: Outcomes
    curve: Sequence[CurvePoint]
    allowed: float  # passes
    rng: Generator
    fell: Tensor = field(init=False)  # bool [N]: fooled by a probe, after standing against the suite
    x_adv: Tensor = field(init=False)
    prediction: Tensor = field(init=False)  # int64 [N]
    margin: Tensor = field(init=False)  # float [N]: of what fooled, and else as the outcomes know it

    def __post_init__(self) -> None:
        self.fell = torch.zeros_like(self.y, dtype=torch.bool)
        self.margin = self.outcomes.margin.to(self.x.device).clone()
        self.x_adv, self.prediction = (
            self.outcomes.x_adv.to(self.x).clone(),
            self.outcomes.prediction.to(self.y).clone(),
        )

    @property
    def correct(self) -> Tensor:
        """Bool [N]: right as they are."""
        return self.outcomes.clean_correct.to(self.x.device)

    @property
    def standing(self) -> Tensor:
        """Bool [N]: nothing has fooled them yet."""
        return ~self.outcomes.fooled.to(self.x.device) & ~self.fell

    def pick(self, among: Tensor, *, part: float, cost: float, nearest: bool = False) -> Tensor:
        """As many of these samples as `part` of the budget pays for, at random or of smallest margin: [<= N].

        No more than may pass through the model at once.
        """
        rows = among.nonzero().flatten()
        count = min(max(FEWEST, int(part * self.allowed / (cost * self.meter.draws))), at_once(self.x))
        if nearest:
            order = self.outcomes.margin.to(self.x.device)[rows].argsort(stable=True)
        else:
            order = torch.randperm(len(rows), generator=self.rng, device=rows.device)
        return rows[order[:count]]

    def points(self, rows: Tensor) -> Tensor:
        """Where these samples are asked: every other one as it is, the others at the nearest point known to fooling."""
        moved = torch.arange(len(rows), device=rows.device) % 2 == 1
        nearest = self.outcomes.nearest.to(self.x)[rows]
        return torch.where(per_sample(moved, like=nearest), nearest, self.x[rows])

    def search(self, rows: Tensor, threat: ThreatModel | None = None) -> Search:
        """A search on these samples, under the number's own threat model or another one."""
        return Search(self.view, self.x[rows], self.y[rows], threat=threat or self.outcomes.threat, rng=self.rng)

    def note(self, rows: Tensor, found: Search) -> Tensor:
        """Count what a search under the number's own threat model has fooled; which of the rows, by the meter."""
        hit = found.fooled.nonzero().flatten()
        if not len(hit):
            return rows[hit]
        logits, answer = judged(self.meter, found.nearest[hit])
        held = answer != self.y[rows[hit]]
        hit, at = hit[held], rows[hit[held]]
        self.fell[at], self.x_adv[at], self.prediction[at] = True, found.nearest[hit], answer[held]
        self.margin[at] = margins(logits[held].float(), self.y[at]).to(self.margin)
        return at


def said_unchanged(outcomes: Outcomes, y: Tensor) -> Tensor:
    """What the model answers to the samples as they are, of labels y: int64 [N] on the CPU."""
    return torch.where(outcomes.clean_correct, y.cpu(), outcomes.prediction)


def tied(logits: Tensor, y: Tensor) -> Tensor:
    """Where another class has the same logit as y's, so that the margin need have no slope: bool [R]."""
    return margins(logits.float(), y).abs() <= CLOSE_CALL * compared(logits.float(), y)


def counted(name: str, kind: Kind, hits: Tensor, tried: int, limit: float, says: str, *, least: int = LEAST) -> Sign:
    """The sign that `hits` of `tried` samples make."""
    figure, told = len(hits) / tried, says.format(hits=len(hits), tried=tried)
    return raised(name, kind, figure > limit and len(hits) >= min(least, tried), figure, limit, hits, told)


def raised(name: str, kind: Kind, alarm: bool, figure: float, limit: float, hits: Tensor, says: str) -> Sign:
    """The sign with its sentence, and the samples that raised it where it is an alarm."""
    state: State = "alarm" if alarm else "ok"
    samples = tuple(int(row) for row in hits.tolist()) if alarm else ()
    says = f"{says[0].upper()}{says[1:]}."
    return Sign(
        name=name, kind=kind, state=state, first=state, figure=figure, threshold=limit, samples=samples, says=says
    )


def from_surrogates(outcomes: Outcomes) -> list[AttackOutcome]:
    """The attack by the examples of other models. Where it was given none, the model stood in for itself."""
    lent = any(row.name == "transfer" and row.params.get("surrogate") for row in outcomes.suite.attacks)
    return [attack for attack in outcomes.attacks if lent and attack.name == "transfer"]


def moot(name: str, kind: Kind, why: str) -> Sign:
    """The sign that nothing asks for."""
    return Sign(name=name, kind=kind, state="not applicable", first="not applicable", says=f"Not applicable: {why}.")
