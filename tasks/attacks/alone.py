"""Attacks that are called as plain functions, whoever calls them, and an arm of the engine as one."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.search import Search
from tasks.attacks.threat import ThreatModel
from tasks.errors import WrongInput

Attack = Callable[..., Tensor]
Arm = Callable[..., None]


def alone(arm: Arm) -> Attack:
    """The arm as an attack of its own: (model, x, y, *, threat, rng, parameters) -> x_adv [B, ...].

    Returns for each sample the input that fools, or else the one of smallest margin.
    """

    def attack(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, **params: Any) -> Tensor:
        search = Search(model, x, y, threat=threat, rng=rng)
        arm(search, torch.arange(len(x), device=x.device), **params)
        return search.nearest

    own = [p for p in inspect.signature(arm).parameters.values() if p.kind is p.KEYWORD_ONLY]
    given = [p for p in inspect.signature(attack).parameters.values() if p.kind is not p.VAR_KEYWORD]
    attack.__signature__ = inspect.Signature([*given, *own])  # type: ignore[attr-defined]
    attack.__name__, attack.__doc__ = arm.__name__, arm.__doc__
    return attack


def anywhere(attack: Attack) -> Attack:
    """The attack, following gradients under the caller's torch.no_grad() and inference_mode() too.

    Labels may be of any whole type. It raises WrongInput for others.
    """

    @wraps(attack)
    def called(model: nn.Module, x: Tensor, y: Tensor, **how: Any) -> Tensor:
        if y.is_floating_point() or y.is_complex():
            raise WrongInput(f"y is {y.dtype}, but must hold class numbers, which are whole. Write y.long().")
        with torch.inference_mode(False), torch.enable_grad():  # a caller who asks for no gradients means his own
            x = x.clone() if x.is_inference() else x
            y = y.clone() if y.is_inference() else y
            return attack(model, x, y.long(), **how)

    return called
