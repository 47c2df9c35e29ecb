"""Data whose best robust accuracy is known in advance."""

import torch
from torch import Tensor


def two_kinds_of_feature(split: str, *, n: int = 2048) -> tuple[Tensor, Tensor]:
    """One strong feature that is right 95 % of the time and 200 weak ones that are fragile: x [n, 201], y [n].

    Together the weak ones are right almost always, yet an L-inf radius of 0.1 turns all of them over; a model
    that ignores them keeps 95 %. Tsipras et al., 2019, section 2.1, https://arxiv.org/abs/1805.12152, scaled to 0..1.
    """
    rng = torch.Generator().manual_seed({"train": 0, "select": 1, "test": 2}[split])
    y = torch.randint(0, 2, (n,), generator=rng)
    sign = 2.0 * y[:, None] - 1
    truthful = (torch.rand(n, 1, generator=rng) < 0.95).float() * 2 - 1
    strong = 0.5 + 0.4 * sign * truthful
    weak = 0.5 + 0.05 * sign + 0.1 * torch.randn(n, 200, generator=rng)
    return torch.cat([strong, weak], dim=1).clamp(0, 1), y
