"""measure_pairs(): can samples of one class be made to look like one other class, the one that must not be mixed up?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.errors import WrongInput
from tasks.metrics.answers import answers
from tasks.metrics.escalation import examine
from tasks.metrics.outcomes import Outcomes, Precision, measure
from tasks.metrics.seeds import merged
from tasks.statistics import Share


class PairReport(BaseModel, frozen=True, extra="forbid"):
    """How many samples of one class the model can be made to take for one other class."""

    source: int = Field(ge=0, description="class of the samples")
    target: int = Field(ge=0, description="class that they must not be taken for")
    n: int = Field(ge=0, description="samples of the source that the model got right, or takes for the target as is")
    flipped: Share | None = Field(description="of these n; empty where there are none")
    rows: tuple[int, ...] = Field((), description="places, among the measured samples, of those that flipped")
    passes: int = Field(0, ge=0, description="forward and backward, in samples")
    problems: tuple[str, ...] = Field((), description="each of them voids the number")


class TargetOrNot(nn.Module):
    """The model as a question with two answers: 0, any class but the target; 1, the target."""

    def __init__(self, model: nn.Module, target: int) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, 2]: the largest of all classes but the target, and the target's.

        Where logits tie, the model's answer is the lowest class number. So the classes above the target are set back
        by the smallest step that there is: they do not beat it with a tie, and those below it do.
        """
        logits: Tensor = self.model(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        below, own, above = logits[:, : self.target], logits[:, self.target], logits[:, self.target + 1 :]
        lowered = torch.nextafter(above.detach(), torch.full_like(above, -torch.inf))
        others = torch.cat([below, above + (lowered - above.detach())], dim=1)
        return torch.stack([others.amax(1), own], dim=1)


def measure_pairs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    pairs: Sequence[tuple[int, int]],
    *,
    threat: ThreatModel,
    suite: str | Suite | Sequence[str | AttackConfig] = "standard",
    seed: int = 0,
    seeds: int = 1,
    warm: Tensor | None = None,
    precision: Precision = "auto",
    confidence: float = 0.95,
) -> tuple[PairReport, ...]:
    """A report for each pair of source and target class: the suite attacks the source's samples towards the target.

    x [N, ...], y [N] and warm [N, ...] as in measure(). Success is that the model's answer is the target. Samples of
    the source that the model takes for a third class are left out. Several seeds: the worst case over all of them.
    Each pair is examined as a whole number is: alarms are answered, and one that stands is a problem.
    Raises WrongInput for a class that the model has no logit for, and what measure() raises.
    """
    run = partial(measure, threat=threat, suite=suite, precision=precision)
    found = attack_pairs(model, x, y, pairs, run, seeds=range(seed, seed + seeds), warm=warm, confidence=confidence)
    return tuple(report for report, _ in found)


def attack_pairs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    pairs: Sequence[tuple[int, int]],
    run: Callable[..., Outcomes],
    *,
    seeds: Sequence[int],
    warm: Tensor | None = None,
    confidence: float = 0.95,
) -> list[tuple[PairReport, Tensor]]:
    """Each pair's report, and the inputs that flipped, [F, ...], in the order of its rows.

    run(model, x, y, seed=, warm=) is measure() with threat model and suite. The rest as in measure_pairs().
    """
    if not pairs:
        return []
    check_pairs(model, x, pairs)
    _, answer, _ = answers(model, [x], seed=seeds[0])
    found = []
    for source, target in pairs:
        rows = ((y.cpu() == source) & ((answer == source) | (answer == target))).nonzero().flatten()
        if len(rows):
            begin = warm[rows.to(warm.device)] if warm is not None else None
            outcomes = _attacked(TargetOrNot(model, target), x[rows.to(x.device)], run, seeds, begin)
            flips = outcomes.x_adv[outcomes.fooled]
        else:
            outcomes, flips = None, x[:0].cpu()
        found.append((_report(source, target, rows, outcomes, confidence), flips))
    return found


def _attacked(
    asked: TargetOrNot, x: Tensor, run: Callable[..., Outcomes], seeds: Sequence[int], warm: Tensor | None
) -> Outcomes:
    """The worst over the seeds, examined; an alarm that stands is a problem."""
    no = torch.zeros(len(x), dtype=torch.long)
    worst = merged([run(asked, x, no, seed=seed, warm=warm) for seed in seeds])
    found, _, soundness = examine(asked, x, no, outcomes=worst)
    stand = [f"{sign.name}: {sign.says}" for sign in soundness.alarms]
    if not worst.fooled.all() and not any(bool(attack.tried.any()) for attack in worst.attacks):
        stand.append(f"no attack tried a sample under {worst.threat}")
    forward = found.forward_samples + soundness.passes  # the signs' passes are not told apart here
    return replace(found, problems=(*found.problems, *stand), forward_samples=forward)


def check_pairs(model: nn.Module, x: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """Raise WrongInput for a class that the model has no logit for."""
    if not pairs:
        return
    logits, _, _ = answers(model, [x[:2]], seed=0)
    if logits.ndim != 2:
        return  # measure() says what is wrong with it
    check_classes(pairs, logits.shape[1])


def check_classes(pairs: Sequence[tuple[int, int]], classes: int) -> None:
    """Raise WrongInput for a class in critical_pairs that is none of so many."""
    unknown = sorted({c for pair in pairs for c in pair if not 0 <= c < classes})
    if unknown:
        raise WrongInput(
            f"critical_pairs names class {', '.join(map(str, unknown))}, but the model knows {classes} classes. "
            f"Write class numbers from 0 to {classes - 1}."
        )


def _report(source: int, target: int, rows: Tensor, found: Outcomes | None, confidence: float) -> PairReport:
    """The pair's report: rows [R] are the places of the samples attacked; found is None where there were none."""
    if found is None:
        return PairReport(source=source, target=target, n=0, flipped=None)
    flipped = rows[found.fooled].tolist()
    return PairReport(
        source=source,
        target=target,
        n=len(rows),
        flipped=Share.of(len(flipped), len(rows), confidence=confidence),
        rows=tuple(flipped),
        passes=found.passes,
        problems=found.problems,
    )
