"""Which attack gets which samples: the one place that spends passes."""

import hashlib
import time
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.attacks.geometry import distance
from tasks.attacks.search import SLACK, Search
from tasks.metrics.isolation import Meter

PRIOR_PASSES = 500.0  # what an arm that has not been tried is taken to need for one flip


@dataclass
class Tally:
    """What one attack of the suite did on the samples of one cell."""

    config: AttackConfig
    tried: Tensor  # bool [N]
    fooled: Tensor  # bool [N]
    forward_samples: int = 0
    backward_samples: int = 0
    seconds: float = 0.0
    error: str | None = None
    at: int = 0  # how far outwards its next turn starts
    dry: int = 0  # turns in a row that gave nothing
    lately: tuple[float, float] = (0.0, 0.0)  # flips and passes, older ones counting less
    probed: bool = False
    rng: Generator | None = field(default=None, repr=False)

    @property
    def rate(self) -> float:
        """Flips per pass, on the bright side where little is known."""
        flips, passes = self.lately
        return (flips + 1) / (passes + PRIOR_PASSES)


class Engine:
    """The suite at work on one cell: at most BLOCK samples, whose result depends on nothing outside it."""

    def __init__(self, search: Search, suite: Suite, meter: Meter, *, seed: int, cell: int) -> None:
        self.search, self.meter, self.seed, self.cell = search, meter, seed, cell
        none = torch.zeros_like(search.fooled)
        self.tallies = [Tally(row, none.clone(), none.clone()) for row in suite.under(search.threat)]

    def run(self) -> list[Tally]:
        """Every attack of the suite, in its order; what is drawn takes turns with its neighbours."""
        waiting = list(self.tallies)
        while waiting:
            first = waiting[0]
            if first.config.samples == "drawn":
                group = [first]
                while len(group) < len(waiting) and waiting[len(group)].config.samples == "drawn":
                    group.append(waiting[len(group)])
                self._draw(group)
                waiting = waiting[len(group) :]
                continue
            if first.config.samples == "all":
                self._pull(first, self.search.standing())
            else:
                self._walk(first)
            waiting = waiting[1:]
        return self.tallies

    def _draw(self, group: list[Tally]) -> None:
        """Turns, one chunk each, to the attack that lately earned the most flips per pass, until all are dry."""
        while len(self.search.standing()):
            open_ = [t for t in group if t.dry < t.config.patience and t.error is None]
            if not open_:
                return
            self._turn(max(open_, key=lambda t: t.rate))

    def _walk(self, tally: Tally) -> None:
        while tally.dry < tally.config.patience and tally.error is None and len(self.search.standing()):
            self._turn(tally)

    def _turn(self, tally: Tally) -> None:
        """One chunk: from the smallest margin outwards as long as the attack gains, else back to the nearest.

        The first chunk comes with some far samples, drawn at random: where one of these falls, the margin says nothing
        about who does, and every sample is tried.
        """
        rows, config = self.search.standing(), tally.config
        at = tally.at if tally.at < len(rows) else 0
        chunk, rest = rows[at : at + config.chunk], rows[at + config.chunk :]
        far = rest[:0]
        if config.probe and not tally.probed:
            tally.probed = True
            rng = generator(rest.device, self.seed, "probe", config.name, self.cell)
            far = rest[torch.randperm(len(rest), generator=rng, device=rest.device)[: config.probe]]
        gained = self._pull(tally, torch.cat([chunk, far]))
        if self.search.fooled[far].any():
            gained += self._pull(tally, self.search.standing())
        tally.dry = 0 if gained else tally.dry + 1
        tally.at = at + config.chunk - gained if gained else 0

    def _pull(self, tally: Tally, rows: Tensor) -> int:
        """Let the attack try these samples. How many fell."""
        search, config = self.search, tally.config
        rows = rows[~search.fooled[rows]]
        if not len(rows) or tally.error is not None:
            return 0
        before, passes, started = search.fooled.clone(), self._passes(), time.perf_counter()
        tally.rng = tally.rng or generator(rows.device, self.seed, config.name, search.threat.digest, self.cell)
        search.rng, arm = tally.rng, config.arm()
        try:
            if arm is not None:
                arm(search, rows)
            else:
                self._foreign(config, rows)
            if search.broken:
                raise _Misbehaved("met logits that are not finite")
        except _Misbehaved as failure:
            tally.error = str(failure)
        except Exception as failure:  # a user's attack may raise anything; the number is void, the run goes on
            tally.error = f"raised {type(failure).__name__}: {failure}"
        flips = search.fooled & ~before
        tally.tried[rows] = True
        tally.fooled |= flips
        forward, backward = self._passes()
        tally.forward_samples += forward - passes[0]
        tally.backward_samples += backward - passes[1]
        tally.seconds += time.perf_counter() - started
        cost = forward - passes[0] + 2 * (backward - passes[1])
        tally.lately = (tally.lately[0] / 2 + float(flips.sum()), tally.lately[1] / 2 + cost)
        return int(flips.sum())

    def _foreign(self, config: AttackConfig, rows: Tensor) -> None:
        """A plain attack function: what it returns is measured, not believed."""
        search = self.search
        x, y = search.x[rows], search.y[rows]
        attack = config.function()
        x_adv = attack(self.meter, x.clone(), y.clone(), threat=search.threat, rng=search.rng)
        wrong = violation(x, x_adv, search.threat)
        if wrong:
            raise _Misbehaved(wrong)
        search.look(rows, x_adv.detach().to(x))

    def _passes(self) -> tuple[int, int]:
        return self.meter.forward_samples, self.meter.backward_samples


class _Misbehaved(Exception):
    """An attack's result that cannot be used, in words that stand in the report."""


def violation(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> str | None:
    """What is wrong with x_adv: shape, values, box or budget; None if nothing is."""
    if x_adv.shape != x.shape:
        return f"returned shape {list(x_adv.shape)} for {list(x.shape)}"
    x_adv = x_adv.detach().to(x)
    if not x_adv.isfinite().all():
        return "returned values that are not finite"
    low, high = threat.bounds
    slack = SLACK * (high - low)
    if x_adv.amin() < low - slack or x_adv.amax() > high + slack:
        return f"left the box {low:g}..{high:g}: returned {x_adv.amin():.4g}..{x_adv.amax():.4g}"
    moved = distance(x, x_adv, threat).amax().item()
    if moved > threat.eps + SLACK * max(threat.eps, high - low):
        return f"left the ball: moved {moved:.6g}, eps is {threat.eps:g}"
    return None


def generator(device: torch.device, *key: object) -> Generator:
    """A generator whose seed follows from the key alone."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return Generator(device=device).manual_seed(seed)
