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
    best, least = x.clone(), torch.full((len(x),), float("inf"), device=x.device)
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
    the model stands in for itself. Raises WrongInput for a surrogate that is no model.
    """
    other = model if surrogate is None else _load(surrogate).to(x.device)
    within, x_adv = limits(x, threat), moved(x, sample(x, threat, rng), threat)
    for i in range(steps):
        leaf = x_adv.detach().requires_grad_()
        grad = slope(margins(other(leaf).float(), y).sum(), leaf)
        share = 0.05 ** (i / max(steps - 1, 1))
        x_adv = moved(x, ascend(x_adv - x, -grad, threat, within, share), threat)
    return x_adv.detach()


def _load(surrogate: str | nn.Module) -> nn.Module:
    if isinstance(surrogate, nn.Module):
        return copy.deepcopy(surrogate).eval()
    if ":" not in surrogate:
        raise WrongInput(f"surrogate={surrogate!r} names no model. Write 'package.module:function' that returns one.")
    build: Callable[[], object] = imported("surrogate", surrogate)
    loaded = build()
    if not isinstance(loaded, nn.Module):
        raise WrongInput(f"surrogate {surrogate!r} returned {type(loaded).__name__}, not a torch.nn.Module.")
    return loaded.eval()
