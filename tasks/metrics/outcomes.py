"""measure(): attack a model and say, sample by sample, what came of it. Needs neither Prefect nor MLflow."""

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Generator, Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.geometry import distance
from tasks.errors import ModelRejected, WrongInput
from tasks.metrics.isolation import Meter, untouched

BLOCK = 256  # samples that share a seed: a block's result depends on nothing outside it
SLACK = 1e-5  # of the radius and of the box: what rounding to float32 may add


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
    started = time.perf_counter()
    with untouched(model) as meter, _bar(progress) as bar:
        clean, problems = _clean_predictions(meter, x, y)
        state = _State(x=x, y=y, fooled=clean != y, x_adv=x.clone(), prediction=clean)
        clean_correct = ~state.fooled
        rows = []
        for config in suite.attacks:
            rows.append(_run(config, meter, state, threat, seed, bar))
    for row in rows:
        if row.error:
            problems.append(f"{row.name}: {row.error}")
    return Outcomes(
        threat=threat,
        suite=suite,
        seed=seed,
        clean_correct=clean_correct.cpu(),
        fooled=state.fooled.cpu(),
        x_adv=state.x_adv.cpu(),
        prediction=state.prediction.cpu(),
        attacks=tuple(rows),
        forward_samples=meter.forward_samples,
        backward_samples=meter.backward_samples,
        seconds=time.perf_counter() - started,
        problems=tuple(problems),
    )


@dataclass
class _State:
    x: Tensor
    y: Tensor
    fooled: Tensor
    x_adv: Tensor
    prediction: Tensor


def _run(
    config: AttackConfig, meter: Meter, state: _State, threat: ThreatModel, seed: int, bar: Progress
) -> AttackOutcome:
    """One attack on every sample that still stands, block by block."""
    attack = config.function()
    tried = ~state.fooled
    row = AttackOutcome(name=config.name, tried=tried.cpu(), fooled=torch.zeros_like(tried).cpu())
    forward, backward, started = meter.forward_samples, meter.backward_samples, time.perf_counter()
    error, before = None, state.fooled.clone()
    for block, rows in bar.track(list(_blocks(tried)), description=config.name):
        rng = _generator(state.x.device, seed, config.name, threat.digest, block)
        x, y = state.x[rows], state.y[rows]
        try:
            x_adv = attack(meter, x.clone(), y.clone(), threat=threat, rng=rng)
            error = _violation(x, x_adv, threat)
        except Exception as failure:  # a user's attack may raise anything; the number is void, the run goes on
            error = f"raised {type(failure).__name__}: {failure}"
        if error is None:
            x_adv = x_adv.detach().to(x)
            logits = _logits(meter, x_adv)
            error = None if logits.isfinite().all() else "met logits that are not finite"
        if error is not None:
            break
        prediction = logits.argmax(1)
        hit = prediction != y
        state.fooled[rows], state.prediction[rows] = hit, torch.where(hit, prediction, y)
        state.x_adv[rows[hit]] = x_adv[hit].to(state.x_adv)
    return replace(
        row,
        fooled=(state.fooled & ~before).cpu(),
        forward_samples=meter.forward_samples - forward,
        backward_samples=meter.backward_samples - backward,
        seconds=time.perf_counter() - started,
        error=error,
    )


def _violation(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> str | None:
    """What is wrong with x_adv: shape, values, box or budget."""
    if x_adv.shape != x.shape:
        return f"returned shape {list(x_adv.shape)} for {list(x.shape)}"
    x_adv = x_adv.detach().to(x)
    if not x_adv.isfinite().all():
        return "returned values that are not finite"
    low, high = threat.bounds
    slack = SLACK * (high - low)
    if x_adv.amin() < low - slack or x_adv.amax() > high + slack:
        return f"left the box {low:g}..{high:g}: returned {x_adv.amin():.4g}..{x_adv.amax():.4g}"
    moved = distance(x, x_adv, threat).amax().item()
    if moved > threat.eps + SLACK * max(threat.eps, high - low):
        return f"left the ball: moved {moved:.6g}, eps is {threat.eps:g}"
    return None


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(BLOCK)])


def _clean_predictions(meter: Meter, x: Tensor, y: Tensor) -> tuple[Tensor, list[str]]:
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
    return logits.argmax(1), [f"clean: {bad} samples have logits that are not finite"] if bad else []


def _checked(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """X and y on the model's device, x in the model's precision. Raises WrongInput."""
    if len(x) == 0 or len(x) != len(y) or y.ndim != 1:
        raise WrongInput(f"x {list(x.shape)} and y {list(y.shape)} must hold the same number of samples, one at least.")
    if not x.is_floating_point():
        raise WrongInput(f"x is {x.dtype}. Scale it to floats within {threat.bounds}, e.g. x.float() / 255.")
    if not x.isfinite().all():
        rows = (~x.flatten(1).isfinite()).any(1).nonzero().flatten()[:5].tolist()
        raise WrongInput(f"x holds values that are not finite, first in rows {rows}.")
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


def _blocks(tried: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(tried), BLOCK):
        rows = tried[start : start + BLOCK].nonzero().flatten() + start
        if len(rows):
            yield start // BLOCK, rows


def _generator(device: torch.device, *key: object) -> Generator:
    """A generator whose seed follows from the key alone."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return Generator(device=device).manual_seed(seed)


def _bar(wanted: bool) -> Progress:
    """A progress bar on standard error where a person watches, else a silent one."""
    return Progress(console=Console(stderr=True), transient=True, disable=not (wanted and sys.stderr.isatty()))
