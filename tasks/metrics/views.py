"""Whose slopes the attacks follow: the model's own, or those of a view of it where they are missing or tell not all."""

from dataclasses import dataclass

from torch import Tensor, nn

from tasks.attacks.labels import behind_labels
from tasks.attacks.search import Search
from tasks.attacks.straight_through import stand_in, steepened
from tasks.metrics.isolation import PROBE, Coarse, Meter

LEVEL = 0.1  # of the steps had no slope to follow
GLANCE = 8  # samples that tell whether a model compares numbers, or what stands behind its answers
BETTER, CLEARLY = 0.15, 0.02  # of the samples have a margin so much lower than the model's own slopes led to
CHOICE = 11  # passes of a sample, at most, to find which slopes to lend
MEANT = 3  # passes a sample, at least, to look at what stands behind answers that are labels, and go on from there


@dataclass(frozen=True)
class View:
    """A model of the same answers whose slopes are followed."""

    model: nn.Module
    searched: nn.Module  # the same, as the search asks it: coarsely, where that pays
    slopes: Tensor | None  # of the margins at the samples, [N, ...], where they are known


class Views:
    """The view that a search follows at present. The answers stay the model's."""

    def __init__(self, search: Search, meter: Meter) -> None:
        self.search, self.meter = search, meter
        self.now = self.own = View(meter, search.model, search.slopes)
        self.both: tuple[View, ...] = ()  # which turns follow one after the other, where neither finds all
        self.sought = False  # slopes were looked for that the model does not have
        self.lent = False  # those that are followed, if any, are not the model's nor those of what it ranks
        self.compared = False  # it was asked whether the model compares numbers, so that its slopes do not tell all
        self.steep = False  # it does, and slopes behind that lead further

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
        self._follow(self._of(view))
        search.aimed.zero_()
        if labels is not None:
            self.compared = True
            search.begin_again(view)
        return self.now.model is not meter

    def steepen(self, rows: Tensor) -> bool:
        """Follow slopes behind comparisons and choices, for now; whether these samples [<= GLANCE] meet any."""
        self.compared, view = True, steepened(self.meter, self.search.x[rows])
        if view is None:
            return False
        self.own = self.now
        self._follow(self._of(view))
        self.both = (self.now, self.own) if view.chosen else ()
        return True

    def judge(self, rows: Tensor, before: Tensor) -> None:
        """Go on with what steepen() found, if it lowered the margins of these samples from what they were, [N] each.

        Through choices it leads where the model's own slopes do not and the other way round: turns follow both.
        """
        lower = before - self.search.margin > CLEARLY * before.abs()
        self.steep = bool(self.both) or bool(lower[rows].float().mean() > BETTER)
        if not self.steep:
            self._follow(self.own)

    def turn(self, number: int) -> None:
        """Follow whichever of the two it is at this turn."""
        if self.both:
            self._follow(self.both[number % len(self.both)])

    def _of(self, model: nn.Module) -> View:
        return View(model, Coarse(model) if isinstance(self.now.searched, Coarse) else model, None)

    def _follow(self, view: View) -> None:
        self.now, self.search.slopes = view, view.slopes
