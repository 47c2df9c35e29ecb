"""Gradients through what has none: the model's own answers, with a stand-in slope behind its hard operations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tasks.attacks.search import margins, slope

LEAK = 0.2  # the slope behind a rectifier that is shut

FLAT = {"ceil", "floor", "fix", "round", "sign", "sgn", "trunc", "heaviside", "clamp", "clip", "hardtanh", "threshold"}
SHUT = {"relu", "relu6", "relu_"}
GRAD_SWITCH = "_set_grad_enabled"


class StraightThrough(nn.Module):
    """The model with the same answers, whose hard operations let gradients pass.

    BPDA (Athalye, Carlini, Wagner, 2018, https://arxiv.org/abs/1802.00420) with the identity as stand-in: rounding,
    thresholds, detached values, integers and what stands under no_grad() get the slope of their input. Nothing of the
    model has to be known for that: its calls into torch are met as they come. `leak` also opens shut rectifiers, and
    without `casts` numbers that turn into integers or truth values stay as they are. What leaves torch, such as a
    round trip through numpy, stays shut, unless a submodule does it that keeps its input's shape.
    """

    def __init__(self, model: nn.Module, *, casts: bool = True, leak: bool = False) -> None:
        super().__init__()
        self.model, self.casts, self.leak = model, casts, leak

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C], equal to the model's."""
        if not x.requires_grad:  # nobody will ask for a slope
            logits: Tensor = self.model(x)
            return logits
        hooks = [module.register_forward_hook(_opened) for module in self.model.modules()]
        try:
            with _Open(self.casts, self.leak):
                logits = self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        return logits


def stand_in(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The gentlest view of the model that has a slope on nearly every sample: the model itself, if it has one.

    x [B, ...], y [B]: samples that are asked about.
    """
    views: list[nn.Module] = [model]
    views += [StraightThrough(model, casts=casts, leak=leak) for leak in (False, True) for casts in (True, False)]
    best, most = views[0], -1.0
    for view in views:
        leaf = x.clone().requires_grad_()
        try:
            grad = slope(margins(view(leaf).float(), y).sum(), leaf)
        except Exception:  # the stand-in changed a type that the model needs
            continue
        share = (grad.flatten(1).abs().amax(1) > 0).float().mean().item()
        if share > most + 0.05:
            best, most = view, share
    return best


class _Open(TorchFunctionMode):
    """Puts a slope behind every hard operation that is called while it is active."""

    def __init__(self, casts: bool, leak: bool) -> None:
        super().__init__()
        self.casts, self.leak = casts, leak

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's result, with a slope where it would have none."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == GRAD_SWITCH:
            return None
        if name == "where" and len(args) == 3 and isinstance(args[0], Tensor) and args[0].is_floating_point():
            return args[0] * args[1] + (1 - args[0]) * args[2]  # a condition that was made soft
        if name.startswith("masked_fill") and args[1].is_floating_point():
            args = (args[0], args[1].bool(), *args[2:])
        if name == "numpy":
            args = (args[0].detach(),)
        result, x = func(*args, **kwargs), args[0] if args else None
        if not (isinstance(x, Tensor) and isinstance(result, Tensor) and x.requires_grad and x.is_floating_point()):
            return result
        if name == "__floordiv__":
            return _slope_of(x / args[1], result)
        if result.shape != x.shape:
            return result
        if name in SHUT:
            return _slope_of(F.leaky_relu(x, LEAK), result) if self.leak else result
        shut = not result.requires_grad and (self.casts or result.is_floating_point())
        return _slope_of(x, result) if name in FLAT or shut else result


def _opened(_: nn.Module, inputs: tuple[Any, ...], result: Any) -> Any:
    """The output of a module that passes no gradient on, with the slope of its input where the shapes agree."""
    x = inputs[0] if inputs else None
    if not (isinstance(x, Tensor) and isinstance(result, Tensor) and x.requires_grad and not result.requires_grad):
        return result
    return _slope_of(x, result) if result.shape == x.shape and result.is_floating_point() else result


class _Slope(torch.autograd.Function):
    """The second argument's values with the first one's slope."""

    @staticmethod
    def forward(_: Any, __: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _slope_of(soft: Tensor, hard: Tensor) -> Tensor:
    """The values of `hard` with the slope of `soft`."""
    hard = hard.detach() if hard.requires_grad else hard
    result: Tensor = _Slope.apply(soft, hard.to(soft.dtype))  # type: ignore[no-untyped-call]  # torch's own
    return result
