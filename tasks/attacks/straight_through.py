"""Gradients through what has none: the model's own answers, with a stand-in slope behind its hard operations."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tasks.attacks.choices import Choices
from tasks.attacks.geometry import TINY, per_sample
from tasks.attacks.search import margins, slope

LEAK = 0.2  # the slope behind a rectifier that is shut

FLAT = {"ceil", "floor", "fix", "round", "sign", "sgn", "trunc", "heaviside", "clamp", "clip", "hardtanh", "threshold"}
SHUT = {"relu", "relu6", "relu_"}
GREATER, LESS = {"ge", "gt", "__ge__", "__gt__"}, {"le", "lt", "__le__", "__lt__"}
STEEP = 0.03  # of the mean distance between what is compared: how far from a tie a comparison has a slope
GRAD_SWITCH = "_set_grad_enabled"


class StraightThrough(nn.Module):
    """The model with the same answers, whose hard operations let gradients pass.

    BPDA (Athalye, Carlini, Wagner, 2018, https://arxiv.org/abs/1802.00420) with the identity as stand-in: rounding,
    thresholds, detached values, integers and what stands under no_grad() get the slope of their input. Nothing of the
    model has to be known for that: its calls into torch are met as they come. `leak` also opens shut rectifiers, and
    without `casts` numbers that turn into integers or truth values stay as they are. What leaves torch, such as a
    round trip through numpy, stays shut, unless a submodule does it that keeps its input's shape.

    With `steep` nothing is opened but comparisons between numbers, which get a sigmoid's slope near a tie (a surrogate
    gradient: Neftci et al., 2019, https://arxiv.org/abs/1901.09948): the model has slopes of its own, which do not
    tell what a value adds that enters or leaves, as where only winners pass. So do, where a model compares nothing,
    submodules that let through the largest values alone, however they choose them. `compared` says whether there were
    any. And what is done with the place of a highest value gets the slope of a softmax, as where a gate sends a sample
    to one of several experts; `chosen` says whether there was such a choice, `choosing` whether there was any.
    """

    def __init__(self, model: nn.Module, *, casts: bool = True, leak: bool = False, steep: bool = False) -> None:
        super().__init__()
        self.model, self.casts, self.leak, self.steep = model, casts, leak, steep
        self.compared = self.chosen = self.choosing = False

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C], equal to the model's."""
        if not x.requires_grad:  # nobody will ask for a slope
            logits: Tensor = self.model(x)
            return logits
        mode = _Steep() if self.steep else _Open(self.casts, self.leak)
        hooks = [module.register_forward_hook(mode.behind) for module in self.model.modules()]
        try:
            with mode:
                logits = self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        if isinstance(mode, _Steep):
            self.choosing |= mode.choices.made
            self.chosen |= mode.choices.used
            self.compared |= mode.compared or bool(mode.gated)
        return logits


def stand_in(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The gentlest view of the model that has a slope on nearly every sample: the model itself, if it has one.

    x [B, ...], y [B]: samples that are asked about.
    """
    views = [model, *opened(model)]
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


def opened(model: nn.Module) -> list[StraightThrough]:
    """Views of the model in which hard operations let slopes pass, the gentlest first."""
    return [StraightThrough(model, casts=casts, leak=leak) for leak in (False, True) for casts in (True, False)]


def steepened(model: nn.Module, x: Tensor) -> StraightThrough | None:
    """The view that opens comparisons and choices alone; None where x [B, ...] meets none, or where it cannot be."""
    return decided(model, x)[0]


def decided(model: nn.Module, x: Tensor) -> tuple[StraightThrough | None, bool]:
    """As steepened(); and whether x [B, ...] meets a comparison or a choice, or a truth value is needed."""
    view = StraightThrough(model, steep=True)
    if not len(x):
        return None, False
    try:
        view(x.detach().clone().requires_grad_())
    except Exception:  # where the view has a number
        return None, True
    opens = view.compared or view.chosen
    return view if opens else None, opens or view.choosing


class _Open(TorchFunctionMode):
    """Puts a slope behind every hard operation that is called while it is active."""

    def __init__(self, casts: bool, leak: bool) -> None:
        super().__init__()
        self.casts, self.leak, self.choices = casts, leak, Choices(lambda values: values)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's result, with a slope where it would have none."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == GRAD_SWITCH:
            return None
        if _softened(name, args):
            return _chosen(name, args)
        if name == "numpy":
            args = (args[0].detach(),)
        result, x = func(*args, **kwargs), args[0] if args else None
        if self.casts and (sloped := self.choices.met(func, args, kwargs, result)) is not result:
            return sloped
        if not (isinstance(x, Tensor) and isinstance(result, Tensor) and x.requires_grad and x.is_floating_point()):
            return result
        if name == "__floordiv__":
            return slope_of(x / args[1], result)
        if result.shape != x.shape:
            return result
        if name in SHUT:
            return slope_of(F.leaky_relu(x, LEAK), result) if self.leak else result
        shut = not result.requires_grad and (self.casts or result.is_floating_point())
        return slope_of(x, result) if name in FLAT or shut else result

    def behind(self, _: nn.Module, inputs: tuple[Any, ...], result: Any) -> Any:
        """The output of a module that passes no gradient on, with the slope of its input where the shapes agree."""
        x = inputs[0] if inputs else None
        if not (isinstance(x, Tensor) and isinstance(result, Tensor) and x.requires_grad and not result.requires_grad):
            return result
        return slope_of(x, result) if result.shape == x.shape and result.is_floating_point() else result


class _Steep(TorchFunctionMode):
    """Puts a steep slope behind every comparison that is made while it is active, or else behind every gate."""

    def __init__(self) -> None:
        super().__init__()
        self.compared, self.gated, self.choices = False, list[Tensor](), Choices(_softmax)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's result, with a slope where it compares."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if _softened(name, args):
            return _chosen(name, args)
        result = self.choices.met(func, args, kwargs, func(*args, **kwargs))
        if name not in GREATER | LESS or len(args) != 2:
            return result
        gap = args[0] - args[1] if name in GREATER else args[1] - args[0]
        if not gap.requires_grad:
            return result
        self.compared = True
        return slope_of(_sigmoid(gap), result)

    def behind(self, _: nn.Module, inputs: tuple[Any, ...], result: Any) -> Any:
        """The output of a module that is a gate, with a slope where a value is about to enter or to leave."""
        x = inputs[0] if inputs else None
        if self.compared or not (isinstance(x, Tensor) and isinstance(result, Tensor) and result.shape == x.shape):
            return result
        if any(result is gated for gated in self.gated):  # by a module within this one
            return result
        let = _let_through(x, result.detach()) if x.requires_grad and x.is_floating_point() and x.ndim > 1 else None
        if let is None:
            return result
        self.gated.append(result + (let - let.detach()) * x.detach().nan_to_num(0.0, 0.0, 0.0))
        return self.gated[-1]


def _sigmoid(gap: Tensor) -> Tensor:
    """A step at 0 that is as steep as the gaps of a sample [B, ...] are small in the mean."""
    near = gap.detach().abs()
    near = per_sample(near.flatten(1).mean(1), like=near) if near.ndim > 1 else near.mean()
    return torch.sigmoid(gap / (STEEP * near).clamp_min(TINY))


def _softmax(values: Tensor) -> Tensor:
    """Of values [B, ..., K] a softmax that is as steep as they are near to the highest of them in the mean.

    It is less steep than the sigmoid behind a comparison: a choice is made once, so that few samples are near a tie.
    """
    away = (values.detach().amax(-1, keepdim=True) - values.detach()).flatten(1).mean(1)
    return torch.softmax(values / per_sample(away, like=values).clamp_min(TINY), -1)


def _let_through(x: Tensor, result: Tensor) -> Tensor | None:
    """How far each value of x [B, ...] is let through, with a slope; None unless the largest are and the others are 0.

    By their size, or by their magnitude. Where those are the positive ones nothing jumps, and there is None either.
    """
    values, out = x.detach(), result.to(x.dtype)
    kept = out != 0
    dropped = ~kept & (values != 0)
    if not torch.equal(out, values.masked_fill(~kept, 0.0)) or not (dropped.any() and kept.any()):
        return None
    for size in (x, x.abs()):
        known = size.detach()
        least = known.masked_fill(~kept, float("inf")).flatten(1).amin(1)
        most = known.masked_fill(~dropped, -float("inf")).flatten(1).amax(1)
        if (least >= most).all():
            if (most <= 0).all() and (least >= 0).all():
                return None
            least, most = torch.where(least.isfinite(), least, most), torch.where(most.isfinite(), most, least)
            return _sigmoid(size - per_sample((least + most) / 2, like=size))
    return None


def _softened(name: str, args: tuple[Any, ...]) -> bool:
    """Whether this chooses, or turns round, by a condition that was made soft."""
    place = {"where": 0, "masked_fill": 1, "masked_fill_": 1, "__invert__": 0}.get(name)
    if place is None or len(args) != (1 if name == "__invert__" else 3):
        return False
    return isinstance(args[place], Tensor) and bool(args[place].is_floating_point())


def _chosen(name: str, args: tuple[Any, ...]) -> Tensor:
    """What a soft condition chooses: as the hard one does, with the slope of the step from one value to the other."""
    if name == "__invert__":
        return cast("Tensor", 1 - args[0])
    condition, yes, no = args if name == "where" else (args[1], args[2], args[0])
    if name == "masked_fill_":
        return cast("Tensor", no.masked_fill_(condition.bool(), yes))
    step = (torch.as_tensor(yes) - no).detach().nan_to_num(0.0, 0.0, 0.0)
    chosen: Tensor = torch.where(condition.bool(), yes, no) + (condition - condition.detach()) * step
    return chosen


class _Slope(torch.autograd.Function):
    """The second argument's values with the first one's slope."""

    @staticmethod
    def forward(_: Any, __: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def slope_of(soft: Tensor, hard: Tensor) -> Tensor:
    """The values of `hard` with the slope of `soft`."""
    hard = hard.detach() if hard.requires_grad else hard
    result: Tensor = _Slope.apply(soft, hard.to(soft.dtype))  # type: ignore[no-untyped-call]  # torch's own
    return result
