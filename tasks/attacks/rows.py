"""The engine's loop: many rows move at once, and one that is done makes place for the next.

Shapes: R rows, of which B are at work. A row is one attempt: a sample, a target class and a start.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tasks.attacks.geometry import moved
from tasks.attacks.search import ANY, Search, margins, slope, soft_margins

CUT = 0.33  # of the rows go on after the cut


@dataclass(frozen=True)
class At:
    """Where the rows of a batch stand when they move."""

    number: Tensor  # of each row, among all of the call, [B]
    rows: Tensor  # the samples, [B]
    delta: Tensor  # [B, ...]
    grad: Tensor  # of the margin, [B, ...]
    margin: Tensor  # to the row's target, [B]
    step: Tensor  # how many steps the row has made, [B]


Move = Callable[[At], Tensor]


def run_rows(
    search: Search,
    rows: Tensor,
    target: Tensor,
    start: Tensor,
    move: Move,
    *,
    steps: int,
    inside: bool = True,
    cut: int | None = None,
    soft: float | None = None,
    known: Tensor | None = None,
    first: Tensor | None = None,
) -> None:
    """Move every row `steps` times. A row whose sample is fooled leaves at once and the next one takes its place.

    rows [R] sample numbers, target [R] classes or ANY, start [R, ...] perturbations. `inside` promises that start and
    move stay within the budget. After `cut` steps only the better rows go on: those whose margin is among the
    smallest third of the margins met at that point. A row without a slope to follow goes straight to its last step.
    The slope is the margin's, with `soft` that of soft_margins; `known` [R, ...] are those at the start, if they are.
    `first` [R] is given the margins after one step, 0 where the sample fell.
    """
    number, foretell = torch.arange(len(rows), device=rows.device), inside and not search.winding
    everyone = _Rows(number, start, torch.zeros_like(rows), torch.zeros_like(search.fooled[rows]))
    if known is not None:
        lead = margins(search.clean[rows], search.y[rows], target)
        everyone = _stepped(search, move, At(number, rows, start, known, lead, everyone.step), steps, foretell)
    work, following, halfway, named = everyone[number[:0]], 0, search.x.new_zeros(0), bool((target != ANY).any())
    while True:
        while len(work) < search.batch and following < len(rows):
            more = number[following : following + search.batch - len(work)]
            following += len(more)
            work = work.joined(everyone[more[~search.fooled[rows[more]]]])
        if not len(work):
            return
        s, t = rows[work.number], target[work.number]
        x_adv, moving = moved(search.x[s], work.delta, search.threat), work.step < steps
        looks = work.foretold | ~moving.any()
        if looks.any():  # a pass forward may be all that they take, or is the last one
            search.look(s[looks], x_adv[looks], inside=inside)
            if first is not None:
                first[work.number[work.foretold & search.fooled[s]]] = 0.0
            work = replace(work, foretold=torch.zeros_like(looks))[(moving & ~search.fooled[s]).nonzero().flatten()]
            continue
        logits = search.model(x_adv.requires_grad_())
        margin = margins(logits.float(), search.y[s], t)
        search.see(s, x_adv, logits, inside=inside, margin=None if named else margin)
        if first is not None:
            first[work.number[work.step == 1]] = margin.detach()[work.step == 1].clamp_min(0)
        going = moving & ~search.fooled[s]
        if cut is not None and bool((there := going & (work.step == cut)).any()):
            halfway = torch.cat([halfway, margin.detach()[there]])
            going &= ~there | (margin.detach() <= halfway.quantile(CUT))
        keep = going.nonzero().flatten()
        work, s, t = work[keep], s[keep], t[keep]
        if len(keep):
            lead = margin[keep] if soft is None else soft_margins(logits[keep].float(), search.y[s], t, soft=soft)
            grad = slope(lead.sum(), x_adv)[keep]
            at = At(work.number, s, work.delta, grad, margin[keep].detach(), work.step)
            work = _stepped(search, move, at, steps, foretell)


@dataclass(frozen=True)
class _Rows:
    """Rows and where they have come to."""

    number: Tensor  # among all of the call, [B]
    delta: Tensor  # [B, ...]
    step: Tensor  # how many steps they have made, [B]
    foretold: Tensor  # to fall here, if the first slope holds so far: bool [B]

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, which: Tensor) -> "_Rows":
        return _Rows(self.number[which], self.delta[which], self.step[which], self.foretold[which])

    def joined(self, more: "_Rows") -> "_Rows":
        """These and more."""
        pairs = [(getattr(self, name), getattr(more, name)) for name in ("number", "delta", "step", "foretold")]
        return _Rows(*(torch.cat(pair) for pair in pairs))


def _stepped(search: Search, move: Move, at: At, steps: int, foretell: bool) -> _Rows:
    """The rows after their next step."""
    level = ~at.grad.flatten(1).any(1)  # nothing leads on from here: the next step is the last
    search.steps, search.level = search.steps + len(level), search.level + level.sum()
    at = replace(at, step=at.step.masked_fill(level, steps - 1))
    delta, fall = move(at), torch.zeros_like(level)
    if foretell and bool((begun := (at.step == 0) & (steps > 1)).any()):
        fall = begun & (at.margin + (at.grad * (delta - at.delta)).flatten(1).sum(1) < 0)
    return _Rows(at.number, delta, at.step + 1, fall)
