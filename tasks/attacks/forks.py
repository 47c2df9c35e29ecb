"""The ways that a model did not go: slopes behind what it decides once for a sample, such as which expert answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tasks.attacks.choices import HIGHEST, LOWEST, choice_made
from tasks.attacks.geometry import TINY
from tasks.attacks.search import at_once
from tasks.attacks.straight_through import GRAD_SWITCH, GREATER, LESS, slope_of

GLANCE = 8  # samples that tell what a model decides
DECISIONS = 8  # that are looked at
PULL = 2.0  # of the logits' spread: what the mean gap weighs that keeps a model from going a way
DONE = 0.1  # of the logits' spread: so far behind the own class may fall before the way is all that counts


@dataclass(frozen=True)
class Decision:
    """What a model decides once for each of B samples, between K ways."""

    gap: Tensor  # what keeps it from each way, 0 for one that it goes: [B, K], with a slope
    goes: Tensor  # bool [B, K]


class Fork(nn.Module):
    """The model with the same answers, and slopes as if one of its decisions had gone a certain way.

    An attack that follows them makes wrong what stands at the end of that way, and small what keeps the model from
    going it: so are systems attacked in which a gate picks an expert, a detector rejects, or a large model is asked
    where a small one hesitates (Tramèr et al., 2020, https://arxiv.org/abs/2002.08347). Where the model goes the way by
    itself, its slopes are its own. A step takes a sample two passes forward and one back.
    """

    def __init__(self, model: nn.Module, number: int, way: int) -> None:
        """number: of the decision, in the order in which the model makes them; way: the place it is to choose."""
        super().__init__()
        self.model, self.number, self.way = model, number, way

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C], equal to the model's."""
        if not x.requires_grad:  # nobody will ask for a slope
            logits: Tensor = self.model(x)
            return logits
        led, decision = self.led(x)
        if decision is None or decision.goes[:, self.way].all():
            return led
        elsewhere = ~decision.goes[:, self.way]
        rows = elsewhere.nonzero().flatten()
        answers = led.detach().clone()
        with torch.no_grad():
            answers[rows] = self.model(x.detach()[rows]).to(answers)
        own = answers.argmax(1, keepdim=True)  # of a sample that stands, its class
        rival, best = (_without(logits, own).max(1, keepdim=True) for logits in (answers, led))
        spread = (led.amax(1, keepdim=True) - led.mean(1, keepdim=True)).detach()
        done = elsewhere.unsqueeze(1) & (led.gather(1, own) - best.values < -DONE * spread)
        gap = (decision.gap[:, self.way] * elsewhere / decision.gap.detach().mean().clamp_min(TINY)).unsqueeze(1)
        aimed = torch.where(done, led.detach(), led.scatter(1, rival.indices, best.values))  # whose margin is the way's
        return slope_of(aimed + torch.zeros_like(led).scatter(1, own, PULL * spread * gap), answers)

    def led(self, x: Tensor) -> tuple[Tensor, Decision | None]:
        """The logits [B, C] to which the way leads, and the decision that was forced, if the model made it."""
        with _Deciding(len(x), self.number, self.way) as forced:
            logits: Tensor = self.model(x)
        return logits, forced.met[self.number] if len(forced.met) > self.number else None


def _without(logits: Tensor, own: Tensor) -> Tensor:
    """The logits [B, C] of the other classes than own [B, 1], which gets the lowest."""
    return logits.scatter(1, own, float("-inf"))


def forks(model: nn.Module, x: Tensor) -> list[tuple[Fork, Tensor]]:
    """The ways that the model could go, those first that take the least, and which of x [B, ...] do not go them: [B].

    None where it decides nothing, or nothing on which its answers depend: the first few of x tell, for a pass each and
    one more for each decision. Where there are any, all of x pass once.
    """
    few, found = x[:GLANCE], list[tuple[float, Fork, Tensor]]()
    try:
        logits, met = _noted(model, few)
        nearest = [Fork(model, n, _nearest(decision)) for n, decision in enumerate(met[:DECISIONS])]
        telling = [fork.number for fork in nearest if (fork.led(few.detach().requires_grad_())[0] != logits).any()]
        parts = [_noted(model, part)[1] for part in x.split(at_once(x))] if telling else []
        for number in telling:
            gap, goes = (torch.cat([getattr(part[number], of) for part in parts]) for of in ("gap", "goes"))
            each = (gap.mean(0) / gap.mean().clamp_min(TINY)).tolist()
            found += [(each[way], Fork(model, number, way), ~goes[:, way]) for way in range(len(each))]
    except Exception:  # it cannot be made to go another way, or does not decide alike on all
        return []
    return [(fork, elsewhere) for _, fork, elsewhere in sorted(found, key=lambda way: way[0])]


def _nearest(decision: Decision) -> int:
    """The way that takes the least of those that not all samples go."""
    return int(decision.gap.mean(0).masked_fill(decision.goes.all(0), float("inf")).argmin())


def _noted(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Decision]]:
    """The model's logits [B, C], and what it decides."""
    with _Deciding(len(x)) as noted:
        logits: Tensor = model(x.detach().clone().requires_grad_())
    return logits.detach(), [Decision(decision.gap.detach(), decision.goes) for decision in noted.met]


class _Deciding(TorchFunctionMode):
    """Notes what is decided once for a sample while it is active, and has one of the decisions go a certain way."""

    def __init__(self, samples: int, number: int | None = None, way: int = 0) -> None:
        super().__init__()
        self.samples, self.number, self.way = samples, number, way
        self.met = list[Decision]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's result, or what it would be if the decision had gone that way."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == GRAD_SWITCH:
            return None
        result = func(*args, **kwargs)
        if name in GREATER | LESS and len(args) == 2:
            return self._compared(args[0] - args[1] if name in GREATER else args[1] - args[0], result)
        choice = choice_made(name, args, kwargs, result) if name in HIGHEST | LOWEST else None
        return result if choice is None else self._chosen(*choice, result)

    def _compared(self, lead: Tensor, result: Tensor) -> Tensor:
        """What a comparison gave, or the way that is asked for. lead: of one side over the other, where it is true."""
        if not (isinstance(lead, Tensor) and lead.requires_grad and self._once(result)):
            return result
        gap, yes = lead.flatten(), result.flatten()
        forced = self._note(Decision(torch.stack([gap, -gap], 1).clamp_min(0), torch.stack([~yes, yes], 1)))
        return torch.full_like(result, bool(self.way)) if forced else result

    def _chosen(self, values: Tensor, places: Tensor, dim: int | None, result: Any) -> Any:
        """What a choice among values [B, ..., K] gave, the way that is asked for standing last among its places."""
        if not self._once(values[..., 0]):
            return result
        values = values.view(self.samples, -1)
        chosen = places.reshape(self.samples, 1) if dim is None else places.movedim(dim, -1).reshape(self.samples, -1)
        goes = torch.zeros_like(values, dtype=torch.bool).scatter(1, chosen, True)
        if not self._note(Decision((values.gather(1, chosen[:, -1:]) - values).clamp_min(0), goes)):
            return result
        last = torch.where(goes[:, self.way], chosen[:, -1], self.way)
        forced = last.view_as(places) if dim is None else places.clone()
        if dim is not None:
            forced.select(dim, -1).view(-1).copy_(last)
        return forced if isinstance(result, Tensor) else type(result)((result[0], forced))

    def _once(self, result: Tensor) -> bool:
        """Whether there is one of these for each sample."""
        return result.ndim > 0 and len(result) == result.numel() == self.samples

    def _note(self, decision: Decision) -> bool:
        """Take note; whether this is the one that is to go a certain way."""
        self.met.append(decision)
        return len(self.met) - 1 == self.number
