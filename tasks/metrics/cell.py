"""One cell: at most 512 samples, whose result depends on nothing outside of it."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.attacks.arms import SOFT
from tasks.attacks.geometry import inside
from tasks.attacks.search import OPEN, Search, at_once, sloped
from tasks.metrics.budget import violation
from tasks.metrics.draws import generator, seed_all
from tasks.metrics.engine import Engine
from tasks.metrics.foreign import ATTACK_SECONDS
from tasks.metrics.isolation import MANY_ROWS, VOTES, Coarse, Meter, answering
from tasks.metrics.store import CellStore, Entry, Facts, tensor_digest
from tasks.metrics.tally import Tally

BLOCK = 512  # samples of a cell
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cell:
    """What the suite found on the samples of one cell."""

    clean_correct: Tensor  # bool [N]
    fooled: Tensor  # bool [N]
    x_adv: Tensor  # [N, ...]
    prediction: Tensor  # int64 [N]
    nearest: Tensor  # [N, ...]
    margin: Tensor  # float [N]
    tallies: list[Tally]
    late: Tensor  # bool [N]
    dropped: Tensor  # bool [N]: the search fooled it, the judge did not agree
    capped: bool
    problems: tuple[str, ...]
    forward_samples: int
    backward_samples: int
    seconds: float
    straight: float | None = None  # of what the first descent gained, what its first step brought

    def entry(self) -> Entry | None:
        """The cell as it is stored, without the attacks' rows, which the suite knows; None if anything went wrong."""
        if self.problems or any(tally.error for tally in self.tallies):
            return None
        tallies = [Entry.of(tally, leave=("config", "error")) for tally in self.tallies]
        return Entry.of(self, leave=("tallies", "problems")).joined("tallies", tallies)

    @classmethod
    def of(cls, entry: Entry, rows: Sequence[AttackConfig]) -> "Cell":
        """The cell that was stored; rows are the suite's under its threat model."""
        whole, tallies = entry.parted("tallies")
        of_rows = [Tally(config=row, **tally.fields) for row, tally in zip(rows, tallies, strict=True)]
        return cls(tallies=of_rows, problems=(), **whole.fields)


def attack_cell(
    meter: Meter,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    suite: Suite,
    seed: int,
    number: int,
    warm: Tensor | None = None,
    coarse: bool = False,
    asked: int = 0,
    attack_seconds: float = ATTACK_SECONDS,
    tell: Callable[[str, int], None] | None = None,
) -> Cell:
    """The suite's result on x [N, ...], y [N], N at most 512. Its random draws follow from seed and cell number.

    With coarse the search runs in bfloat16. asked: passes made before any cell, which count within the first one's
    limit. tell(attack, standing) is called as it goes on. attack_seconds as in measure().
    """
    started, forward, backward = time.perf_counter(), meter.forward_samples, meter.backward_samples
    seed_all(generator(CPU, seed, "model", number).initial_seed())  # of models that draw
    if meter.reseed is not None:
        meter.reseed = generator(CPU, seed, "answers", number)
    clean, prediction, slopes = _opened(meter, x, y, follows=warm is None and _descends(suite, threat))
    broken, correct = int((~clean.isfinite()).any(1).sum()), prediction == y
    problems = [f"clean: {broken} samples have logits that are not finite"] if broken else []
    rng, exact = generator(x.device, seed, number), meter if coarse or meter.draws > 1 else None
    searched = Coarse(meter, channels_last=meter.channels_last) if coarse else meter
    search = Search(searched, x, y, threat=threat, rng=rng, clean=clean, slopes=slopes, exact=exact)
    search.fooled = ~correct
    if warm is not None:
        _begin_at(warm, search, meter)
    begun = forward + backward - (asked if number == 0 else 0)
    engine = Engine(search, suite, meter, seed=seed, cell=number, begun=begun, tell=tell, attack_seconds=attack_seconds)
    tallies = engine.run()
    x_adv, fooled, dropped, prediction = _confirmed(meter, search, x, y, prediction)
    wrong = violation(x, x_adv, threat)
    if wrong:
        problems.append(f"engine: {wrong}")
    for tally in tallies:
        tally.fooled &= fooled
    return Cell(
        clean_correct=correct,
        fooled=fooled,
        x_adv=x_adv,
        prediction=prediction,
        nearest=search.nearest,
        margin=search.margin,
        tallies=tallies,
        late=engine.late,
        dropped=dropped,
        capped=engine.capped,
        problems=tuple(problems),
        forward_samples=meter.forward_samples - forward,
        backward_samples=meter.backward_samples - backward,
        seconds=time.perf_counter() - started,
        straight=search.straight,
    )


def _opened(meter: Meter, x: Tensor, y: Tensor, *, follows: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [N, C], classes [N], and the slopes [N, ...] where they are followed and one answer is like another.

    Raises ModelRejected where the model does not answer.
    """
    if follows and meter.draws == 1:
        with suppress(Exception):  # what cannot be differentiated can still answer; the attacks say what they met
            logits, slopes = sloped(meter, x, y)
            return logits, logits.argmax(1), slopes
    with answering(x, also=MANY_ROWS):
        return *judged(meter, x), None


def _descends(suite: Suite, threat: ThreatModel) -> bool:
    """Whether every sample is led down the slope of its margin, and not of a soft one."""
    rows = [row for row in suite.under(threat) if row.name == "margin" and row.samples == "all"]
    return threat.norm not in SOFT and any(not row.params.get("soft") for row in rows)


def _begin_at(warm: Tensor, search: Search, meter: Meter) -> None:
    """Take note of what the model says at warm [N, ...]. It is the judge who says so: what falls there has fallen."""
    rows = search.standing()
    points = inside(search.x[rows], warm[rows], search.threat)
    logits, answer = judged(meter, points)
    search.see(rows, points, logits, inside=True)
    fell = search.fooled[rows] & (answer != search.y[rows])
    search.settled[rows[fell]] = answer[fell]


def _confirmed(
    meter: Meter, search: Search, x: Tensor, y: Tensor, prediction: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_adv [N, ...], fooled [N], what the search fooled and the judge did not confirm [N], and the classes [N]."""
    correct, prediction = prediction == y, prediction.clone()
    x_adv, fooled, dropped = x.clone(), ~correct, torch.zeros_like(correct)
    hit = (search.fooled & correct).nonzero().flatten()
    if len(hit):
        answer = search.settled[hit]
        asked = answer == OPEN
        if asked.any():
            answer[asked] = judged(meter, search.nearest[hit[asked]])[1]
        dropped[hit[answer == y[hit]]] = True
        hit, answer = hit[answer != y[hit]], answer[answer != y[hit]]
        x_adv[hit], prediction[hit], fooled[hit] = search.nearest[hit], answer, True
    return x_adv, fooled, dropped, prediction


def known_cell(
    store: CellStore,
    facts: Facts,
    rows: Sequence[AttackConfig],
    attack: Callable[..., Cell],
    x: Tensor,
    y: Tensor,
    *,
    number: int,
    warm: Tensor | None,
    tell: Callable[[str, int], None] | None = None,
) -> Cell:
    """What attack(x, y, number=, warm=, tell=) returns, from the store where it is there.

    facts are those that all cells of the measurement share; rows are the suite's under its threat model. A cell with a
    problem is not stored: another try may go better.
    """
    own = {"cell": number, "samples": tensor_digest(x, y), "warm": "" if warm is None else tensor_digest(warm)}
    return store.once(
        {**facts, **own},
        partial(attack, x, y, number=number, warm=warm, tell=tell),
        save=Cell.entry,
        load=partial(Cell.of, rows=rows),
    )


@torch.no_grad()
def judged(meter: Meter, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and classes [N]; of a model that answers at random their mean, and the class of most answers."""
    if meter.draws == 1:
        logits = torch.cat([meter(part) for part in x.split(at_once(x))])
        return logits, logits.argmax(1)
    asked = ([meter.once(part) for part in x.split(at_once(x))] for _ in range(VOTES * meter.draws))
    answers = torch.stack([torch.cat(parts) for parts in asked])
    return answers.mean(0), answers.argmax(2).mode(0).values
