"""Whose turn it is among the attacks of a suite that take turns, and when the turns are over."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tasks.attacks import Suite
from tasks.attacks.config import End
from tasks.attacks.search import Search
from tasks.metrics.tally import Player
from tasks.metrics.views import Views

LATE = 0.02  # of the samples that stood: flips beyond the group's first attack that call for the spare ones
LAST_QUARTER = 0.75  # of the effort is over
BOTH = 400.0  # effort, at least, where turns follow several views, or slopes behind comparisons
STEEP, MANY = 2.0, 215.0  # behind comparisons: `again` is at least so much; passes a sample, at most
# Where slopes wind, a little or much: effort, at least and at most, of which AutoAttack takes some 10,000; what a first
# step brings of a descent where they wind much; and passes a sample, at least, where few stand.
LITTLE, MUCH, TWISTED, FEW = (200.0, 400.0), (300.0, 600.0), 0.7, 50.0
# Where slopes are lent or do not fit: effort without any, and passes a sample, at most; and what attacks that follow
# none get of all passes.
PATIENT, SPENT, OWED = 2000.0, 100.0, 0.67
DOGGED = 5.0  # then what is left is chance: `again` is at least so much


class Drawing:
    """Turns to the attack that lately earned the most flips per pass.

    It ends when each has had one and a further `again` times the effort up to the last flip has brought no other, so a
    model on which late turns still succeed is tried for longer; or at a limit. Effort is passes per sample that stands.
    The spare ones need no turn of their own as long as all but the first of the group gain next to nothing. Where
    slopes wind, successes are far apart: it goes on for as long again, within limits of its own. Where they are lent or
    do not fit, attacks that follow none go on alone, within limits of their own too.
    """

    def __init__(
        self,
        group: Sequence[Player],
        *,
        search: Search,
        suite: Suite,
        views: Views,
        spent: Callable[[], float],
        left: Callable[[], float],
    ) -> None:
        """spent(): passes so far, left(): those that the suite's end leaves for the cell."""
        self.search, self.suite, self.views, self.spent, self.left = search, suite, views, spent, left
        self.wound = search.winding and not views.doubtful and any(p.config.samples == "winding" for p in group)
        self.first, self.spare = self._parted(group)
        self.begun, self.stood = spent(), len(search.standing())
        self.effort = self.last_flip = 0.0
        self.beyond_first = 0  # flips of others than the group's first attack
        self.alone = False  # attacks that follow no slopes go on without the others
        self.capped = False  # a limit has ended it
        self.falls: list[tuple[float, Tensor]] = []  # the effort after each turn, and who fell in it, bool [N]

    def next(self) -> Player | None:
        """The attack whose turn it is; None where the turns are over."""
        if not len(self.search.standing()):
            return None
        open_ = [player for player in self.first + self.spare if player.open]
        passes = (self.spent() - self.begun) / len(self.search.x)
        each, spares = max(1, len(self.views.turns)), self.beyond_first >= LATE * self.stood
        due = [player for player in open_ if player.taken < each and (spares or player in self.first)]
        limit, enough = self._end().reached(passes, self.effort) or self.left() <= 0, self._enough(passes)
        self.alone = self.alone or (enough and self.views.doubtful and not due)
        if self.alone:
            open_, due, enough = [p for p in open_ if p.blind], [], self.effort >= PATIENT or passes >= SPENT
        if limit or not open_ or (enough and not due):
            self.capped = limit
            return None
        return max(self._able(open_, due), key=lambda player: player.rate)

    def note(self, player: Player, passes: float, fell: Tensor) -> None:
        """Note the turn that this attack has had: what it took, and who fell, bool [N]."""
        stood, flips = len(self.search.standing()) + int(fell.sum()), int(fell.sum())
        self.effort += passes / stood
        self.falls.append((self.effort, fell))
        self.last_flip = self.effort if flips else self.last_flip
        self.beyond_first += flips if player is not (self.first + self.spare)[0] else 0
        player.spent = not passes

    def fell_late(self) -> Tensor:
        """Who fell in the last quarter of the effort: bool [N]."""
        late = [fell for at, fell in self.falls if at > LAST_QUARTER * self.effort]
        return torch.stack(late).any(0) if late else torch.zeros_like(self.search.fooled)

    def _parted(self, group: Sequence[Player]) -> tuple[list[Player], list[Player]]:
        """Which have a turn each, and which are spare.

        Where slopes wind, those that are made for that, and those that follow none: slopes may as well be false.
        """
        drawn, spare, winding = (
            [p for p in group if p.config.samples == samples] for samples in ("drawn", "spare", "winding")
        )
        return (winding + [p for p in drawn if p.blind], []) if self.wound else (drawn, spare)

    def _enough(self, passes: float) -> bool:
        """Whether it was tried for long enough since the last success; passes: of a sample, so far."""
        effort, last_flip, again = self.effort, self.last_flip, self._end().again
        if self.wound:
            least, most = MUCH if (self.search.straight or 0.0) < TWISTED else LITTLE
            return effort >= min(max(2 * last_flip, least), most) and passes >= FEW
        enough = BOTH if self.views.turns or self.views.steep else 0.0
        return again is not None and effort >= enough and effort - last_flip >= again * last_flip

    def _able(self, open_: list[Player], due: list[Player]) -> list[Player]:
        """Whose turn it may be.

        Behind comparisons each has one turn before any has two; elsewhere an attack that earns keeps its turn. Where
        slopes are lent or do not fit, it is of those that follow none until they have had their share.
        """
        if due:
            if self.views.steep:
                return due
            return [p for p in open_ if p in self.first] if any(p in self.first for p in due) else open_
        blind = [player for player in open_ if player.blind]
        spent = sum(player.tally.passes for player in self.first + self.spare)
        owed = self.views.doubtful and sum(player.tally.passes for player in blind) < OWED * spent
        return blind if blind and owed else open_

    def _end(self) -> End:
        """When it ends.

        Where slopes are missing or do not fit, limits of passes that are made for descents give way: a norm's own to
        the suite's, any to the limit on the cell's whole where there is one. Behind comparisons, where successes are
        far apart, that limit alone counts too, or else a norm's own gives way to one that is made for them.
        """
        suite, end = self.suite, self.suite.end(self.search.threat)
        if self.views.steep and end.whole:
            return End(again=None, whole=end.whole)
        least = STEEP if self.views.steep else DOGGED if self.views.level or self.views.doubtful else 0.0
        if not least:
            return end
        again = None if end.again is None else max(end.again, least)
        passes = MANY if self.views.steep and end is not suite else suite.passes or end.passes
        return end.model_copy(update={"again": again, "passes": passes if end.passes and not end.whole else None})
