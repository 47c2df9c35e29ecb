"""measure(): attack a model and say, sample by sample, what came of it. Needs neither Prefect nor MLflow."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.search import Search
from tasks.errors import ModelRejected, WrongInput
from tasks.metrics.engine import Engine, Tally, generator
from tasks.metrics.isolation import Meter, untouched

BLOCK = 512  # samples of a cell: its result depends on nothing outside it


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack of the suite did, over all N samples."""

    name: str
    tried: Tensor  # bool [N]: was still standing when this attack's turn came
    fooled: Tensor  # bool [N]: fell to this attack
    forward_samples: int = 0
    backward_samples: int = 0
    seconds: float = 0.0
    error: str | None = None  # why its result is not to be trusted


@dataclass(frozen=True)
class Outcomes:
    """What one suite found under one threat model. A clean error counts as fooled."""

    threat: ThreatModel
    suite: Suite
    seed: int
    clean_correct: Tensor  # bool [N]
    fooled: Tensor  # bool [N]: wrong from the start, or fooled by some attack
    x_adv: Tensor  # [N, ...]: the input that fooled, or x where nothing did
    prediction: Tensor  # int64 [N]: the class of x_adv
    nearest: Tensor  # [N, ...]: the input of smallest margin that was met; x_adv where something fooled
    margin: Tensor  # float [N]: that margin, the lead of the true class's logit
    attacks: tuple[AttackOutcome, ...]
    forward_samples: int
    backward_samples: int
    seconds: float
    problems: tuple[str, ...] = field(default=())  # each of them voids the number

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that are classified correctly as they are."""
        return self.clean_correct.float().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that are correct as they are and under every attack."""
        return 1.0 - self.fooled.float().mean().item()


def measure(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    suite: str | Suite | Sequence[str | AttackConfig] = "standard",
    seed: int = 0,
    progress: bool = False,
) -> Outcomes:
    """Attack the model with every attack of the suite and return what each sample came to.

    x [N, ...] floats within threat.bounds; y [N] class numbers; the model maps x to logits [N, C]. Success and
    budget are judged here, on the returned x_adv, not by the attack. The model is left exactly as it was (mode,
    requires_grad, .grad, buffers, global random state). Same seed, same result.

    Raises WrongInput or ModelRejected before any attack starts. An attack that raises, or leaves the ball or the
    box, is stopped and named in `problems`; the others run on.
    """
    suite = as_suite(suite)
    x, y = _checked(model, x, y, threat)
    suite.under(threat)
    started = time.perf_counter()
    with untouched(model) as meter, _bar(progress) as bar:
        clean, problems = _clean_logits(meter, x, y)
        cells = [
            _cell(meter, suite, threat, x[at : at + BLOCK], y[at : at + BLOCK], clean[at : at + BLOCK], seed, at // BLOCK)
            for at in bar.track(range(0, len(x), BLOCK), description=f"{suite.name}, {threat}")
        ]
    rows = [_joined(list(tallies)) for tallies in zip(*(cell.tallies for cell in cells), strict=True)]
    problems += [f"{row.name}: {row.error}" for row in rows if row.error]
    whole = {
        name: torch.cat([getattr(cell, name) for cell in cells]).cpu()
        for name in ("clean_correct", "fooled", "x_adv", "prediction", "nearest", "margin")
    }
    return Outcomes(
        threat=threat,
        suite=suite,
        seed=seed,
        **whole,
        attacks=tuple(rows),
        forward_samples=meter.forward_samples,
        backward_samples=meter.backward_samples,
        seconds=time.perf_counter() - started,
        problems=tuple(problems),
    )


@dataclass(frozen=True)
class _Cell:
    """What the suite found on the samples of one cell."""

    clean_correct: Tensor
    fooled: Tensor
    x_adv: Tensor
    prediction: Tensor
    nearest: Tensor
    margin: Tensor
    tallies: list[Tally]


def _cell(
    meter: Meter, suite: Suite, threat: ThreatModel, x: Tensor, y: Tensor, clean: Tensor, seed: int, number: int
) -> _Cell:
    search = Search(meter, x, y, threat=threat, rng=generator(x.device, seed, number))
    everyone = torch.arange(len(x), device=x.device)
    search.see(everyone, x, clean)
    prediction = clean.argmax(1)
    correct = prediction == y
    search.fooled = ~correct
    tallies = Engine(search, suite, meter, seed=seed, cell=number).run()
    hit = (search.fooled & correct).nonzero().flatten()
    x_adv, fooled = x.clone(), ~correct
    if len(hit):
        judged = _logits(meter, search.nearest[hit]).argmax(1)
        hit, judged = hit[judged != y[hit]], judged[judged != y[hit]]
        x_adv[hit], prediction[hit], fooled[hit] = search.nearest[hit], judged, True
    for tally in tallies:
        tally.fooled &= fooled
    return _Cell(correct, fooled, x_adv, prediction, search.nearest, search.margin, tallies)


def _joined(parts: list[Tally]) -> AttackOutcome:
    """One attack's tallies over all cells."""
    return AttackOutcome(
        name=parts[0].config.name,
        tried=torch.cat([p.tried for p in parts]).cpu(),
        fooled=torch.cat([p.fooled for p in parts]).cpu(),
        forward_samples=sum(p.forward_samples for p in parts),
        backward_samples=sum(p.backward_samples for p in parts),
        seconds=sum(p.seconds for p in parts),
        error=next((p.error for p in parts if p.error), None),
    )


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(BLOCK)])


def _clean_logits(meter: Meter, x: Tensor, y: Tensor) -> tuple[Tensor, list[str]]:
    logits = _logits(meter, x)
    if logits.ndim != 2:
        raise ModelRejected(
            f"the model returned {list(logits.shape)} for a batch of {len(x)}; measure() needs logits [B, C]."
        )
    if int(y.max()) >= logits.shape[1]:
        raise ModelRejected(
            f"the model knows {logits.shape[1]} classes, but labels go up to {int(y.max())}. Give it as many outputs "
            f"as there are classes; for a single output per sample return torch.cat([-z, z], dim=1)."
        )
    bad = int((~logits.isfinite()).any(1).sum())
    return logits, [f"clean: {bad} samples have logits that are not finite"] if bad else []


def _checked(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """X and y on the model's device, x in the model's precision. Raises WrongInput."""
    if len(x) == 0 or len(x) != len(y) or y.ndim != 1:
        raise WrongInput(f"x {list(x.shape)} and y {list(y.shape)} must hold the same number of samples, one at least.")
    if not x.is_floating_point():
        raise WrongInput(f"x is {x.dtype}. Scale it to floats within {threat.bounds}, e.g. x.float() / 255.")
    if not x.isfinite().all():
        rows = (~x.flatten(1).isfinite()).any(1).nonzero().flatten()[:5].tolist()
        raise WrongInput(f"x holds values that are not finite, first in rows {rows}.")
    if threat.features is not None and threat.features != x[0].numel():
        raise WrongInput(
            f"the threat model's mask or scale has {threat.features} entries, a sample {x[0].numel()} features. "
            "Give one per feature, in the order of x.flatten(1)."
        )
    low, high = threat.bounds
    if x.amin() < low or x.amax() > high:
        raise WrongInput(
            f"x spans {x.amin():.4g}..{x.amax():.4g}, but the threat model's bounds are {low:g}..{high:g}. "
            f"Scale x, or write ThreatModel(..., bounds=({x.amin():.4g}, {x.amax():.4g}))."
        )
    if y.is_floating_point() or int(y.min()) < 0:
        raise WrongInput("y must hold class numbers from 0 upwards, as integers.")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        return x.detach().to(parameter.device, parameter.dtype), y.to(parameter.device, torch.long)
    return x.detach(), y.long()


def _bar(wanted: bool) -> Progress:
    """A progress bar on standard error where a person watches, else a silent one."""
    return Progress(console=Console(stderr=True), transient=True, disable=not (wanted and sys.stderr.isatty()))
