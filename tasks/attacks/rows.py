"""The engine's loop: many rows move at once, and one that is done makes place for the next.

Shapes: R rows, of which B are at work. A row is one attempt: a sample, a target class and a start.
"""

from collections.abc import Callable
from dataclasses import dataclass

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

    rows [R] sample numbers, target [R] classes or ANY, start [R, ...] perturbations, to be changed in place. `inside`
    promises that start and move stay within the budget. After `cut` steps only the better rows go on: those whose
    margin is among the smallest third of the margins met at that point. A row without a slope to follow goes straight
    to its last step. The slope is the margin's, with `soft` that of soft_margins(); `known` [R, ...] are those at the
    start, if they are. `first` [R] is given the margins after one step, 0 where the sample fell.
    """
    run = _Run(search, rows, target, start, move, steps, inside, cut, soft, first)
    waiting, work = torch.arange(len(rows), device=rows.device), rows[:0]  # numbers of rows
    if known is not None:
        run.step(waiting, known, margins(search.clean[rows], search.y[rows], target))
    while True:
        while len(work) < search.batch and len(waiting):
            more, waiting = waiting.tensor_split([search.batch - len(work)])
            work = torch.cat([work, more[~search.fooled[rows[more]]]])
        if not len(work):
            return
        looks = run.foretold[work] | ~(run.made[work] < steps).any()
        work = run.look(work, work[looks]) if looks.any() else run.follow(work)


@dataclass
class _Run:
    """The rows of one call, where each has come to, and the passes that bring them on."""

    search: Search
    rows: Tensor
    target: Tensor
    delta: Tensor
    move: Move
    steps: int
    inside: bool
    cut: int | None
    soft: float | None
    first: Tensor | None

    def __post_init__(self) -> None:
        self.made = torch.zeros_like(self.rows)  # how many steps, [R]
        self.foretold = torch.zeros_like(self.search.fooled[self.rows])  # to fall here, if the first slope holds so far
        self.foretells, self.named = self.inside and not self.search.winding, bool((self.target != ANY).any())
        self.halfway = self.search.x.new_zeros(0)  # the margins met at the cut

    def look(self, work: Tensor, chosen: Tensor) -> Tensor:
        """A pass forward for those chosen: all that they take where they fall, or their last. Returns who goes on."""
        search, s = self.search, self.rows[chosen]
        search.look(s, moved(search.x[s], self.delta[chosen], search.threat), inside=self.inside)
        if self.first is not None:
            self.first[chosen[self.foretold[chosen] & search.fooled[s]]] = 0.0
        self.foretold[work] = False
        return work[(self.made[work] < self.steps) & ~search.fooled[self.rows[work]]]

    def follow(self, work: Tensor) -> Tensor:
        """A pass forward and one back, and a step down the slope for whoever goes on. Returns these."""
        search, s, t, made = self.search, self.rows[work], self.target[work], self.made[work]
        x_adv = moved(search.x[s], self.delta[work], search.threat).requires_grad_()
        logits = search.model(x_adv)
        margin = margins(logits.float(), search.y[s], t)
        search.see(s, x_adv, logits, inside=self.inside, margin=None if self.named else margin)
        met = margin.detach()
        if self.first is not None:
            self.first[work[made == 1]] = met[made == 1].clamp_min(0)
        going = (made < self.steps) & ~search.fooled[s]
        if self.cut is not None and bool((there := going & (made == self.cut)).any()):
            self.halfway = torch.cat([self.halfway, met[there]])
            going &= ~there | (met <= self.halfway.quantile(CUT))
        keep = going.nonzero().flatten()
        if len(keep):
            soft, of = self.soft, (search.y[s[keep]], t[keep])
            lead = margin[keep] if soft is None else soft_margins(logits[keep].float(), *of, soft=soft)
            self.step(work[keep], slope(lead.sum(), x_adv)[keep], met[keep])
        return work[keep]

    def step(self, number: Tensor, grad: Tensor, margin: Tensor) -> None:
        """Move the rows of these numbers [B], where they have these slopes [B, ...] and margins [B]."""
        search, level = self.search, ~grad.flatten(1).any(1)  # nothing leads on from there: the next step is the last
        search.steps, search.level = search.steps + len(level), search.level + level.sum()
        delta, made = self.delta[number], self.made[number].masked_fill(level, self.steps - 1)
        there = self.move(At(number, self.rows[number], delta, grad, margin, made))
        if self.foretells and bool((begun := (made == 0) & (self.steps > 1)).any()):
            self.foretold[number] = begun & (margin + (grad * (there - delta)).flatten(1).sum(1) < 0)
        self.delta[number], self.made[number] = there, made + 1
