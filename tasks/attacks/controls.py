"""Attacks that learn nothing from the model under test: random noise, and examples made on another model."""

import copy
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.geometry import ascend, limits, moved, per_sample, sample
from tasks.attacks.search import margins, slope
from tasks.attacks.threat import ThreatModel
from tasks.errors import WrongInput
from tasks.lookup import imported


@torch.no_grad()
def noise(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, draws: int = 20) -> Tensor:
    """Random points of the ball, the one of smallest margin: x [B, ...], y [B] -> x_adv [B, ...].

    A control: where it fools what gradients cannot, the gradients lie (Athalye et al., 2018,
    https://arxiv.org/abs/1802.00420).
    """
    best, least = x.clone(), torch.full((len(x),), float("inf"), device=x.device, dtype=torch.float32)
    for _ in range(draws):
        x_adv = moved(x, sample(x, threat, rng), threat)
        margin = margins(model(x_adv).float(), y)
        better = margin < least
        least = torch.where(better, margin, least)
        best = torch.where(per_sample(better, like=x), x_adv, best)
    return best


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: Generator,
    surrogate: str | nn.Module | None = None,
    steps: int = 40,
) -> Tensor:
    """What lowers the margin of a surrogate the most: x [B, ...], y [B] -> x_adv [B, ...].

    Papernot et al., 2017, https://arxiv.org/abs/1602.02697. The surrogate is a module, or 'package.module:function'
    for a function that returns one with its weights; the model under test is then asked nothing. Without a surrogate
    the model stands in for itself. It is asked in its own precision. Raises WrongInput for a surrogate that is no
    model, or cannot answer for these samples.
    """
    other = model if surrogate is None else _Surrogate(_load(surrogate, x.device), _name(surrogate), int(y.max()))
    within, x_adv = limits(x, threat), moved(x, sample(x, threat, rng), threat)
    for i in range(steps):
        leaf = x_adv.detach().requires_grad_()
        grad = slope(margins(other(leaf).float(), y).sum(), leaf)
        share = 0.05 ** (i / max(steps - 1, 1))
        x_adv = moved(x, ascend(x_adv - x, -grad, threat, within, share), threat)
    return x_adv.detach()


class _Surrogate(nn.Module):
    """Another model, asked in its own precision about labels up to `last`."""

    def __init__(self, other: nn.Module, name: str, last: int) -> None:
        super().__init__()
        self.other, self.name, self.last = other, name, last
        self.dtype = next((p.dtype for p in other.parameters() if p.is_floating_point()), None)

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C], in the precision of x. Raises WrongInput."""
        try:
            logits: object = self.other(x.to(self.dtype or x.dtype))
        except Exception as error:  # whatever a model raises, its author needs the shape that it was given
            raise WrongInput(
                f"{self.name} fails on x {list(x.shape)}: {type(error).__name__}: {error}. "
                "Give one that takes the same inputs as the model under test."
            ) from error
        if not isinstance(logits, Tensor):
            raise WrongInput(f"{self.name} returned a {type(logits).__name__}. Return the logits [B, C] alone.")
        if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] <= self.last:
            raise WrongInput(
                f"{self.name} returned {list(logits.shape)} for x {list(x.shape)}. It must return logits "
                f"[{len(x)}, C] for the same classes as the model under test, {self.last + 1} at least."
            )
        return logits.to(x.dtype)


def _name(surrogate: str | nn.Module) -> str:
    return f"surrogate {type(surrogate).__name__ if isinstance(surrogate, nn.Module) else repr(surrogate)}"


def _load(surrogate: str | nn.Module, device: torch.device) -> nn.Module:
    """The surrogate on the device, in evaluation mode. Raises WrongInput."""
    if not isinstance(surrogate, str | nn.Module) or (isinstance(surrogate, str) and ":" not in surrogate):
        raise WrongInput(f"surrogate={surrogate!r} names no model. Write 'package.module:function' that returns one.")
    try:
        loaded: object = copy.deepcopy(surrogate) if isinstance(surrogate, nn.Module) else _built(surrogate)
        if isinstance(loaded, nn.Module):
            return loaded.to(device).eval()
    except WrongInput:
        raise
    except Exception as error:  # whatever the user's function raises
        raise WrongInput(
            f"{_name(surrogate)} cannot be loaded: {type(error).__name__}: {error}. "
            "Write 'package.module:function' for a function without arguments that returns the model with its weights."
        ) from error
    raise WrongInput(f"{_name(surrogate)} returned a {type(loaded).__name__}, not a torch.nn.Module.")


def _built(path: str) -> object:
    build: Callable[[], object] = imported("surrogate", path)
    return build()
