"""measure(): attack a model and say, sample by sample, what came of it. Needs neither Prefect nor MLflow."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.metrics.cell import BLOCK, Cell, attack_cell, known_cell
from tasks.metrics.code import grounds, own_code
from tasks.metrics.draws import seed_all
from tasks.metrics.foreign import ATTACK_SECONDS
from tasks.metrics.inputs import Precision as Precision
from tasks.metrics.inputs import check_logits, check_options, check_suite, checked
from tasks.metrics.isolation import (
    MANY_ROWS,
    PROBE,
    Meter,
    answering,
    answers_at_random,
    pays_in_bf16,
    takes_channels_last,
    untouched,
)
from tasks.metrics.store import CellStore, Entry
from tasks.metrics.tally import Tally

DRAWS = 10  # passes whose mean logits stand for a model that answers at random


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack of the suite did, over all N samples."""

    name: str
    tried: Tensor  # bool [N]: was still standing when this attack's turn came
    fooled: Tensor  # bool [N]: fell to this attack
    forward_samples: int = 0
    backward_samples: int = 0
    seconds: float = 0.0
    error: str | None = None  # why its result is not to be trusted
    silent: Tensor | None = None  # bool [N]: it met a fooling input and returned one that does not fool


@dataclass(frozen=True)
class Outcomes:
    """What one suite found under one threat model. A clean error counts as fooled."""

    threat: ThreatModel
    suite: Suite
    seed: int
    clean_correct: Tensor  # bool [N]
    fooled: Tensor  # bool [N]: wrong from the start, or fooled by some attack
    x_adv: Tensor  # [N, ...]: the input that fooled, or x where nothing did
    prediction: Tensor  # int64 [N]: the class of x_adv
    nearest: Tensor  # [N, ...]: the input of smallest margin that was met; x_adv where something fooled
    margin: Tensor  # float [N]: that margin, the lead of the true class's logit
    attacks: tuple[AttackOutcome, ...]
    late: Tensor | None = None  # bool [N]: fell in the last quarter of the effort
    dropped: Tensor | None = None  # bool [N]: the search fooled it, the judge did not agree
    capped: bool = False  # the suite's cap on passes ended the search
    straight: float | None = None  # of what a first descent gained, what its first step brought; of any cell the least
    forward_samples: int = 0
    backward_samples: int = 0
    seconds: float = 0.0
    precision: Precision = "fp32"  # of the search; every success is judged in the model's own
    draws: int = 1  # passes averaged for one answer; above 1 for a model that answers at random
    problems: tuple[str, ...] = field(default=())  # each of them voids the number
    flips: Tensor | None = None  # [F, ...]: what flipped the critical pairs, one pair's rows after another

    @property
    def passes(self) -> int:
        """Forward and backward, in samples."""
        return self.forward_samples + self.backward_samples

    def joined(
        self,
        attack: AttackOutcome,
        x_adv: Tensor,
        prediction: Tensor,
        *,
        margin: Tensor,
        nearest: Tensor | None = None,
    ) -> "Outcomes":
        """With one more attack, whose finds x_adv [N, ...] are taken for prediction [N].

        margin [N] is that of the nearest points known after it, x_adv where it fooled; nearest [N, ...] are the others,
        where it has moved them.
        """
        fell = attack.fooled.view(-1, *[1] * (x_adv.ndim - 1))
        return replace(
            self,
            fooled=self.fooled | attack.fooled,
            x_adv=torch.where(fell, x_adv.to(self.x_adv), self.x_adv),
            nearest=torch.where(fell, x_adv.to(self.nearest), self.nearest if nearest is None else nearest),
            margin=margin.to(self.margin),
            prediction=torch.where(attack.fooled, prediction.cpu(), self.prediction),
            attacks=(*self.attacks, attack),
            forward_samples=self.forward_samples + attack.forward_samples,
            backward_samples=self.backward_samples + attack.backward_samples,
            seconds=self.seconds + attack.seconds,
        )

    def entry(self) -> Entry:
        """As it is stored, without threat model and suite, which whoever asks for it knows."""
        attacks = [Entry.of(attack) for attack in self.attacks]
        return Entry.of(self, leave=("threat", "suite", "attacks")).joined("attacks", attacks)

    @classmethod
    def of(cls, entry: Entry, *, threat: ThreatModel, suite: Suite) -> "Outcomes":
        """The outcomes that were stored, under this threat model and with this suite."""
        whole, attacks = entry.parted("attacks")
        fields = whole.fields | {"problems": tuple(whole.values["problems"])}
        return cls(threat=threat, suite=suite, attacks=tuple(AttackOutcome(**a.fields) for a in attacks), **fields)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that are classified correctly as they are."""
        return self.clean_correct.double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that are correct as they are and under every attack."""
        return (~self.fooled).double().mean().item()


@torch.inference_mode(False)  # a caller who asks for no gradients means his own
def measure(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    suite: str | Suite | Sequence[str | AttackConfig] = "standard",
    seed: int = 0,
    warm: Tensor | None = None,
    precision: Precision = "auto",
    draws: int | None = None,
    reseed: bool = False,
    attack_seconds: float = ATTACK_SECONDS,
    progress: bool = False,
    store: CellStore | None = None,
    weights: str = "",
    block: int | None = None,
) -> Outcomes:
    """Attack the model with every attack of the suite and return what each sample came to.

    x [N, ...] floats within threat.bounds; y [N] class numbers; the model maps x to logits [N, C]. Success and
    budget are judged here, on the returned x_adv, not by the attack. The model is left exactly as it was (mode,
    requires_grad, .grad, buffers, global random states). Samples are attacked in cells of 512, each with a seed of its
    own: same seed, same result, in whatever order and company the cells are computed.

    warm [N, ...] are inputs to begin with, such as the `nearest` of an earlier version's outcomes; brought into the
    ball, they are tried first. precision: the search's; auto takes bf16 for models with much arithmetic, on hardware
    that is fast at it; what the search finds is judged in the model's own precision. draws: how many passes are
    averaged for one answer; by default 1, or 10 for a model that answers at random, whose errors count by majority.
    reseed: a global seed of its own for every pass, for a model whose answers follow from that seed.
    attack_seconds: what an attack of your own (package.module:function) may take for a cell. It runs in a process of
    its own, on one thread, which is stopped then; beside a GPU in this one, where it is stopped when it next asks the
    model. One that was stopped is named in `problems` and not begun on the cells that follow.
    store: where each cell is looked up before it is computed, and put unless an attack raised; what a stored one cost
    is what it cost at first. It needs `weights`, a digest of all that the model's answers follow from.
    block: attack only the cell of this number; the outcomes are then of its samples alone.

    Raises WrongInput or ModelRejected before any attack starts. An attack that raises, or leaves the ball or the
    box, is stopped and named in `problems`; the others run on.
    """
    suite, (x, y) = as_suite(suite), checked(model, x, y, threat)
    check_options(len(x), seed=seed, precision=precision, draws=draws, attack_seconds=attack_seconds, block=block)
    check_suite(suite, threat, warm, x)
    return attacked(
        model,
        x,
        y,
        threat=threat,
        suite=suite,
        seed=seed,
        warm=warm,
        precision=precision,
        draws=draws,
        reseed=reseed,
        attack_seconds=attack_seconds,
        progress=progress,
        store=store,
        weights=weights,
        block=block,
    )


def attacked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    suite: Suite,
    seed: int,
    precision: Precision,
    attack_seconds: float,
    warm: Tensor | None = None,
    draws: int | None = None,
    reseed: bool = False,
    progress: bool = False,
    store: CellStore | None = None,
    weights: str = "",
    block: int | None = None,
) -> Outcomes:
    """What measure() returns, of arguments that it has checked; x, y as checked() gives them."""
    started = time.perf_counter()
    with untouched(model) as meter, _bar(progress) as bar:
        seed_all(seed)
        check_logits(meter, x, y)
        meter.reseed = torch.Generator().manual_seed(seed) if reseed else None
        with answering(x[:PROBE], also=MANY_ROWS):
            meter.draws = draws or (DRAWS if answers_at_random(meter, x) else 1)
            coarse = precision == "bf16" or (precision == "auto" and pays_in_bf16(meter, x))
            meter.channels_last = coarse and takes_channels_last(meter, x)
        begun = meter.forward_samples, meter.backward_samples, time.perf_counter() - started
        how: dict[str, Any] = {"threat": threat, "suite": suite, "seed": seed, "coarse": coarse}
        attack: Callable[..., Cell] = partial(
            attack_cell, meter, asked=meter.passes, attack_seconds=attack_seconds, **how
        )
        if store is not None and weights:
            attack = partial(known_cell, store, _facts(meter, x, weights=weights, **how), suite.under(threat), attack)
        cells = list(_cells(attack, x, y, warm, bar, f"{suite.name}, {threat}", block))
    found = _joined(cells, begun, threat=threat, suite=suite, seed=seed)
    return replace(found, precision="bf16" if coarse else "fp32", draws=meter.draws)


def _cells(
    attack: Callable[..., Cell], x: Tensor, y: Tensor, warm: Tensor | None, bar: Progress, what: str, only: int | None
) -> Iterator[Cell]:
    """The result of each block of samples in turn, or of one only, told on the bar."""
    row = bar.add_task(what, total=len(x))
    for number in range(-(-len(x) // BLOCK)) if only is None else (only,):
        part, labels = (of[number * BLOCK : (number + 1) * BLOCK] for of in (x, y))
        begin = warm[number * BLOCK :][: len(part)].to(x).contiguous() if warm is not None else None
        yield attack(part, labels, number=number, warm=begin, tell=partial(_tell, bar, row, what, len(part)))
        bar.advance(row, len(part))


def _facts(
    meter: Meter, x: Tensor, *, weights: str, threat: ThreatModel, suite: Suite, seed: int, coarse: bool
) -> dict[str, object]:
    """What every cell of one measurement follows from, besides its own samples."""
    how = {"precision": "bf16" if coarse else "fp32", "draws": meter.draws, "reseed": meter.reseed is not None}
    what = {"stage": "suite", "weights": weights, "threat": threat.digest, "suite": suite.digest, "seed": seed}
    return {**what, **how, "own attacks": own_code(suite), **grounds(meter, x)}


def _tell(bar: Progress, row: TaskID, what: str, n: int, attack: str, standing: int) -> None:
    bar.update(row, description=f"{what}: {attack}, {standing} of {n} stand")


def _joined(
    cells: Sequence[Cell], begun: tuple[int, int, float], *, threat: ThreatModel, suite: Suite, seed: int
) -> Outcomes:
    """The cells' results, one after another. begun: passes, forward and backward, and seconds before the first."""
    rows = [_of_attack(name, cells) for name in dict.fromkeys(t.config.name for t in cells[0].tallies)]

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(cell, name).cpu() for cell in cells])

    problems = [*dict.fromkeys(p for cell in cells for p in cell.problems)]
    problems += [f"{row.name}: {row.error}" for row in rows if row.error]
    return Outcomes(
        threat=threat,
        suite=suite,
        seed=seed,
        clean_correct=whole("clean_correct"),
        fooled=whole("fooled"),
        x_adv=whole("x_adv"),
        prediction=whole("prediction"),
        nearest=whole("nearest"),
        margin=whole("margin"),
        attacks=tuple(rows),
        late=whole("late"),
        dropped=whole("dropped"),
        capped=any(cell.capped for cell in cells),
        straight=min((cell.straight for cell in cells if cell.straight is not None), default=None),
        problems=tuple(problems),
        forward_samples=begun[0] + sum(cell.forward_samples for cell in cells),
        backward_samples=begun[1] + sum(cell.backward_samples for cell in cells),
        seconds=begun[2] + sum(cell.seconds for cell in cells),
    )


def _of_attack(name: str, cells: Sequence[Cell]) -> AttackOutcome:
    """One attack's part over all cells. Where the suite holds it more than once, its rows are one here."""
    of_cell: list[list[Tally]] = [[t for t in cell.tallies if t.config.name == name] for cell in cells]
    every = [tally for tallies in of_cell for tally in tallies]

    def flags(what: str) -> Tensor:
        return torch.cat([torch.stack([getattr(t, what) for t in tallies]).any(0).cpu() for tallies in of_cell])

    return AttackOutcome(
        name=name,
        tried=flags("tried"),
        fooled=flags("fooled"),
        forward_samples=sum(t.forward_samples for t in every),
        backward_samples=sum(t.backward_samples for t in every),
        seconds=sum(t.seconds for t in every),
        error=next((t.error for t in every if t.error), None),
        silent=flags("silent") if all(t.silent is not None for t in every) else None,
    )


def _bar(wanted: bool) -> Progress:
    """A progress bar on standard error where a person watches, else a silent one."""
    return Progress(console=Console(stderr=True), transient=True, disable=not (wanted and sys.stderr.isatty()))
