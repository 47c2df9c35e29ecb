"""What a threat model says of each feature, as tensors that are made once and not at every step."""

from functools import lru_cache

import torch
from torch import Tensor

from tasks.attacks.threat import ThreatModel

KEPT = 8  # tensors at most, each with the tuple that it was made from


class _Itself:
    """A tuple as a key: equal to nothing but itself, since to compare or hash all its numbers costs what is saved."""

    def __init__(self, values: tuple[float, ...]) -> None:
        self.values = values

    def __hash__(self) -> int:
        return id(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.values is other.values


def scale_of(threat: ThreatModel, like: Tensor) -> Tensor:
    """The threat's scale, [1, ...], or 1. Not to be written into."""
    if threat.scale is None:
        return torch.ones((), dtype=like.dtype, device=like.device)
    return _made(_Itself(threat.scale), like.dtype, like.device).view(1, *like.shape[1:])


def mask_of(threat: ThreatModel, like: Tensor) -> Tensor:
    """The mask of a threat that has one, bool [1, ...]: true where a feature may change. Not to be written into."""
    assert threat.mask is not None
    return _made(_Itself(threat.mask), torch.bool, like.device).view(1, *like.shape[1:])


@lru_cache(maxsize=KEPT)
def _made(values: _Itself, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asks next may want gradients
        return torch.tensor(values.values, dtype=dtype, device=device)
