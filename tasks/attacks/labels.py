"""What stands behind the answers of a model that gives labels alone, where torch is asked for the highest value."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tasks.attacks.choices import HIGHEST
from tasks.attacks.straight_through import GRAD_SWITCH


class BehindLabels(nn.Module):
    """The values among which a model makes its last choice, where its answers are that choice: logits [B, C]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> [B, C], the highest being the model's answer."""
        return self.both(x)[1]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X [B, ...] -> the model's logits [B, C], and what stands behind them, or else the same."""
        with _Last() as last:
            logits: Tensor = self.model(x)
        return logits, logits if last.values is None or last.values.shape != logits.shape else last.values


def behind_labels(model: nn.Module, x: Tensor) -> BehindLabels | None:
    """What stands behind answers that are labels alone; None where nothing does that ranks x [B, ...] as they do."""
    view = BehindLabels(model)
    try:
        logits, values = view.both(x.clone().requires_grad_())
    except Exception:  # the model needs its values cut off, as numpy does
        return None
    same = bool((logits.argmax(1) == values.argmax(1)).all()) and bool(values.isfinite().all())
    return view if same and values.requires_grad and not torch.equal(values, logits) else None


class _Last(TorchFunctionMode):
    """Notes among which values [B, C] the last choice is made while it is active, under no_grad() and detached too."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's own result, but of what would cut the values off."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == GRAD_SWITCH:
            return None
        values = args[0] if args else kwargs.get("input")
        if name == "detach":
            return values
        if name in HIGHEST and isinstance(values, Tensor) and values.ndim > 1 and values.is_floating_point():
            self.values = values
        return func(*args, **kwargs)
