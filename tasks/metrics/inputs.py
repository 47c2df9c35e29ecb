"""What measure() is given, looked at before any attack runs: what is wrong with it, and what to write instead."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tasks.attacks import SUITES, Suite, ThreatModel
from tasks.errors import ModelRejected, WrongInput
from tasks.metrics.cell import BLOCK
from tasks.metrics.isolation import Meter, answering, at_home

Precision = Literal["auto", "fp32", "bf16"]

SEEDS = (-(2**63), 2**64)  # what torch.manual_seed takes
USUAL = (1, 3, 4, 5, 8, 10, 16, 32, 64)  # rows that a model may be built for
WRAP = "Wrap it in a module whose forward(self, x) returns them"


def checked(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """X and y where the model computes, x in its precision, float32 at least: a half has too few digits for the ball.

    Raises WrongInput or ModelRejected.
    """
    _check_kinds(model, x, y, threat)
    check_x(x, threat)
    if y.is_floating_point() or y.is_complex() or int(y.long().min()) < 0:
        raise WrongInput("y must hold class numbers from 0 upwards, as integers.")
    return at_home(model, x, y)


def check_options(
    n: int, *, seed: object, precision: object, draws: object, attack_seconds: object, block: object
) -> None:
    """Raise WrongInput for an option that measure() cannot mean for n samples."""
    if precision not in get_args(Precision):
        raise WrongInput(f"precision={precision!r} is unknown. Write 'auto', 'fp32' or 'bf16'.")
    if type(seed) is not int or not SEEDS[0] <= seed < SEEDS[1]:
        raise WrongInput(f"seed={seed!r} is no whole number of at most 64 bits. Write e.g. seed=0, or seed=int(...).")
    if draws is not None and (type(draws) is not int or draws < 1):
        raise WrongInput(
            f"draws={draws!r} is no number of passes for one answer. Write a whole number from 1 on, or leave it out."
        )
    if not (type(attack_seconds) in (int, float) and 0 < attack_seconds < math.inf):  # type: ignore[operator]
        raise WrongInput(f"attack_seconds={attack_seconds!r} is no limit for an attack. Write a finite number above 0.")
    last = (n - 1) // BLOCK
    if block is not None and (type(block) is not int or not 0 <= block <= last):
        raise WrongInput(
            f"block={block!r} does not exist: {n} samples make {last + 1} of {BLOCK}. Write a number from 0 to {last}."
        )


def check_suite(suite: Suite, threat: ThreatModel, warm: object, x: Tensor) -> None:
    """Raise WrongInput where the suite has no attack for the threat, or the inputs to begin with do not fit x."""
    suite.under(threat)
    if warm is None:
        begun = SUITES["warm"].attacks
        if suite.attacks[: len(begun)] == begun:  # attacks of one's own may stand behind them
            raise WrongInput(
                "suite 'warm' goes on from inputs that are known: give warm=earlier.nearest, or another suite. In a "
                "config: evaluation.suite: standard, with evaluation.warm: true where stored examples may be begun at."
            )
        return
    if not isinstance(warm, Tensor):
        raise WrongInput(f"warm is a {_kind(warm)}, not a tensor. Write torch.as_tensor(warm).")
    if warm.shape != x.shape:
        raise WrongInput(f"warm is {list(warm.shape)}, x {list(x.shape)}. Give one input to begin with per sample.")
    if not warm.isfinite().all():
        raise WrongInput(
            f"warm holds values that are not finite, first in rows {_not_finite(warm)}. For a sample without an input "
            "to begin with give its row of x."
        )


@torch.no_grad()
def check_logits(meter: Meter, x: Tensor, y: Tensor) -> None:
    """Raise ModelRejected where the model's answer for two samples is not their logits, a row each."""
    try:
        with answering(x[:2]):
            logits = meter.once(x[:2])
    except ModelRejected:
        _check_alone(meter, x[:2])
        _check_sizes(meter, x)
        raise
    if logits.ndim != 2:
        raise ModelRejected(
            f"the model returned {list(logits.shape)} for a batch of {len(x[:2])}; measure() needs logits [B, C]."
        )
    if len(logits) != len(x[:2]):
        raise ModelRejected(
            f"the model returned {len(logits)} rows for a batch of {len(x[:2])}; measure() needs logits [B, C], "
            "one row for each sample, whatever the batch."
        )
    if logits.shape[1] < 2 or int(y.max()) >= logits.shape[1]:
        raise ModelRejected(
            f"the model knows {logits.shape[1]} classes, but labels go up to {int(y.max())}. Give it as many outputs "
            f"as there are classes; for a single output per sample return torch.cat([-z, z], dim=1)."
        )


def _check_alone(meter: Meter, x: Tensor) -> None:
    """Raise ModelRejected for a model that failed because it returns something besides a tensor."""
    try:
        answer: object = meter.model(x.to(meter.narrow or x.dtype, copy=True))
    except Exception:  # its own failure, which is told already
        return
    if not isinstance(answer, Tensor):
        part = "['logits']" if isinstance(answer, dict) else "[0]"
        raise ModelRejected(
            f"the model returned a {_kind(answer)}; measure() needs a tensor: return the logits alone, [B, C]. "
            f"{WRAP}, e.g. self.model(x){part}."
        )


def _check_sizes(meter: Meter, x: Tensor) -> None:
    """Raise ModelRejected for a model that failed because it takes batches of one size only, if that is a usual one."""
    for n in USUAL:
        some = x[torch.arange(n, device=x.device) % len(x)]
        try:
            meter.once(some)
        except Exception:  # its own failure, which is told already
            continue
        raise ModelRejected(
            f"the model fails on x {list(x[:2].shape)}, but takes {n} row{'s' * (n > 1)}; measure() needs one that "
            "takes any number. Build or export it so, or wrap it in a module whose forward(self, x) returns "
            f"torch.cat([self.model(torch.cat([p, p[:1].expand({n} - len(p), *p.shape[1:])]))[:len(p)] "
            f"for p in x.split({n})])."
        )


def _check_kinds(model: object, x: object, y: object, threat: object) -> None:
    """Raise WrongInput or ModelRejected for what is of another kind or shape than measure() takes."""
    if not isinstance(threat, ThreatModel):
        raise WrongInput(f"threat is a {_kind(threat)}. Write threat=ThreatModel(norm='linf', eps='8/255').")
    if isinstance(model, type):
        raise ModelRejected(f"the model is the class {model.__name__}. Give an instance of it with its weights loaded.")
    if not isinstance(model, nn.Module):
        raise ModelRejected(
            f"the model is a {_kind(model)}, not a torch.nn.Module that maps x [B, ...] to logits [B, C]. {WRAP}."
        )
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise WrongInput(f"{name} is a {_kind(value)}, not a tensor. Write torch.as_tensor({name}).")
        if value.ndim == 0:
            raise WrongInput(f"{name} is a single number. Give one for each sample, the samples first: {name}[None].")
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise WrongInput(f"x is {list(x.shape)}: a sample has no features. Write x[:, None] for one feature each.")
    if y.ndim == 2 and len(y) == len(x) and y.shape[1] > 0:
        how = "[N, 1]. Write y.squeeze(1)" if y.shape[1] == 1 else "one-hot or probabilities. Write y.argmax(1)"
        raise WrongInput(f"y is {list(y.shape)}, but must be [N], a class number each; it looks {how}.")
    if len(x) == 0 or len(x) != len(y) or y.ndim != 1:
        raise WrongInput(f"x {list(x.shape)} and y {list(y.shape)} must hold the same number of samples, one at least.")


def check_x(x: Tensor, threat: ThreatModel) -> None:
    """Raise WrongInput where x holds no floats within the bounds, or not the features that the threat describes."""
    if not x.is_floating_point():
        raise WrongInput(f"x is {x.dtype}. Scale it to floats within {threat.bounds}, e.g. x.float() / 255.")
    if not x.isfinite().all():
        raise WrongInput(f"x holds values that are not finite, first in rows {_not_finite(x)}.")
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


def _not_finite(x: Tensor) -> list[int]:
    """The first five rows of x [N, ...] that hold values that are not finite."""
    rows: list[int] = (~x.reshape(len(x), -1).isfinite()).any(1).nonzero().flatten()[:5].tolist()
    return rows


def _kind(value: object) -> str:
    """The value's type, with its module where it is not Python's own: numpy.ndarray, list."""
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__name__}"
