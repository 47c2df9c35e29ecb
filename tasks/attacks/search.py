"""The engine's ledger: what is known of each sample while it is being attacked.

Shapes: N samples, R rows, C classes. A row is one attempt: a sample, a target class and a start.
"""

import torch
from torch import Generator, Tensor, nn

from tasks.attacks.geometry import SLACK, TINY, Limits, allowed, distance, limits, moved
from tasks.attacks.threat import ThreatModel

ANY = -1  # a target: whichever other class is nearest
OPEN = -1  # an answer that has not been given
CLOSE_CALL = 1e-6  # of the logits that are compared: a success by less may not survive another batch's rounding
WINDING = 0.82  # of a descent's gain: what the first step brings at least, where slopes hold as far as the radius
STEADY = 0.88  # the same, where they hold so well that what is left is to find the way between creases
DOUBT = 1 / 64  # of the logits that are compared: a margin below this is too small to be left to bfloat16


class Search:
    """Samples under attack. `nearest` holds the input with the smallest margin met so far, `margin` that margin.

    Once a sample is fooled, `nearest` is an input within the budget that fools it.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: ThreatModel,
        rng: Generator,
        clean: Tensor | None = None,
        slopes: Tensor | None = None,
        exact: nn.Module | None = None,
        straight: float | None = None,
    ) -> None:
        """x [N, ...] within the bounds, y [N], clean: the logits [N, C] of x, asked for here where not given.

        slopes: of the margins at x, [N, ...], where they are known. Where the model computes coarsely, `exact` judges
        what is close. straight: of what a first descent gained, what its first step brought, where one has been made.
        """
        self.model, self.x, self.y, self.threat, self.rng = model, x, y, threat, rng
        self.exact, self.slopes = exact, slopes
        self.low, self.high = limits(x, threat)
        self.box = limits(x, threat.model_copy(update={"norm": "unbounded"}))  # without the radius
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.settled = torch.full_like(y, OPEN)  # the class at nearest, where whoever judges in the end has given it
        self.margin = torch.full((len(x),), float("inf"), device=x.device, dtype=torch.float32)
        self.nearest = x.clone()
        self.broken = False  # met logits that are not finite
        self.steps, self.level = 0, torch.zeros((), dtype=torch.long, device=x.device)  # made by rows; without a slope
        self.straight = straight
        self.tries: dict[str, Tensor] = {}  # how often each arm has tried each sample, [N]
        self.clean = (self._logits(model, x) if clean is None else clean).float()  # [N, C] at x
        self.logits = self.clean.clone()  # [N, C] at nearest
        self.foretold = torch.full_like(self.clean, float("nan"))  # of the margins, what the slopes at x leave of them
        self.aimed = torch.zeros_like(self.clean, dtype=torch.bool)  # which pairs of sample and class have been tried
        self.see(torch.arange(len(x), device=x.device), x, self.clean, inside=True)

    @property
    def batch(self) -> int:
        """How many rows pass through the model at once."""
        return at_once(self.x)

    @property
    def winding(self) -> bool:
        """Whether slopes were seen not to hold as far as the radius."""
        return self.straight is not None and self.straight < WINDING

    @property
    def steady(self) -> bool:
        """Whether the slopes that are followed are the model's own, and were seen to hold nearly that far."""
        return self.slopes is not None and self.straight is not None and self.straight >= STEADY

    @torch.no_grad()
    def begin_again(self, model: nn.Module) -> None:
        """Go on with a model of the same answers and other logits, which also judges them; what fell stays as it is."""
        self.model, self.clean, self.exact = model, self._logits(model, self.x), None if self.exact is None else model
        self.logits, self.slopes, known, standing = self.clean.clone(), None, self.nearest.clone(), ~self.fooled
        self.steps, self.level, self.straight = 0, torch.zeros_like(self.level), None
        self.nearest[standing], self.margin[standing] = self.x[standing], float("inf")
        self.foretold.fill_(float("nan"))
        self.aimed.zero_()
        self.see(torch.arange(len(self.x), device=self.x.device), self.x, self.clean, inside=True)
        elsewhere = (standing & (known != self.x).flatten(1).any(1)).nonzero().flatten()  # as where a start is warm
        self.look(elsewhere, known[elsewhere], inside=True)

    def standing(self) -> Tensor:
        """The samples that nothing has fooled yet, nearest to falling first: [<= N]."""
        rows = (~self.fooled).nonzero().flatten()
        return rows[self.margin[rows].argsort(stable=True)]

    def within(self, rows: Tensor) -> Limits:
        """The limits on delta for these samples."""
        return self.low[rows], self.high[rows]

    def tried(self, arm: str, rows: Tensor) -> Tensor:
        """How often this arm has tried each of these samples before; counts this time: int64 [R]."""
        counts = self.tries.setdefault(arm, torch.zeros_like(self.y))
        before = counts[rows]
        counts[rows] += 1
        return before

    def see(
        self, rows: Tensor, x_adv: Tensor, logits: Tensor, *, inside: bool = False, margin: Tensor | None = None
    ) -> None:
        """Take note of what the model says of x_adv [R, ...], made from the samples in `rows` [R].

        `inside` promises that x_adv was projected; else what leaves ball or box is passed over. margin [R]: to the
        nearest class, where it is known.
        """
        logits = logits.detach().float()
        margin = _lead(logits, self.y[rows], None if margin is None else margin.detach())
        self.broken = self.broken or not bool(margin.sum().isfinite())
        chosen = ((margin < self.margin[rows]) & ~self.fooled[rows]).nonzero().flatten()
        if not len(chosen):
            return
        at, margin, logits, candidate = rows[chosen], margin[chosen], logits[chosen], x_adv.detach()[chosen].to(self.x)
        if not inside:
            kept = _in_budget(self.x[at], candidate, self.threat).nonzero().flatten()
            at, margin, logits, candidate = (part[kept] for part in (at, margin, logits, candidate))
        if self.exact is not None and len(at):
            margin, logits = self._judged_again(at, candidate, margin, logits)
        best = self.margin.scatter_reduce(0, at, margin, "amin")
        first = ((margin == best[at]) & (margin < self.margin[at])).nonzero().flatten()  # of a sample's rows, the best
        place = torch.arange(len(first), device=first.device)  # of those that tie one: an assignment keeps no order
        first = first[place == torch.full_like(self.y, -1).scatter_reduce(0, at[first], place, "amax")[at[first]]]
        at, margin, logits = at[first], margin[first], logits[first]
        self.margin[at], self.nearest[at], self.logits[at] = margin, candidate[first], logits
        self.fooled[at[margin < -CLOSE_CALL * compared(logits, self.y[at])]] = True

    @torch.no_grad()
    def _judged_again(self, rows: Tensor, x_adv: Tensor, margin: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Margin and logits, in full precision where the margin is small."""
        assert self.exact is not None
        close = (margin < DOUBT * compared(logits, self.y[rows])).nonzero().flatten()
        if not len(close):
            return margin, logits
        again = self._logits(self.exact, x_adv[close])
        return margin.index_put((close,), _lead(again, self.y[rows[close]])), logits.index_put((close,), again)

    @torch.no_grad()
    def _logits(self, model: nn.Module, points: Tensor) -> Tensor:
        return torch.cat([model(part) for part in points.split(self.batch)]).float()

    @torch.no_grad()
    def look(self, rows: Tensor, x_adv: Tensor, *, inside: bool = False) -> None:
        """Pass x_adv [R, ...] forward and take note, as see() does."""
        for part, points in zip(rows.split(self.batch), x_adv.split(self.batch), strict=True):
            self.see(part, points, self.model(points), inside=inside)

    @torch.no_grad()
    def ask(self, rows: Tensor, delta: Tensor, *, inside: bool = False) -> Tensor:
        """The margins [R] of the samples moved by delta [R, ...]; takes note, as see() does."""
        found = []
        for part, d in zip(rows.split(self.batch), delta.split(self.batch), strict=True):
            x_adv = moved(self.x[part], d, self.threat)
            logits = self.model(x_adv)
            margin = margins(logits.float(), self.y[part])
            self.see(part, x_adv, logits, inside=inside, margin=margin)
            found.append(margin)
        return torch.cat(found)


def at_once(x: Tensor) -> int:
    """How many of the samples in x [N, ...] pass through a model at once: many small ones, fewer large ones."""
    per_pass = 2**18 if x.device.type == "cpu" else 2**22
    return max(64, min(4096, per_pass // max(x[0].numel(), 1)))


def sloped(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and the slopes of the margins [N, ...] at x, for a pass forward and one back."""
    found = []
    for points, own in zip(x.split(at_once(x)), y.split(at_once(x)), strict=True):
        points = points.detach().clone().requires_grad_()
        logits = model(points)
        found.append((logits.detach(), slope(margins(logits.float(), own).sum(), points)))
    logits, slopes = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, slopes


def slope(value: Tensor, x_adv: Tensor, *, again: bool = False) -> Tensor:
    """The gradient; zero where the model passes none on, as behind a detached or an integer operation.

    With `again` the graph is kept for another call.
    """
    if not value.requires_grad:
        return torch.zeros_like(x_adv)
    try:
        (grad,) = torch.autograd.grad(value, x_adv, allow_unused=True, retain_graph=again)
    except RuntimeError as failure:
        if "derivative for" not in str(failure):  # an operation for which torch knows no derivative has no slope
            raise
        return torch.zeros_like(x_adv)
    return torch.zeros_like(x_adv) if grad is None else grad.nan_to_num(0.0, 0.0, 0.0)


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


def compared(logits: Tensor, y: Tensor) -> Tensor:
    """How large the logits are that a margin compares, y's and the highest other one: [B].

    Not those of classes far below, which a model may have set to any number.
    """
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    return torch.maximum(own.abs(), logits.scatter(1, y.unsqueeze(1), float("-inf")).amax(1).abs())


def soft_margins(logits: Tensor, y: Tensor, target: Tensor, *, soft: float) -> Tensor:
    """As margins(), but to ANY class every other one counts, the higher its logit the more: [B].

    A smooth maximum, the logarithm of a sum of powers, whose temperature is the highest of the other logits less their
    mean, over `soft`: it is the same whatever the logits are multiplied with.
    """
    if logits.shape[1] < 3:
        return margins(logits, y, target)
    others, known = logits.scatter(1, y.unsqueeze(1), float("-inf")), logits.detach()
    mean = known.scatter(1, y.unsqueeze(1), 0.0).sum(1, keepdim=True) / (logits.shape[1] - 1)
    spread = (others.detach().amax(1, keepdim=True) - mean).clamp_min(TINY)
    smooth = (others * (soft / spread)).logsumexp(1) * (spread.squeeze(1) / soft)
    lead = logits.gather(1, y.unsqueeze(1)).squeeze(1) - smooth
    return torch.where(target == ANY, lead, margins(logits, y, target))


def _lead(logits: Tensor, y: Tensor, margin: Tensor | None = None) -> Tensor:
    """The margin [B], unless it is given; a hair below zero where logits tie and the answer is another class.

    A saturated output ties exactly, and whoever asks the model gets that answer.
    """
    margin = margins(logits, y) if margin is None else margin
    tied = margin == 0
    if not tied.any():
        return margin
    lost = tied & (logits.argmax(1) != y)
    hair = torch.finfo(margin.dtype).tiny + 2 * CLOSE_CALL * compared(logits, y)
    return torch.where(lost, -hair, margin)


def _in_budget(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """Which of x_adv the threat model allows: bool [B]."""
    low, high = threat.bounds
    slack = SLACK * (high - low)
    flat = x_adv.flatten(1)
    boxed = (flat.amin(1) >= low - slack) & (flat.amax(1) <= high + slack)
    return boxed & (distance(x, x_adv, threat) <= allowed(x, x_adv, threat))
