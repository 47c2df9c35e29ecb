"""The signs of soundness: each asks one question of a number that the engine has measured.

They read the engine's own ledger where it answers, and else ask the model a little more, on a few samples. What they
find on their way counts like any other success.
"""

from collections.abc import Callable, Container
from functools import partial
from typing import TypeVar

import torch

from tasks.metrics.signs.failing import (
    convergence,
    cut_short,
    falling_curve,
    late_flips,
    no_gradients,
    silent_success,
    transfer_failure,
    unstable,
)
from tasks.metrics.signs.masking import black_box, larger_budget, misfit, one_step, random_noise, unbounded
from tasks.metrics.signs.measuring import company, labels, one_answer, reseeded, reverified
from tasks.metrics.signs.probe import Probe, moot, raised
from tasks.metrics.soundness import Sign
from tasks.redact import told

__all__ = ["BUDGET", "QUESTIONS", "Probe", "answer_to", "ask", "settled"]

BUDGET = 0.12  # of the evaluation's passes may be spent on signs

Question = Callable[[Probe], Sign | tuple[Sign, ...]]
A = TypeVar("A", bound=Sign | tuple[Sign, ...])

QUESTIONS: dict[str, Question] = {  # in the order in which people read them; a question may answer for two signs
    "one step beats many": one_step,
    "black-box beats white-box": black_box,
    "unbounded attack fails": unbounded,
    "noise beats gradients": random_noise,
    "a larger budget does not help": larger_budget,
    "slopes do not fit the answers": misfit,
    "no gradients": no_gradients,
    "unstable predictions": unstable,
    "silent success": silent_success,
    "transfer beats the attack": transfer_failure,
    "unfinished optimisation / more steps help": convergence,
    "late flips": late_flips,
    "cut short": cut_short,
    "the curve does not fall": falling_curve,
    "labels do not fit": labels,
    "one answer to everything": one_answer,
    "answers depend on the batch": company,
    "answers depend on the seed": reseeded,
    "successes do not hold": reverified,
}


def ask(probe: Probe, only: Container[str] | None = None) -> tuple[Sign, ...]:
    """Every sign, or only those of these names. A question that the model does not survive is an alarm."""
    if not probe.correct.any():
        rest = moot("every other sign", "measurement", "no sample is classified correctly")
        return (labels(probe), rest)
    signs: list[Sign] = []
    for name, question in QUESTIONS.items():
        if only is not None and not any(part in only for part in name.split(" / ")):
            continue
        answer = answer_to(name.split(" / ")[0], partial(question, probe))
        signs += answer if isinstance(answer, tuple) else (answer,)
    return tuple(sign for sign in signs if only is None or sign.name in only)


def answer_to(name: str, question: Callable[[], A]) -> A | Sign:
    """What the question says of the sign of that name; an alarm where the model does not survive it."""
    try:
        return question()
    except Exception as failure:  # a user's model may raise anything; nobody may take that for a good sign
        says = f"when it was asked, the model raised {told(failure)}"
        return raised(name, "measurement", True, 1.0, 0.0, torch.zeros(0, dtype=torch.long), says)


def settled(probe: Probe) -> Sign:
    """Whether the search has come to its end, now that it was made longer: the answer to late flips and cut short."""
    return convergence(probe)[1]
