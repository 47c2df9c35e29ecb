"""What one attack of a suite did on the samples of one cell, and what it takes and earns while it is at work there."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from tasks.attacks import AttackConfig

PRIOR_PASSES = 500.0  # what an attack that has not been tried is taken to need for one flip
ON = 0.4  # of the rows go on after a cut: the best third, and those that came there first


@dataclass(eq=False)
class Tally:
    """What one attack of the suite did on the samples of one cell."""

    config: AttackConfig
    tried: Tensor  # bool [N]
    fooled: Tensor  # bool [N]
    forward_samples: int = 0
    backward_samples: int = 0
    seconds: float = 0.0
    error: str | None = None
    silent: Tensor | None = None  # bool [N]: met a fooling input on the way and returned one that does not fool

    @property
    def passes(self) -> int:
        """Forward and backward, in samples."""
        return self.forward_samples + self.backward_samples


@dataclass(eq=False)
class Player:
    """One attack of the suite at work: its tally, and what whoever gives turns has to know of it."""

    tally: Tally
    rng: Generator
    visits: Tensor  # int64 [N]: how many of its turns each sample has had
    share: float  # of the samples that stand: the size of its next turn
    taken: int = 0  # turns so far
    spent: bool = False  # a turn of it passed nothing through the model: it has nothing left to try
    lately: tuple[float, float] = (0.0, 0.0)  # flips and passes, those before the last success counting less
    each: float = 0.0  # passes that a sample took it, in the turn in which it took the most

    @property
    def config(self) -> AttackConfig:
        """The attack's place in the suite."""
        return self.tally.config

    @property
    def open(self) -> bool:
        """Whether it has something left to try."""
        return self.tally.error is None and not self.spent

    @property
    def blind(self) -> bool:
        """Whether the attack follows no slopes."""
        return "queries" in self.config.resolved()["params"]

    @property
    def rate(self) -> float:
        """Flips per pass, on the bright side where little is known."""
        flips, passes = self.lately
        return (flips + 1) / (passes + PRIOR_PASSES)

    def earned(self, flips: int, passes: int, *, each: float) -> None:
        """Note a pull: how many fell, for how many passes, and each sample's answers."""
        before = self.lately[1] / 2 if flips else self.lately[1]  # what brought nothing is not forgotten
        self.lately, self.each = (self.lately[0] / 2 + flips, before + passes), max(self.each, each)


def foreseen(config: AttackConfig, others: int, *, mean: bool = False) -> float:
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
    if "queries" in known:
        return float(min(known["queries"], known.get("burst", math.inf)))  # a visit of what goes on in bursts is one
    return float(starts * rows * (2 * made + looked) + looks if steps else 0)
