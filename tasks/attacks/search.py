"""The engine's loop and its ledger: what is known of each sample while it is being attacked.

Shapes: N samples, R rows, C classes. A row is one attempt: a sample, a target class and a start.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.geometry import Limits, distance, limits, moved
from tasks.attacks.threat import ThreatModel

ANY = -1  # a target: whichever other class is nearest
CLOSE_CALL = 1e-6  # of the largest logit: a success by less may not survive another batch's rounding
SLACK = 1e-5  # of the radius and of the box: what rounding to float32 may add


class Search:
    """Samples under attack. `nearest` holds the input with the smallest margin met so far, `margin` that margin.

    Once a sample is fooled, `nearest` is an input within the budget that fools it.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, confirm: bool = False
    ) -> None:
        """x [N, ...] within the bounds, y [N]. With confirm, a success is judged again outside of autocast."""
        self.model, self.x, self.y, self.threat, self.rng = model, x, y, threat, rng
        self.confirm = confirm
        self.low, self.high = limits(x, threat)
        self.box = limits(x, threat.model_copy(update={"norm": "unbounded"}))  # without the radius
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.margin = torch.full((len(x),), float("inf"), device=x.device)
        self.nearest = x.clone()
        self.logits: Tensor | None = None  # [N, C] at nearest; None before the first look
        self.clean = x.new_zeros(0)  # [N, C] at x
        self.aimed = torch.zeros(0, dtype=torch.bool)  # [N, C]: which pairs of sample and class have been tried
        self.broken = False  # met logits that are not finite
        self.visits: dict[str, int] = {}  # how often each arm has been drawn

    @property
    def batch(self) -> int:
        """How many rows pass through the model at once: many small inputs, fewer large ones."""
        per_pass = 2**18 if self.x.device.type == "cpu" else 2**22
        return max(64, min(4096, per_pass // max(self.x[0].numel(), 1)))

    def standing(self) -> Tensor:
        """The samples that nothing has fooled yet, nearest to falling first: [<= N]."""
        rows = (~self.fooled).nonzero().flatten()
        return rows[self.margin[rows].argsort(stable=True)]

    def within(self, rows: Tensor) -> Limits:
        """The limits on delta for these samples."""
        return self.low[rows], self.high[rows]

    def see(self, rows: Tensor, x_adv: Tensor, logits: Tensor, *, inside: bool = False) -> None:
        """Take note of what the model says of x_adv [R, ...], made from the samples in `rows` [R].

        `inside` promises that x_adv was projected; else what leaves ball or box is passed over.
        """
        logits = logits.detach().float()
        if self.logits is None:  # the first look is at the samples as they are
            self.logits = logits.new_zeros(len(self.x), logits.shape[1])
            self.clean = self.logits.index_put((rows,), logits)
            self.aimed = torch.zeros_like(self.logits, dtype=torch.bool)
        margin = margins(logits, self.y[rows])
        self.broken = self.broken or not bool(margin.sum().isfinite())
        chosen = ((margin < self.margin[rows]) & ~self.fooled[rows]).nonzero().flatten()
        if not len(chosen):
            return
        candidate = x_adv.detach()[chosen].to(self.x)
        if not inside:
            allowed = _in_budget(self.x[rows[chosen]], candidate, self.threat).nonzero().flatten()
            chosen, candidate = chosen[allowed], candidate[allowed]
        best = self.margin.scatter_reduce(0, rows[chosen], margin[chosen], "amin")
        first = (margin[chosen] == best[rows[chosen]]).nonzero().flatten()  # of each sample's rows, the best
        chosen, candidate = chosen[first], candidate[first]
        at, kept = rows[chosen], self.margin[rows[chosen]]
        self.margin[at], self.nearest[at], self.logits[at] = margin[chosen], candidate, logits[chosen]
        hit = margin[chosen] < -CLOSE_CALL * logits[chosen].abs().amax(1)
        if self.confirm and hit.any():
            hit = self._confirmed(at, candidate, hit)
            refuted = (margin[chosen] < 0) & ~hit
            self.margin[at[refuted]] = kept[refuted].clamp(min=0, max=1e30)
        self.fooled[at[hit]] = True

    @torch.no_grad()
    def _confirmed(self, rows: Tensor, x_adv: Tensor, hit: Tensor) -> Tensor:
        with torch.autocast(x_adv.device.type, enabled=False):
            margin = margins(self.model(x_adv[hit]).float(), self.y[rows[hit]])
        return hit.index_put((hit.nonzero().flatten(),), margin < 0)

    @torch.no_grad()
    def look(self, rows: Tensor, x_adv: Tensor, *, inside: bool = False) -> None:
        """Pass x_adv [R, ...] forward and take note, as see() does."""
        for part, points in zip(rows.split(self.batch), x_adv.split(self.batch), strict=True):
            self.see(part, points, self.model(points), inside=inside)


@dataclass(frozen=True)
class At:
    """Where the rows of a batch stand when they move."""

    rows: Tensor  # the samples, [B]
    delta: Tensor  # [B, ...]
    grad: Tensor  # of the margin, [B, ...]
    margin: Tensor  # to the row's target, [B]
    step: Tensor  # how many steps the row has made, [B]


Move = Callable[[At], Tensor]


def run_rows(
    search: Search, rows: Tensor, target: Tensor, start: Tensor, move: Move, *, steps: int, inside: bool = True
) -> None:
    """Move every row `steps` times. A row whose sample is fooled leaves at once and the next one takes its place.

    rows [R] sample numbers, target [R] classes or ANY, start [R, ...] perturbations. `inside` promises that start and
    move stay within the budget.
    """
    s, t, d = rows[:0], target[:0], start[:0]
    i, following = torch.zeros_like(s), 0
    while True:
        while len(s) < search.batch and following < len(rows):
            more = slice(following, following + search.batch - len(s))
            fresh = ~search.fooled[rows[more]]
            s, t, d = (torch.cat([a, b[more][fresh]]) for a, b in ((s, rows), (t, target), (d, start)))
            i, following = torch.cat([i, torch.zeros_like(s[len(i) :])]), more.stop
        if not len(s):
            return
        x_adv = moved(search.x[s], d, search.threat)
        moving = i < steps
        if not moving.any():
            search.look(s, x_adv, inside=inside)
            s, t, d, i = s[:0], t[:0], d[:0], i[:0]
            continue
        logits = search.model(x_adv.requires_grad_())
        margin = margins(logits.float(), search.y[s], t)
        search.see(s, x_adv, logits, inside=inside)
        keep = (moving & ~search.fooled[s]).nonzero().flatten()
        if len(keep):
            (grad,) = torch.autograd.grad(margin[keep].sum(), x_adv)
            at = At(s[keep], d[keep], grad[keep], margin[keep].detach(), i[keep])
            d = move(at)
        else:
            d = d[keep]
        s, t, i = s[keep], t[keep], i[keep] + 1


def margins(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """By how much the logit of y leads the target's, or the highest other one's where the target is ANY: [B].

    The raw difference: it saturates nowhere, and is as good with two classes as with a thousand.
    """
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    rival = logits.scatter(1, y.unsqueeze(1), float("-inf")).amax(1)
    if target is not None:
        named = logits.gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
        rival = torch.where(target == ANY, rival, named)
    return own - rival


def _in_budget(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """Which of x_adv the threat model allows: bool [B]."""
    low, high = threat.bounds
    slack = SLACK * (high - low)
    flat = x_adv.flatten(1)
    boxed = (flat.amin(1) >= low - slack) & (flat.amax(1) <= high + slack)
    return boxed & (distance(x, x_adv, threat) <= threat.eps + SLACK * max(threat.eps, high - low))
