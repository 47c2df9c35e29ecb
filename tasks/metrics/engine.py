"""The suite at work on a cell: the one place that spends passes."""

import itertools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.attacks import AttackConfig, Suite
from tasks.attacks.forks import GLANCE
from tasks.attacks.search import OPEN, Search
from tasks.metrics.child import Failed, Stopped
from tasks.metrics.drawing import Drawing
from tasks.metrics.draws import generator
from tasks.metrics.foreign import ATTACK_SECONDS, Misbehaved, attack_function
from tasks.metrics.isolation import PROBE, VOTES, Meter
from tasks.metrics.tally import Player, Tally, foreseen
from tasks.metrics.views import Views
from tasks.redact import told

FAR = 0.2  # of a turn: drawn from all that stand, whatever their margin


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
        self.views = Views(search, meter)
        self.others = search.clean.shape[1] - 1  # classes beside a sample's own
        none = torch.zeros_like(search.fooled)
        self.late, self.capped = none.clone(), False  # fell in the last quarter of the effort; the cap ended it
        self.players = [
            Player(
                Tally(row, none.clone(), none.clone()),
                generator(search.x.device, seed, row.resolved(), search.threat.digest, cell),
                visits=torch.zeros_like(search.y),
                share=row.share,
            )
            for row in suite.under(search.threat)
        ]

    def run(self) -> list[Tally]:
        """Every attack of the suite, in its order; what is drawn takes turns with its neighbours."""
        for together, group in itertools.groupby(self.players, key=lambda player: player.config.in_turns):
            if together:
                self._draw(list(group))
                continue
            for player in group:
                self._pull(player, self._given(player.config))
                if self.views.level and not self.views.sought and self.views.lend(self._left()):
                    self._pull_on(player)
                elif self.search.steps and not self.views.compared:
                    self._look_behind(player)
        return [player.tally for player in self.players]

    def _look_behind(self, player: Player) -> None:
        """See whether the attack gets further by other slopes than the model's own, and whether these may be believed.

        Where the model decides something once for a sample, the ways that it did not go are tried, each with all
        samples; where it compares numbers, slopes behind the comparisons.
        """
        rows, before = self._given(player.config), self.search.margin.clone()
        if self.views.decides(rows[: int(min(GLANCE, max(self._left(), 0)))]):
            for elsewhere in self.views.part(rows, self._left()):
                self._pull(player, elsewhere[: self._affordable(player)])
            if self.views.turns:
                return
        if self.views.steepen():
            some = rows[: min(PROBE, self._affordable(player))]
            self._pull(player, some)
            self.views.judge(some, before)
        further = self.views.steep or self.views.doubt(rows[:GLANCE], self._left())
        if further and not any(other.config.in_turns for other in self.players):
            self._pull_on(player)  # where any take turns, they go on from what is known

    def _pull_on(self, player: Player) -> None:
        """Let the attack try once more what still stands of its samples, as far as the limit allows."""
        self._pull(player, self._given(player.config)[: self._affordable(player)])

    def _given(self, config: AttackConfig) -> Tensor:
        """The samples that an attack which takes no turns is given."""
        standing, left = self.search.standing(), self._left()
        if config.samples == "all":
            return standing
        count, each = (
            max(config.fewest, round(config.share * len(self.search.x))),
            foreseen(config, self.others, mean=True),
        )
        return standing[: min(count, int(max(left, 0) / each)) if each and left < math.inf else count]

    def _draw(self, group: list[Player]) -> None:
        """Turns among the attacks of the group, until they are over."""
        drawing = Drawing(
            group, search=self.search, suite=self.suite, views=self.views, spent=self._spent, left=self._left
        )
        while player := drawing.next():
            before, fooled = self._spent(), self.search.fooled.clone()
            self._turn(player)
            drawing.note(player, self._spent() - before, self.search.fooled & ~fooled)
        self.late |= drawing.fell_late()
        self.capped |= drawing.capped

    def _turn(self, player: Player) -> int:
        """A few samples to this attack: the nearest to falling that it has tried the least, and some at random."""
        rows, config = self.search.standing(), player.config
        self.views.turn(sum(other.taken for other in self.players))
        player.taken += 1
        affordable = self._affordable(player)
        self.capped |= not affordable
        count = min(max(config.fewest, round(player.share * len(rows))), len(rows), affordable)
        margin = self.search.margin[rows]
        place, visits = margin / margin.median().clamp_min(1e-12), player.visits[rows]
        place = place + visits if config.near is None else (place + config.near) * (1 + visits)
        drawn = torch.rand(len(rows), generator=player.rng, device=rows.device, dtype=torch.float32)
        some = drawn.argsort()[: round(FAR * count)]
        place[some] = -1.0
        chosen = rows[place.argsort(stable=True)[:count]]
        player.visits[chosen] += 1
        gained = self._pull(player, chosen)
        player.share = min(config.growth * player.share, 1.0) if gained else config.share
        return gained

    def _pull(self, player: Player, rows: Tensor) -> int:
        """Let the attack try these samples. How many fell."""
        search, tally, config = self.search, player.tally, player.config
        rows = rows[~search.fooled[rows]]
        tally.error = tally.error or self.meter.stopped.get(config.name)
        if not len(rows) or tally.error is not None:
            return 0
        before, passes, started = search.fooled.clone(), self._passes(), time.perf_counter()
        # A model that calls for these has slopes that bfloat16 cannot follow to the end.
        now, exactly = self.views.now, config.samples in ("spare", "winding")
        search.rng, search.model = player.rng, now.model if exactly else now.searched
        if self.tell is not None:
            self.tell(config.name, int((~search.fooled).sum()))
        try:
            self._attack(tally, rows)
        except (Misbehaved, Failed) as failure:
            tally.error = str(failure)
            if isinstance(failure, Stopped):
                self.meter.stopped[config.name] = tally.error
        except Exception as failure:  # a user's attack may raise anything; the number is void, the run goes on
            tally.error = f"raised {told(failure)}"
        flips = search.fooled & ~before
        tally.tried[rows] = True
        tally.fooled |= flips
        forward, backward = (now - then for now, then in zip(self._passes(), passes, strict=True))
        tally.forward_samples += forward
        tally.backward_samples += backward
        tally.seconds += time.perf_counter() - started
        fell, spent = int(flips.sum()), forward + backward
        player.earned(fell, spent, each=spent / self.meter.draws / len(rows))
        return fell

    def _attack(self, tally: Tally, rows: Tensor) -> None:
        """Raises Misbehaved where an attack does what none may, Failed where its process fails, and what it raises."""
        arm = tally.config.arm()
        if arm is not None:
            arm(self.search, rows)
        else:
            model, seconds = self.views.now.model, self.attack_seconds
            tally.silent = attack_function(
                self.search, rows, tally.config, model=model, meter=self.meter, seconds=seconds
            )
        if self.search.broken:
            raise Misbehaved("met logits that are not finite")

    def _left(self) -> float:
        """Passes that the suite's end leaves for this cell; what fell in the search is judged once more at its end."""
        whole, search = self.suite.end(self.search.threat).whole or math.inf, self.search
        fell = search.fooled & (search.clean.argmax(1) == search.y) & (search.settled == OPEN)
        again = VOTES if self.meter.draws > 1 else 1
        return whole * len(self.search.x) - (self._spent() - self.begun) - again * int(fell.sum())

    def _affordable(self, player: Player) -> int:
        """How many samples this attack can be given, by the most that one can take it, or else took any other."""
        left = self._left()
        if left == math.inf:
            return len(self.search.x)
        expected = self.views.now.dear * foreseen(player.config, self.others)
        each = max(player.each, expected) or max(other.each for other in self.players)
        return int(left / each) if each else len(self.search.x)

    def _spent(self) -> float:
        """Answers so far, forward and backward."""
        return sum(self._passes()) / self.meter.draws

    def _passes(self) -> tuple[int, int]:
        return self.meter.forward_samples, self.meter.backward_samples
