"""Whose slopes the attacks follow: the model's own, or those of a view of it where they are missing or tell not all."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.attacks.forks import DECISIONS, GLANCE, forks
from tasks.attacks.geometry import farthest, moved
from tasks.attacks.labels import behind_labels
from tasks.attacks.search import Search, margins, sloped
from tasks.attacks.straight_through import StraightThrough, decided, opened, stand_in
from tasks.metrics.isolation import PROBE, Coarse, Meter

LEVEL = 0.1  # of the steps had no slope to follow
LOOKS = DECISIONS + 2  # passes of a sample, at most, to find the ways that a model could go
WAYS, FORKED = 8, 1.5  # that are followed at most; what a step takes there, where one by the model's own slopes takes 1
BETTER, CLEARLY = 0.15, 0.02  # of the samples have a margin so much lower than the model's own slopes led to
CHOICE = 11  # passes of a sample, at most, to find which slopes to lend
PART, MISFIT = 0.3, 0.3  # of the radius: a step whose change tells whether slopes fit; how far from it they may be
DOUBTS = 15  # passes of a sample, at most, to see whether slopes fit
MEANT = 3  # passes a sample, at least, to look at what stands behind answers that are labels, and go on from there


@dataclass(frozen=True)
class View:
    """A model of the same answers whose slopes are followed."""

    model: nn.Module
    searched: nn.Module  # the same, as the search asks it: coarsely, where that pays
    slopes: Tensor | None = None  # of the margins at the samples, [N, ...], where they are known
    dear: float = 1.0  # a step's passes, in those of the model's own


class Views:
    """The view that a search follows at present. The answers stay the model's."""

    def __init__(self, search: Search, meter: Meter) -> None:
        self.search, self.meter = search, meter
        self.now = self.own = View(meter, search.model, search.slopes)
        self.turns: tuple[View, ...] = ()  # which turns follow one after the other, where none finds all
        self.sought = False  # slopes were looked for that the model does not have
        self.lent = False  # those that are followed, if any, are not the model's nor those of what it ranks
        self.false = False  # those that are followed do not fit the answers
        self.compared = False  # it was asked whether the model compares numbers, so that its slopes do not tell all
        self.behind: StraightThrough | None = None  # what opens these comparisons, where it can be
        self.steep = False  # slopes behind them lead further

    @property
    def doubtful(self) -> bool:
        """Whether the slopes that are followed need not lead to what fools."""
        return self.lent or self.false

    @property
    def level(self) -> bool:
        """Whether the steps find no slope to follow."""
        return bool(self.search.level > LEVEL * self.search.steps)

    def lend(self, left: float) -> bool:
        """Follow slopes through what passes none on, for at most `left` passes; whether there are any.

        Where the answers are labels alone, what stands behind them takes their place, if it is known.
        """
        search, meter = self.search, self.meter
        some = search.standing()[: int(min(PROBE, max(left, 0) / CHOICE))]
        if not len(some):
            return False
        self.sought, x = True, search.x[some]
        once = meter.draws == 1 and left > MEANT * len(search.x)
        labels = behind_labels(meter, x[:GLANCE]) if once else None
        asked = labels or meter
        view = stand_in(asked, x, search.y[some])
        self.lent = labels is None or view is not labels
        self._follow(self._view(view))
        search.aimed.zero_()
        if labels is not None:
            self.compared = True
            search.begin_again(view)
        return self.now.model is not meter

    def decides(self, rows: Tensor) -> bool:
        """Ask whether the model compares numbers, or makes choices, with these samples [<= GLANCE]."""
        self.compared = True
        self.behind, met = decided(self.meter, self.search.x[rows])
        return met

    def part(self, rows: Tensor, left: float) -> Iterator[Tensor]:
        """Follow, one after the other, the ways that the model could go with these samples [R], if `left` passes allow.

        Gives those of them, [<= R], that do not go it by themselves. Turns follow all the ways, and the model's own.
        """
        asked = self.meter.draws == 1 and left > LOOKS * len(rows) > 0
        ways = forks(self.meter, self.search.x[rows])[:WAYS] if asked else []
        self.own, views = self.now, [self._view(fork, dear=FORKED) for fork, _ in ways]
        for view, (_, elsewhere) in zip(views, ways, strict=True):
            self._follow(view)
            yield rows[elsewhere]
        self._follow(self.own)
        if views:
            self.turns = (self.own, *views)

    def steepen(self) -> bool:
        """Follow slopes behind comparisons and choices, for now; whether there are any."""
        if self.behind is None:
            return False
        self.own = self.now
        self._follow(self._view(self.behind))
        self.turns = (self.now, self.own) if self.behind.chosen else ()
        return True

    def judge(self, rows: Tensor, before: Tensor) -> None:
        """Go on with what steepen() found, if it lowered the margins of these samples from what they were, [N] each.

        Through choices it leads where the model's own slopes do not and the other way round: turns follow both.
        """
        lower = before - self.search.margin > CLEARLY * before.abs()
        self.steep = bool(self.turns) or bool(lower[rows].float().mean() > BETTER)
        if not self.steep:
            self._follow(self.own)

    def doubt(self, rows: Tensor, left: float) -> bool:
        """See whether the slopes fit the answers at these samples [R]; whether others do, and are followed from now on.

        Where none do, attacks that follow none are what is left. For at most `left` passes.
        """
        tells = self.meter.draws == 1 and not self.lent and self.search.threat.norm in ("linf", "l2", "l1")
        if not tells or not len(rows) or left < DOUBTS * len(rows) or self._misfit(self.meter, rows) <= MISFIT:
            return False
        least, view = min(((self._misfit(view, rows), view) for view in opened(self.meter)), key=lambda each: each[0])
        self.false = least > MISFIT
        if not self.false:
            self._follow(self._view(view))
            self.search.aimed.zero_()
        return not self.false

    def _misfit(self, model: nn.Module, rows: Tensor) -> float:
        """How far the changes over a step are from what this model's slopes promise: 0 to 1, where nothing fits."""
        search, known = self.search, self.own.slopes if model is self.meter else None
        x, y = search.x[rows], search.y[rows]
        try:
            grad = sloped(model, x, y)[1] if known is None else known[rows]
        except Exception:  # the stand-in changed a type that the model needs
            return 1.0
        step = PART * farthest(-grad, search.threat, search.within(rows))
        promised = (grad * step).flatten(1).sum(1)
        x_adv = moved(x, step, search.threat)
        with torch.no_grad():
            logits = self.meter(x_adv)
        search.see(rows, x_adv, logits, inside=True)
        kept = margins(logits.float(), y) - margins(search.clean[rows], y)
        apart, both = (kept - promised).abs().sum(), (kept.abs() + promised.abs()).sum()
        return float(apart / both) if both > 0 else 1.0

    def turn(self, number: int) -> None:
        """Follow whichever it is at this turn."""
        if self.turns:
            self._follow(self.turns[number % len(self.turns)])

    def _view(self, model: nn.Module, *, dear: float = 1.0) -> View:
        coarse = isinstance(self.now.searched, Coarse)
        return View(model, Coarse(model, channels_last=self.meter.channels_last) if coarse else model, dear=dear)

    def _follow(self, view: View) -> None:
        self.now, self.search.slopes = view, view.slopes
