"""What one attack of a suite did on the samples of one cell."""

from dataclasses import dataclass, field

from torch import Generator, Tensor

from tasks.attacks import AttackConfig

PRIOR_PASSES = 500.0  # what an arm that has not been tried is taken to need for one flip


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
    turns: Tensor | None = None  # int64 [N]: how many of its turns each sample has had
    taken: int = 0  # turns so far
    share: float = 0.0  # of the samples that stand: the size of its next turn
    spent: bool = False  # a turn of it passed nothing through the model: it has nothing left to try
    lately: tuple[float, float] = (0.0, 0.0)  # flips and passes, those before the last success counting less
    each: float = 0.0  # passes that a sample took it, in the turn in which it took the most
    rng: Generator | None = field(default=None, repr=False)

    @property
    def passes(self) -> int:
        """Forward and backward, in samples."""
        return self.forward_samples + self.backward_samples

    @property
    def rate(self) -> float:
        """Flips per pass, on the bright side where little is known."""
        flips, passes = self.lately
        return (flips + 1) / (passes + PRIOR_PASSES)
