"""A network that came as a list of operations: run one after the other, in torch, with slopes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Values = dict[str, Any]
HERE = "the input's device"  # what a step finds it under among the values


@dataclass(frozen=True)
class Step:
    """One operation: takes what it reads from the values so far, and returns one value for each name that it writes."""

    label: str
    run: Callable[[Values], Sequence[Any]]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def run(steps: Sequence[tuple[Step, tuple[str, ...]]], values: Values) -> None:
    """Add what every step writes to the values, and drop what no later one reads."""
    for step, done in steps:
        values.update(zip(step.writes, step.run(values), strict=True))
        for name in done:
            values.pop(name, None)


def planned(steps: Sequence[Step], keep: Sequence[str]) -> tuple[tuple[Step, tuple[str, ...]], ...]:
    """Each step with the names that are done with after it; those in `keep` stay to the end."""
    seen, plan = set(keep), []
    for step in reversed(steps):
        names = dict.fromkeys((*step.reads, *step.writes))
        plan.append((step, tuple(name for name in names if name not in seen)))
        seen.update(names)
    return tuple(reversed(plan))


class Program(nn.Module):
    """Steps as a network: x [B, ...] -> logits [B, C]. It has no mode: training and evaluation are the same.

    `tensors` are the values that the steps find ready: parameters stay parameters, other floating-point numbers and
    integers become buffers, and `plain` are integers that stay on the CPU because shapes are computed from them.
    """

    def __init__(
        self,
        source: str,
        steps: Sequence[Step],
        tensors: Mapping[str, Tensor],
        *,
        entry: str,
        result: str,
        plain: Mapping[str, Tensor] | None = None,
        removed: str | None = None,
    ) -> None:
        super().__init__()
        self.source, self.entry, self.result, self.removed = source, entry, result, removed
        self.steps = planned(steps, (result,))
        self.plain = dict(plain or {})
        self.places = {name: f"tensor_{number}" for number, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(self.places[name], tensor)
            else:
                self.register_buffer(self.places[name], tensor)

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        values: Values = {name: getattr(self, place) for name, place in self.places.items()}
        values |= self.plain
        values |= {self.entry: x, HERE: x.device}
        run(self.steps, values)
        logits: Tensor = values[self.result]
        return logits

    def extra_repr(self) -> str:
        """What it came from, and how many operations of which kind it has."""
        kinds = Counter(step.label for step, _ in self.steps)
        removed = f", {self.removed} removed" if self.removed else ""
        return f"{self.source}{removed}: " + ", ".join(f"{label} {n}" for label, n in kinds.items())


def same_device(values: Sequence[Any]) -> list[Any]:
    """The values with every tensor on one device: where they differ, not the CPU."""
    devices = {value.device for value in values if isinstance(value, Tensor)}
    if len(devices) < 2:
        return list(values)
    device = next(device for device in devices if device.type != "cpu")
    return [value.to(device) if isinstance(value, Tensor) else value for value in values]


def as_parameter(tensor: Tensor) -> Tensor:
    """The tensor as a frozen weight if it holds floating-point numbers; else as it is."""
    return nn.Parameter(tensor, requires_grad=False) if torch.is_floating_point(tensor) else tensor
