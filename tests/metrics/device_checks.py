"""What is asked of the engine on the CPU and on another device; each check returns what it found, as JSON has it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks import ATTACKS, SUITES, AttackConfig, ThreatModel
from tasks.data import digits
from tasks.metrics import (
    EvaluationConfig,
    Outcomes,
    binarise,
    decide_early,
    evaluate,
    examine,
    measure,
    measure_pairs,
    security_curve,
)
from tasks.metrics.store import tensor_digest

LINF = ThreatModel(norm="linf", eps=0.1)
THREATS = {
    "linf": LINF,
    "l2": ThreatModel(norm="l2", eps=0.5),
    "l1": ThreatModel(norm="l1", eps=1.5),
    "l0": ThreatModel(norm="l0", eps=3),
    "l0-pixels": ThreatModel(norm="l0-pixels", eps=3),
    "unbounded": ThreatModel(norm="unbounded"),
    "masked": ThreatModel(
        norm="l2", eps=0.5, mask=[i % 3 > 0 for i in range(64)], scale=[1 + i / 64 for i in range(64)]
    ),
}
COUNT = 10
PARAMS = {  # few queries: a device made of software is slow
    "square": {"queries": 60},
    "hopskipjump": {"queries": 80},
    "sweep": {"points": 2},
    "restarts": {"starts": "nearest thinned toward borrowed blocks stripes noise", "cut": 8},
}


class Rounded(nn.Module):
    """A model that hides its gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((4 * x).round() / 4)


class Shaken(Rounded):
    """A model that answers at random, on whatever device."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.1 * torch.randn(x.shape).to(x))


def small() -> nn.Module:
    """A convolutional net that reads most digits."""
    torch.manual_seed(0)
    x, y = digits("train")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def samples() -> tuple[Tensor, Tensor]:
    x, y = digits("test")
    return x[:COUNT], y[:COUNT]


def told(outcomes: Outcomes) -> Any:
    """All of a measurement that another device must agree with; every tensor of it comes back on the CPU."""
    tensors = (outcomes.fooled, outcomes.x_adv, outcomes.nearest, outcomes.margin, outcomes.prediction)
    return [
        int(outcomes.fooled.sum()),
        [tensor.device.type for tensor in tensors],
        tensor_digest(*tensors),
        outcomes.passes,
        [attack.error for attack in outcomes.attacks],
    ]


def measured(model: nn.Module, threat: ThreatModel, suite: str) -> Any:
    return told(measure(model, *samples(), threat=threat, suite=suite))


def warmed(model: nn.Module, threat: ThreatModel) -> Any:
    x, y = samples()
    near = measure(model, x, y, threat=threat, suite="quick").nearest
    return told(measure(model, x, y, threat=threat, suite=SUITES["warm"].within(10), warm=near))


def alone(model: nn.Module, name: str) -> Any:
    attack = AttackConfig(name=name, params=PARAMS.get(name, {}))
    threat = THREATS["l0" if name in ("greedy", "sigma-zero") else "l2"]
    return told(measure(model, *samples(), threat=threat, suite=[attack]))


def doubted(model: nn.Module) -> Any:
    x, y = samples()
    outcomes, _, soundness = examine(model, x, y, outcomes=measure(model, x, y, threat=LINF, suite="quick"))
    return told(outcomes), [sign.model_dump(mode="json") for sign in soundness.signs]


def curved(model: nn.Module, threat: ThreatModel) -> Any:
    x, y = samples()
    outcomes, points = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat, suite="quick"))
    return told(outcomes), str(points)


def reported(model: nn.Module) -> Any:
    config = EvaluationConfig(threats=(LINF,), suite="quick", seeds=2)
    report, *_ = evaluate(model, *samples(), config)
    return [row.robust.model_dump() for row in report.threats]


def planted(model: nn.Module) -> Any:
    return binarise(model, samples()[0], threat=LINF, samples=3, suite="quick").says


CHECKS: dict[str, Callable[[nn.Module], Any]] = {
    **{f"standard {name}": partial(measured, threat=threat, suite="standard") for name, threat in THREATS.items()},
    **{f"quick {norm}": partial(measured, threat=THREATS[norm], suite="quick") for norm in ("linf", "l2", "l1", "l0")},
    **{f"warm {norm}": partial(warmed, threat=THREATS[norm]) for norm in ("linf", "l2", "l1")},
    **{f"attack {name}": partial(alone, name=name) for name in ATTACKS if name != "transfer"},
    **{f"curve {norm}": partial(curved, threat=THREATS[norm]) for norm in ("linf", "l1", "l0")},
    "signs": doubted,
    "signs and escalation": lambda model: doubted(Rounded(model)),
    "answers at random": lambda model: measured(Shaken(model), LINF, "quick"),
    "planted examples": planted,
    "early decision": lambda model: str(decide_early(model, *samples(), threat=LINF, floor=0.5)),
    "pairs": lambda model: str(measure_pairs(model, *samples(), pairs=[(3, 8)], threat=LINF)),
    "report": reported,
}
