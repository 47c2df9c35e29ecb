"""Which attack gets which samples: the one place that spends passes."""

import itertools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite
from tasks.attacks.config import End
from tasks.attacks.labels import behind_labels
from tasks.attacks.search import OPEN, Search
from tasks.attacks.straight_through import stand_in, steepened
from tasks.metrics.child import Failed, Stopped
from tasks.metrics.draws import generator
from tasks.metrics.foreign import ATTACK_SECONDS, Misbehaved, attack_function
from tasks.metrics.isolation import PROBE, VOTES, Coarse, Meter
from tasks.metrics.tally import Tally
from tasks.redact import told

LATE = 0.02  # of the samples that stood: flips beyond the group's first attack that call for the spare ones
LAST_QUARTER = 0.75  # of the effort is over
FAR = 0.2  # of a turn: drawn from all that stand, whatever their margin
LEVEL = 0.1  # of the steps had no slope to follow
ON = 0.4  # of the rows go on after a cut: the best third, and those that came there first
GLANCE = 8  # samples that tell whether a model compares numbers, or what stands behind its answers
BETTER, CLEARLY = 0.15, 0.02  # of the samples have a margin so much lower than the model's own slopes led to
BOTH = 400.0  # effort, at least, where turns follow two views
CHOICE = 11  # passes of a sample, at most, to find which slopes to lend
MEANT = 3  # passes a sample, at least, to look at what stands behind answers that are labels, and go on from there
# Where slopes wind: effort, of which AutoAttack takes some 10,000, and passes a sample, at least, where few stand.
LEAST, MOST, FEW = 300.0, 600.0, 50.0
# Where slopes are lent: effort without any, and passes a sample, at most; and of all passes, what attacks without get.
PATIENT, SPENT, OWED = 2000.0, 100.0, 0.67
DOGGED, BLIND = 5.0, 0.5  # then what is left is chance: `again` is at least so much, and `passes` such a share

View = tuple[nn.Module, nn.Module, Tensor | None]


class Engine:
    """The suite at work on one cell: at most BLOCK samples, whose result depends on nothing outside it.

    begun: how many passes the meter had counted where the limit on the cell's whole begins. In the suite's limits one
    answer is one pass, also of a model that answers at random, whose answer is the mean of several draws.
    """

    def __init__(
        self,
        search: Search,
        suite: Suite,
        meter: Meter,
        *,
        seed: int,
        cell: int,
        begun: int,
        tell: Callable[[str, int], None] | None = None,
        attack_seconds: float = ATTACK_SECONDS,
    ) -> None:
        self.tell, self.attack_seconds, self.begun = tell, attack_seconds, begun / meter.draws
        self.search, self.suite, self.meter, self.seed, self.cell = search, suite, meter, seed, cell
        self.searched = search.model
        self.model: nn.Module = meter  # whose slopes are followed
        self.others = search.clean.shape[1] - 1  # classes beside a sample's own
        self.lent = False  # slopes were looked for that the model does not have
        self.compared = False  # it was asked whether the model compares numbers, so that its slopes do not tell all
        self.steep = False  # it does, and slopes behind that lead further
        self.views: tuple[View | None, ...] = (None,)  # which the turns follow one after the other
        none = torch.zeros_like(search.fooled)
        self.late, self.capped = none.clone(), False  # fell in the last quarter of the effort; the cap ended it
        self.tallies = [Tally(row, none.clone(), none.clone()) for row in suite.under(search.threat)]

    def run(self) -> list[Tally]:
        """Every attack of the suite, in its order; what is drawn takes turns with its neighbours."""
        for together, group in itertools.groupby(self.tallies, key=lambda tally: tally.config.in_turns):
            if together:
                self._draw(list(group))
            else:
                for tally in group:
                    self._pull(tally, self._given(tally.config))
                    if self._level() and not self.lent and self._lend():
                        self._pull(tally, self._given(tally.config)[: self._affordable(tally)])
                    elif self.search.steps and not self.compared:
                        self._steepen(tally)
        return self.tallies

    def _level(self) -> bool:
        """Whether the steps find no slope to follow."""
        return bool(self.search.level > LEVEL * self.search.steps)

    def _lend(self) -> bool:
        """Whether the attacks follow slopes through what passes none on from here on; the answers stay the model's.

        Where those are labels alone, what stands behind them takes their place, if it is known.
        """
        some = self.search.standing()[: int(min(PROBE, max(self._left(), 0) / CHOICE))]
        if not len(some):
            return False
        self.lent = True
        x = self.search.x[some]
        once = self.meter.draws == 1 and self._left() > MEANT * len(self.search.x)
        labels = behind_labels(self.meter, x[:GLANCE]) if once else None
        self._follow(labels or stand_in(self.meter, x, self.search.y[some]))
        self.search.aimed.zero_()
        if labels is not None:  # which has slopes of its own
            self.lent, self.compared = False, True
            self.search.begin_again(self.model)
        return self.model is not self.meter

    def _steepen(self, tally: Tally) -> None:
        """Where the model compares numbers, follow slopes behind that from here on, if the attack gets further so.

        Where it makes choices, slopes through them and its own are followed by turns.
        """
        own, rows = self._view(), self._given(tally.config)
        self.compared, view = True, steepened(self.meter, self.search.x[rows[: int(min(GLANCE, max(self._left(), 0)))]])
        if view is None:
            return
        self._follow(view)
        before, some = self.search.margin.clone(), rows[: min(PROBE, self._affordable(tally))]
        self._pull(tally, some)
        lower = before - self.search.margin > CLEARLY * before.abs()
        self.steep = view.chosen or bool(lower[some].float().mean() > BETTER)
        if view.chosen:  # each of the two finds what the other does not
            self.views = self._view(), own
        if not self.steep:
            self.model, self.searched, self.search.slopes = own
        elif not any(other.config.in_turns for other in self.tallies):  # they go on from what is known
            self._pull(tally, self._given(tally.config)[: self._affordable(tally)])

    def _view(self) -> View:
        """The model whose slopes are followed, as it is searched, and its slopes at the samples."""
        return self.model, self.searched, self.search.slopes

    def _follow(self, view: nn.Module) -> None:
        """Attacks follow this view's slopes from here on; the answers stay the model's."""
        self.model = view
        self.searched = Coarse(view) if isinstance(self.searched, Coarse) else view
        self.search.slopes = None  # those of the model itself

    def _given(self, config: AttackConfig) -> Tensor:
        """The samples that an attack which takes no turns is given."""
        standing, left = self.search.standing(), self._left()
        if config.samples == "all":
            return standing
        count, each = (
            max(config.fewest, round(config.share * len(self.search.x))),
            _each(config, self.others, mean=True),
        )
        return standing[: min(count, int(max(left, 0) / each)) if each and left < math.inf else count]

    def _draw(self, group: list[Tally]) -> None:
        """Turns to the attack that lately earned the most flips per pass.

        Ends when each has had one and a further `again` times the effort up to the last flip has brought no other, so
        a model on which late turns still succeed is tried for longer; or at a limit. Effort is passes per sample that
        stands. The spare ones need no turn of their own as long as all but the first of the group gain next to nothing.
        Where slopes wind, successes are far apart: it goes on for as long again, within limits of its own. Where they
        are lent, attacks that follow none go on alone, within limits of their own too.
        """
        effort = last_flip = 0.0
        begun, stood, late, alone = self._spent(), len(self.search.standing()), 0, False
        first, spare = self._parted(group)
        group = first + spare
        falls: list[tuple[float, Tensor]] = []
        while standing := len(self.search.standing()):
            end, open_ = self._end(), [t for t in group if t.error is None and not t.spent]
            passes = (self._spent() - begun) / len(self.search.x)
            most = end.reached(passes, effort) or self._left() <= 0
            spares = late >= LATE * stood
            due = [t for t in open_ if t.taken < len(self.views) and (spares or t in first)]
            if self._wound(group):
                enough = effort >= min(max(2 * last_flip, LEAST), MOST) and passes >= FEW
            else:
                least = BOTH if len(self.views) > 1 else 0.0
                enough = end.again is not None and effort >= least and effort - last_flip >= end.again * last_flip
            if alone := alone or (enough and self.lent and not due):
                open_, due, enough = [t for t in open_ if _blind(t)], [], effort >= PATIENT or passes >= SPENT
            if not open_ or most or (not due and enough):
                self.capped |= most
                break
            able = self._able(open_, due, first=first, group=group)
            tally, before, fooled = max(able, key=lambda t: t.rate), self._spent(), self.search.fooled.clone()
            gained = self._turn(tally)
            effort += (self._spent() - before) / standing
            falls.append((effort, self.search.fooled & ~fooled))
            last_flip = effort if gained else last_flip
            late += gained if tally is not group[0] else 0
            tally.spent = self._spent() == before
        for at, fell in falls:
            if at > LAST_QUARTER * effort:
                self.late |= fell

    def _able(self, open_: list[Tally], due: list[Tally], *, first: list[Tally], group: list[Tally]) -> list[Tally]:
        """Whose turn it may be.

        Behind comparisons each has one turn before any has two; elsewhere an attack that earns keeps its turn. Where
        slopes are lent, it is of those that follow none until they have had their share.
        """
        if due:
            if self.steep:
                return due
            return [tally for tally in open_ if tally in first] if any(tally in first for tally in due) else open_
        blind = [tally for tally in open_ if _blind(tally)]
        spent = sum(tally.passes for tally in group)
        owed = self.lent and sum(tally.passes for tally in blind) < OWED * spent
        return blind if blind and owed else open_

    def _parted(self, group: list[Tally]) -> tuple[list[Tally], list[Tally]]:
        """Which have a turn each, and which are spare.

        Where slopes wind, those that are made for that, and those that follow none: slopes may as well be false.
        """
        drawn, spare, winding = (
            [t for t in group if t.config.samples == samples] for samples in ("drawn", "spare", "winding")
        )
        if not self._wound(group):
            return drawn, spare
        return winding + [t for t in drawn if _blind(t)], []

    def _wound(self, group: list[Tally]) -> bool:
        """Whether slopes wind, and some of the group are made for that."""
        return self.search.winding and not self.lent and any(t.config.samples == "winding" for t in group)

    def _turn(self, tally: Tally) -> int:
        """A few samples to this attack: the nearest to falling that it has tried the least, and some at random."""
        rows, config = self.search.standing(), tally.config
        view = self.views[sum(other.taken for other in self.tallies) % len(self.views)]
        tally.taken += 1
        if view is not None:
            self.model, self.searched, self.search.slopes = view
        if tally.turns is None:
            tally.turns, tally.share = torch.zeros_like(self.search.y), config.share
            tally.rng = generator(rows.device, self.seed, config.resolved(), self.search.threat.digest, self.cell)
        affordable = self._affordable(tally)
        self.capped |= not affordable
        count = min(max(config.fewest, round(tally.share * len(rows))), len(rows), affordable)
        margin = self.search.margin[rows]
        place, turns = margin / margin.median().clamp_min(1e-12), tally.turns[rows]
        place = place + turns if config.near is None else (place + config.near) * (1 + turns)
        drawn = torch.rand(len(rows), generator=tally.rng, device=rows.device, dtype=torch.float32)
        some = drawn.argsort()[: round(FAR * count)]
        place[some] = -1.0
        chosen = rows[place.argsort(stable=True)[:count]]
        tally.turns[chosen] += 1
        gained = self._pull(tally, chosen)
        tally.share = min(config.growth * tally.share, 1.0) if gained else config.share
        return gained

    def _pull(self, tally: Tally, rows: Tensor) -> int:
        """Let the attack try these samples. How many fell."""
        search, config = self.search, tally.config
        rows = rows[~search.fooled[rows]]
        tally.error = tally.error or self.meter.stopped.get(config.name)
        if not len(rows) or tally.error is not None:
            return 0
        before, passes, started = search.fooled.clone(), self._passes(), time.perf_counter()
        tally.rng = tally.rng or generator(rows.device, self.seed, config.resolved(), search.threat.digest, self.cell)
        search.rng, arm = tally.rng, config.arm()
        # A model that calls for these has slopes that bfloat16 cannot follow to the end.
        search.model = (
            search.exact if search.exact is not None and config.samples in ("spare", "winding") else self.searched
        )
        if self.tell is not None:
            self.tell(config.name, int((~search.fooled).sum()))
        try:
            if arm is not None:
                arm(search, rows)
            else:
                tally.silent = attack_function(
                    search, rows, config, model=self.model, meter=self.meter, seconds=self.attack_seconds
                )
            if search.broken:
                raise Misbehaved("met logits that are not finite")
        except (Misbehaved, Failed) as failure:
            tally.error = str(failure)
            if isinstance(failure, Stopped):
                self.meter.stopped[config.name] = tally.error
        except Exception as failure:  # a user's attack may raise anything; the number is void, the run goes on
            tally.error = f"raised {told(failure)}"
        flips = search.fooled & ~before
        tally.tried[rows] = True
        tally.fooled |= flips
        forward, backward = self._passes()
        tally.forward_samples += forward - passes[0]
        tally.backward_samples += backward - passes[1]
        tally.seconds += time.perf_counter() - started
        gained, spent = float(flips.sum()), float(forward - passes[0] + backward - passes[1])
        tally.each = max(tally.each, spent / self.meter.draws / len(rows))
        earlier = tally.lately[1] / 2 if gained else tally.lately[1]  # what brought nothing is not forgotten
        tally.lately = tally.lately[0] / 2 + gained, earlier + spent
        return int(flips.sum())

    def _left(self) -> float:
        """Passes that the suite's end leaves for this cell; what fell in the search is judged once more at its end."""
        whole, search = self.suite.end(self.search.threat).whole or math.inf, self.search
        fell = search.fooled & (search.clean.argmax(1) == search.y) & (search.settled == OPEN)
        again = VOTES if self.meter.draws > 1 else 1
        return whole * len(self.search.x) - (self._spent() - self.begun) - again * int(fell.sum())

    def _affordable(self, tally: Tally) -> int:
        """How many samples this attack can be given, by the most that one can take it, or else took any other."""
        left = self._left()
        if left == math.inf:
            return len(self.search.x)
        each = max(tally.each, _each(tally.config, self.others)) or max(other.each for other in self.tallies)
        return int(left / each) if each else len(self.search.x)

    def _end(self) -> End:
        """When the drawing ends.

        Where steps find no slope, limits of passes that are made for descents give way: a norm's own to a share of the
        suite's, any to the limit on the cell's whole where there is one. Behind comparisons and choices, where
        successes are far apart, that limit alone counts too.
        """
        suite, end = self.suite, self.suite.end(self.search.threat)
        if self.steep and end.whole:
            return End(again=None, whole=end.whole)
        if not self._level() and not self.lent:
            return end
        again = None if end.again is None else max(end.again, DOGGED)
        passes = BLIND * suite.passes if end is not suite and end.passes and suite.passes else end.passes
        passes = None if end.whole else passes
        return end.model_copy(update={"again": again, "passes": passes})

    def _spent(self) -> float:
        """Answers so far, forward and backward."""
        return sum(self._passes()) / self.meter.draws

    def _passes(self) -> tuple[int, int]:
        return self.meter.forward_samples, self.meter.backward_samples


def _blind(tally: Tally) -> bool:
    """Whether the attack follows no slopes."""
    return "queries" in tally.config.resolved()["params"]


def _each(config: AttackConfig, others: int, *, mean: bool = False) -> float:
    """Passes that the attack takes for a sample, as far as its parameters tell: each row's last look counted too.

    At most, or in the mean, where most rows end at the cut. others: how many classes there are beside a sample's own.
    """
    known = config.resolved()["params"]
    steps, rows = known.get("steps") or 0, math.prod(math.ceil(known.get(of, 1) or others) for of in ("pairs", "count"))
    cut = known.get("cut") or steps
    made = cut + ON * (steps - cut) if mean else steps
    starts = len(str(known.get("starts", "one")).split())
    looks = 1 + known["slopes"] if known.get("slopes") else 0
    looked = 2 if steps > 1 and not mean else 1  # at the last point, and where the first step was foretold to fool
    return float(known.get("queries", starts * rows * (2 * made + looked) + looks if steps else 0))
