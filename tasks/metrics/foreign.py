"""An attack that takes no part in the search: what it returns is measured, not believed."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tasks.attacks import ATTACKS, AttackConfig
from tasks.attacks.search import Search
from tasks.metrics.budget import violation
from tasks.metrics.child import Result, can_fork, in_child
from tasks.metrics.draws import draw_on, drawn
from tasks.metrics.isolation import Meter

ATTACK_SECONDS = 600.0  # that an attack of the user's own may take for the samples of one cell
SEEN = ("fooled", "margin", "nearest", "logits")  # what a search notes of each sample that it sees


class Misbehaved(Exception):
    """An attack's result that cannot be used, in words that stand in the report."""


def attack_function(
    search: Search, rows: Tensor, config: AttackConfig, *, model: nn.Module, meter: Meter, seconds: float
) -> Tensor:
    """Let a plain attack function try the samples in rows [R]: what it returns counts, and what it meets on its way.

    model is what it is shown, meter what judges. Returns which samples it met an input for that fools, and returned
    another: bool [N]. Raises Misbehaved for what leaves ball or box, and Stopped after so many seconds.
    """
    x, y = search.x[rows], search.y[rows]
    attack = partial(_in_parts, search, rows, config.function(), model)
    if config.name in ATTACKS:
        x_adv = attack()
    elif can_fork():
        x_adv = _apart(attack, search, rows, meter, seconds)
    else:  # the model can be refused to it, which ends all but what asks the model nothing
        meter.deadline = (time.monotonic() + seconds, seconds)
        try:
            x_adv = attack()
        finally:
            meter.deadline = None
    wrong = violation(x, x_adv, search.threat)
    if wrong:
        raise Misbehaved(wrong)
    met, x_adv = search.fooled[rows].clone(), x_adv.detach().to(x)
    with torch.no_grad():
        logits = torch.cat([meter(part) for part in x_adv.split(search.batch)])
    search.see(rows, x_adv, logits)
    silent = torch.zeros_like(search.fooled)
    silent[rows] = met & (logits.argmax(1) == y)
    return silent


def _in_parts(search: Search, rows: Tensor, function: Callable[..., Tensor], model: nn.Module) -> Tensor:
    """What the function returns, which is given as many of the samples as pass through the model at once."""
    found = []
    for part in rows.split(search.batch):
        shown = _Overheard(model, search, part)
        x_adv = function(shown, search.x[part], search.y[part], threat=search.threat, rng=search.rng)
        if not isinstance(x_adv, Tensor):
            raise TypeError(f"returned {type(x_adv).__name__}, not a tensor")
        if x_adv.shape[1:] != search.x.shape[1:]:
            return x_adv  # whoever measures it says so
        found.append(x_adv)
    return torch.cat(found)


def _apart(attack: Callable[[], Tensor], search: Search, rows: Tensor, meter: Meter, seconds: float) -> Tensor:
    """What the attack returns, from a process of its own; what it met, spent and drew there counts here."""
    draws, begun = {"rng": search.rng, "reseed": meter.reseed}, drawn()

    def work() -> Result:
        draw_on(begun)  # in a copy of the process Python's own generator begins anew
        x_adv = attack()
        seen = {"seen/" + name: getattr(search, name)[rows] for name in SEEN}
        states = {"drawn/" + name: rng.get_state() for name, rng in draws.items() if rng is not None}
        tensors = {"x_adv": x_adv, "drawn": torch.get_rng_state(), **seen, **states}
        passes = meter.forward_samples, meter.backward_samples
        return tensors, {"passes": passes, "broken": search.broken, "drawn": drawn()}

    tensors, values = in_child(work, seconds=seconds)
    for name in SEEN:
        getattr(search, name)[rows] = tensors["seen/" + name]
    for name, rng in draws.items():
        if rng is not None:
            rng.set_state(tensors["drawn/" + name])
    torch.set_rng_state(tensors["drawn"])
    draw_on(values["drawn"])
    meter.forward_samples, meter.backward_samples = values["passes"]
    search.broken = values["broken"]
    return tensors["x_adv"]


class _Overheard(nn.Module):
    """The model as an attack function sees it; whole batches within the budget are noted as they pass."""

    def __init__(self, model: nn.Module, search: Search, rows: Tensor) -> None:
        super().__init__()
        self.model, self.search, self.rows = model, search, rows

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        logits: Tensor = self.model(x)
        low, high = self.search.threat.bounds
        if len(x) == len(self.rows) and x.shape[1:] == self.search.x.shape[1:] and ((x >= low) & (x <= high)).all():
            self.search.see(self.rows, x, logits)
        return logits
