"""What a model does to its input before the first layer: rounding, thresholds, scaling."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tasks.attacks.search import margins, slope
from tasks.attacks.straight_through import GRAD_SWITCH

MIXING = {
    "linear",
    "bilinear",
    "einsum",
    "tensordot",
    "matmul",
    "__matmul__",
    "__rmatmul__",
    "mm",
    "bmm",
    "mv",
    "addmm",
    "baddbmm",
    "convolution",
    "_convolution",
    *(f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3)),
    *(f"{how}_pool{n}d" for how in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
}


def shown(model: nn.Module, x: Tensor) -> Tensor | None:
    """What the first layer that is given as many numbers as x has is given for x [B, ...], in the shape of x.

    In the layer's own order, which need not be that of x. The model is run no further. None where it has no such
    layer, or it does not call torch by name.
    """
    with torch.no_grad(), _AtTheLayers(x, stop=True) as watch, suppress(_Seen):
        model(x)
    return None if watch.given is None else watch.given.reshape(x.shape).to(x)


def slope_behind(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [B, C] of x [B, ...], and the margin's slope [B, ...] by what `shown` tells, zero where it is None."""
    x = x.clone().requires_grad_()
    with _AtTheLayers(x, stop=False) as watch:
        logits: Tensor = model(x)
    if watch.given is None:
        return logits.detach(), torch.zeros_like(x)
    return logits.detach(), slope(margins(logits.float(), y).sum(), watch.given).reshape(x.shape).to(x)


class _AtTheLayers(TorchFunctionMode):
    """Takes what the first layer is given, and stops there or makes it what slopes are taken of."""

    def __init__(self, x: Tensor, *, stop: bool) -> None:
        super().__init__()
        self.x, self.stop = x, stop
        self.given: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's result, of what it is given."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0]
        if name == GRAD_SWITCH and not self.stop:
            return None
        if name in MIXING and self.given is None:
            args = tuple(self._taken(part) for part in args)
        return func(*args, **kwargs)

    def _taken(self, part: Any) -> Any:
        """One argument of a layer: what slopes are taken of, if it has the input's size and nothing was taken yet."""
        if self.given is not None or not isinstance(part, Tensor) or not part.is_floating_point():
            return part
        if part.numel() != self.x.numel() or len(part) != len(self.x):
            return part
        self.given = part.detach()
        if self.stop:
            raise _Seen
        return self.given.requires_grad_()


class _Seen(Exception):
    """Enough is known."""
