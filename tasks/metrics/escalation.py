"""An alarm is answered before it is reported: adaptive attacks on what stands, then the same questions again."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks.attacks import arms
from tasks.attacks.apgd import apgd_ce
from tasks.attacks.controls import noise
from tasks.attacks.crossings import crossings
from tasks.attacks.forks import GLANCE
from tasks.attacks.search import Search
from tasks.attacks.square import square
from tasks.attacks.straight_through import StraightThrough, stand_in, steepened
from tasks.errors import WrongInput
from tasks.metrics import signs as questions
from tasks.metrics.cell import BLOCK, judged
from tasks.metrics.curve import CurvePoint, security_curve
from tasks.metrics.draws import generator, seed_all
from tasks.metrics.isolation import Meter, at_home, untouched
from tasks.metrics.outcomes import DRAWS, AttackOutcome, Outcomes, measure
from tasks.metrics.signs import BUDGET, Probe
from tasks.metrics.signs.measuring import ONE_ANSWER
from tasks.metrics.soundness import Sign, Soundness, Step
from tasks.redact import told
from tasks.statistics import Share

MANY_DRAWS = 30
MOST_CLASSES = 9.0  # of a sample that are aimed at: as many as AutoAttack's, all of ten
ROUNDS = (  # of restarts: the next one only where the last one gained
    "toward nearest blocks stripes noise",
    "thinned borrowed stripes noise",
    "thinned borrowed noise",
)
QUERIES, FEWEST = 2000, 200  # a sample, at most and at least, of the black-box step
WORTH = 3.0  # times the evaluation's own passes is what the black-box step may take of a model that has slopes
MANY = 0.05  # of the samples that are right, felled without gradients where gradients do not lead
PROBED = 64  # samples on which a stand-in is chosen, and on which black-box successes are sought again
WITHOUT_GRADIENTS = "escalation: without gradients"
BLACK_BOX = "black-box beats white-box"
UNANSWERABLE = {"labels do not fit", "answers depend on the batch"}
Curve = tuple[CurvePoint, ...]
Attempt = Callable[[Search, Tensor], None]


@torch.inference_mode(False)  # a caller who asks for no gradients means his own
def examine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    outcomes: Outcomes,
    curve: Sequence[CurvePoint] = (),
    confidence: float = 0.95,
) -> tuple[Outcomes, Curve, Soundness]:
    """Ask every sign of soundness; answer the alarms by adaptive attacks; ask what had fired again.

    x [N, ...], y [N] are what `outcomes` was measured on, else it raises WrongInput. Returns the outcomes and the curve
    with what was found besides, and what speaks for or against them. The model is left exactly as it was.
    """
    _same_samples(x, y, outcomes)
    x, y = at_home(model, x, y)
    with untouched(model) as meter:
        meter.draws = outcomes.draws
        seed_all(generator(torch.device("cpu"), outcomes.seed, "signs").initial_seed())
        probe = _probe(meter, meter, x, y, outcomes, curve)
        first = questions.ask(probe)
        passes = meter.passes
        share = passes / max(outcomes.passes, 1)
        outcomes = _with_probes(probe)
        curve = _lowered(curve, outcomes, confidence)
        fired = {sign.name for sign in first if sign.state == "alarm"}
        if not fired - {ONE_ANSWER} or fired & UNANSWERABLE or not outcomes.clean_correct.any():
            return outcomes, curve, Soundness(signs=first, passes=passes, share=share)
        before = outcomes.robust_accuracy
        again, outcomes, steps, view = _answered(model, meter, x, y, outcomes, curve, first)
        if isinstance(view, StraightThrough) and curve:  # what had no slope left the curve's search standing still
            opened = StraightThrough(model, casts=view.casts, leak=view.leak)
            outcomes, curve = security_curve(opened, x, y, outcomes=outcomes, confidence=confidence)
        if meter.reseed is not None:
            curve = ()  # it was drawn under one seed
        curve = _lowered(curve, outcomes, confidence)
    stands = not bool(outcomes.fooled.all())
    signs = tuple(_merged(sign, again.get(sign.name), stands=stands) for sign in first)
    soundness = Soundness(signs=signs, steps=steps, before=before, passes=passes, share=share)
    return outcomes, curve, soundness


def _same_samples(x: Tensor, y: Tensor, outcomes: Outcomes) -> None:
    """Raise WrongInput unless x and y are what the outcomes were measured on, as far as the outcomes can tell."""
    stood = ~outcomes.fooled
    if (
        x.shape != outcomes.x_adv.shape
        or len(y) != len(x)
        or not torch.allclose(x.cpu()[stood].to(outcomes.x_adv), outcomes.x_adv[stood], atol=1e-6)
    ):
        raise WrongInput(
            f"x {list(x.shape)} and y {list(y.shape)} are not the samples that these outcomes were measured on. "
            "Give measure() and examine() the same ones."
        )


class _Answer(NamedTuple):
    """What came of an escalation."""

    again: dict[str, Sign]  # those that had fired, asked once more, by name
    outcomes: Outcomes  # with what it fooled
    steps: tuple[Step, ...]
    view: nn.Module  # of the model, whose slopes its adaptive attacker followed


def _answered(
    model: nn.Module, meter: Meter, x: Tensor, y: Tensor, outcomes: Outcomes, curve: Curve, first: Sequence[Sign]
) -> _Answer:
    """The answer to the alarms among the first signs."""
    fired = {sign.name: sign for sign in first if sign.state == "alarm"}
    steps: list[Step] = []
    if "answers depend on the seed" in fired:
        outcomes, step = _under_fresh_seeds(model, x, y, outcomes)
        steps.append(step)
        meter.reseed, meter.draws = torch.Generator().manual_seed(outcomes.seed), DRAWS
    view = stand_in(meter, x[outcomes.clean_correct][:PROBED], y[outcomes.clean_correct][:PROBED])
    steep = steepened(meter, x[outcomes.clean_correct][:GLANCE])
    sloped, draws = view is meter and "no gradients" not in fired, MANY_DRAWS if meter.draws > 1 else 1
    affordable = int(WORTH * outcomes.passes / len(outcomes.fooled) / draws) if sloped else QUERIES
    queries = max(FEWEST, min(QUERIES, affordable))
    for name, attempt, through in _plan(meter, view, steep, queries):
        outcomes, step = _escalated(name, attempt, through, meter, x, y, outcomes)
        steps.append(step)
    probe = _probe(meter, view, x, y, outcomes, _lowered(curve, outcomes))
    again = {sign.name: sign for sign in questions.ask(probe, only=set(fired) - {BLACK_BOX})}
    random = {name for name, sign in again.items() if name == "unfinished optimisation" and sign.state != "alarm"}
    for name in fired.keys() & ({"late flips", "cut short"} | random):
        again[name] = questions.answer_to(name, partial(questions.settled, probe))
    late = next((a.fooled for a in probe.outcomes.attacks if a.name == WITHOUT_GRADIENTS), None)
    if BLACK_BOX in fired or (late is not None and late.sum() > MANY * probe.outcomes.clean_correct.sum()):
        earlier = next(sign for sign in first if sign.name == BLACK_BOX)
        again[BLACK_BOX] = questions.answer_to(BLACK_BOX, partial(_reached, probe, earlier, late))
    if "answers depend on the seed" in fired:
        says = f"every answer is now the mean of {meter.draws} under seeds of their own, and counts by majority."
        again["answers depend on the seed"] = fired["answers depend on the seed"].model_copy(
            update={"state": "ok", "says": says}
        )
    return _Answer(again, _with_probes(probe), tuple(steps), view)


def _under_fresh_seeds(model: nn.Module, x: Tensor, y: Tensor, before: Outcomes) -> tuple[Outcomes, Step]:
    """What stands where every answer has a seed of its own. What fell before is tried first, and judged anew."""
    how: dict[str, Any] = {"threat": before.threat, "suite": before.suite, "seed": before.seed}
    found = measure(model, x, y, **how, precision=before.precision, warm=before.nearest, draws=DRAWS, reseed=True)
    after = replace(
        found,
        forward_samples=before.forward_samples + found.forward_samples,
        backward_samples=before.backward_samples + found.backward_samples,
        seconds=before.seconds + found.seconds,
        problems=tuple(dict.fromkeys((*before.problems, *found.problems))),
    )
    fell, name = int((found.fooled & ~before.fooled).sum()), f"a fresh seed for every answer, mean of {DRAWS} (EOT)"
    return after, _step(name, len(x), fell, found.passes, after)


def _plan(
    meter: Meter, view: nn.Module, steep: nn.Module | None, queries: int
) -> Iterator[tuple[str, Attempt, nn.Module]]:
    """The escalation's steps: name, attack, and the view of the model that it follows."""
    if meter.draws > 1:
        meter.draws = MANY_DRAWS
        yield f"mean of {MANY_DRAWS} answers (EOT)", _through, meter
    if view is not meter:
        yield "straight-through gradients (BPDA)", _through, view
    if steep is not None:
        yield "slopes behind comparisons (BPDA)", _through, steep
    yield "more restarts", _restarts, meter
    yield "other losses", _losses, meter
    yield "without gradients", partial(_without_gradients, queries=queries), meter


def _through(search: Search, rows: Tensor) -> None:
    crossings(search, rows)
    arms.margin(search, search.standing(), steps=40)
    arms.classes(search, search.standing(), steps=20, pairs=MOST_CLASSES)
    arms.restarts(search, search.standing(), starts="toward nearest", steps=40)


def _restarts(search: Search, rows: Tensor) -> None:
    for starts in ROUNDS:
        arms.restarts(search, rows, starts=starts, steps=40)
        if len(still := search.standing()) in (0, len(rows)):
            return
        rows = still


def _losses(search: Search, rows: Tensor) -> None:
    _look(search, rows, partial(apgd_ce, steps=50))
    if len(still := search.standing()):
        arms.fab(search, still, steps=20, count=3)


def _look(search: Search, rows: Tensor, attack: Callable[..., Tensor]) -> None:
    """What a plain attack function returns, noted; it is given as many samples as pass through the model at once."""
    for part in rows.split(search.batch):
        x_adv = attack(search.model, search.x[part], search.y[part], threat=search.threat, rng=search.rng)
        search.look(part, x_adv)


def _without_gradients(search: Search, rows: Tensor, *, queries: int) -> None:
    _look(search, rows, noise)
    for _ in range(2):  # from stripes, then from the nearest point that is known
        square(search, search.standing(), queries=queries, burst=queries // 2, horizon=queries // 2)


def _escalated(
    name: str, attempt: Attempt, view: nn.Module, meter: Meter, x: Tensor, y: Tensor, outcomes: Outcomes
) -> tuple[Outcomes, Step]:
    """The outcomes after one step on every sample that stands, in cells, and what it did."""
    started, forward, backward = time.perf_counter(), meter.forward_samples, meter.backward_samples
    standing = (~outcomes.fooled).nonzero().flatten().to(x.device)
    fell, x_adv = torch.zeros_like(outcomes.fooled), outcomes.x_adv.clone()
    problems: list[str] = []
    prediction, nearest, margin = outcomes.prediction.clone(), outcomes.nearest.clone(), outcomes.margin.clone()
    for number, rows in enumerate(standing.split(BLOCK) if len(standing) else ()):
        rng = generator(x.device, outcomes.seed, "escalation", name, number)
        search = Search(view, x[rows], y[rows], threat=outcomes.threat, rng=rng, straight=outcomes.straight)
        begin = search.standing()
        search.look(begin, outcomes.nearest[rows.cpu()].to(x)[begin], inside=True)
        try:
            if len(still := search.standing()):
                attempt(search, still)
        except Exception as failure:  # the model may raise anything; what was found until then counts
            problems.append(f"escalation: {name}: raised {told(failure)}")
        hit = search.fooled.nonzero().flatten()
        answer = judged(meter, search.nearest[hit])[1] if len(hit) else y[:0]
        held = answer != y[rows[hit]]
        at = rows[hit[held]].cpu()
        fell[at], prediction[at] = True, answer[held].cpu()
        x_adv[at] = search.nearest[hit[held]].to(x_adv)
        known = ~search.fooled  # what the judge rejects is no point that comes near
        known[hit[held]] = True
        at = rows[known].cpu()
        nearest[at], margin[at] = search.nearest[known].to(nearest), search.margin[known].to(margin)
    attack = AttackOutcome(
        name=f"escalation: {name}",
        tried=~outcomes.fooled,
        fooled=fell,
        forward_samples=meter.forward_samples - forward,
        backward_samples=meter.backward_samples - backward,
        seconds=time.perf_counter() - started,
    )
    passes = attack.forward_samples + attack.backward_samples
    after = outcomes.joined(attack, x_adv, prediction, nearest=nearest, margin=margin)
    after = replace(after, problems=tuple(dict.fromkeys((*after.problems, *problems))))
    return after, _step(name, len(standing), int(fell.sum()), passes, after)


def _reached(probe: Probe, sign: Sign, late: Tensor | None) -> Sign:
    """Whether the adaptive attacker's gradients reach what only attacks without gradients had fooled.

    late [N]: what those of the escalation did.
    """
    fell = [] if late is None else late.nonzero().flatten().tolist()
    rows = torch.tensor(sorted({*sign.samples, *fell}), device=probe.x.device)
    some = rows[torch.randperm(len(rows), generator=probe.rng, device=rows.device)[:PROBED]]
    search = probe.search(some)
    arms.margin(search, search.standing(), steps=40)
    arms.classes(search, search.standing(), steps=20, pairs=MOST_CLASSES)
    arms.restarts(search, search.standing(), starts="toward noise", steps=40)
    missed = some[~search.fooled]
    figure = len(missed) / len(some) * len(rows) / max(int(probe.outcomes.clean_correct.sum()), 1)
    told = f"The adaptive attacker's gradients reach {len(some) - len(missed)} of {len(some)} of those samples."
    state = "alarm" if figure > MANY else "ok"
    samples = tuple(rows.tolist())
    return sign.model_copy(update={"state": state, "figure": figure, "says": told, "samples": samples})


def _merged(first: Sign, again: Sign | None, *, stands: bool) -> Sign:
    """One sign out of its two answers: what fired is kept, and how it was answered.

    A question that cannot be asked any more is no answer, unless no sample stands that it could be asked of.
    """
    if again is None:
        return first
    if first.state != "alarm":  # seen only on the way
        return again if again.state == "alarm" else first
    if again.state == "ok" or (again.state != "alarm" and not stands):
        answer = (again.answer or again.says).rstrip(".")
        return first.model_copy(update={"state": "ok", "first": "alarm", "answer": answer})
    return first.model_copy(update={"figure": again.figure, "answer": f"still so: {again.says.rstrip('.')}"})


def _probe(
    meter: Meter, view: nn.Module, x: Tensor, y: Tensor, outcomes: Outcomes, curve: Sequence[CurvePoint]
) -> Probe:
    rng = generator(x.device, outcomes.seed, "signs", outcomes.threat.digest)
    return Probe(meter, view, x, y, outcomes, curve, BUDGET * outcomes.passes, rng)


def _with_probes(probe: Probe) -> Outcomes:
    """The outcomes with what the probe's searches fooled on their way."""
    if not probe.fell.any():
        return probe.outcomes
    attack = AttackOutcome(name="signs", tried=~probe.outcomes.fooled, fooled=probe.fell.cpu())
    return probe.outcomes.joined(attack, probe.x_adv, probe.prediction, margin=probe.margin)


def _lowered(curve: Sequence[CurvePoint], outcomes: Outcomes, confidence: float = 0.95) -> Curve:
    """The curve, nowhere above the headline from the headline's radius on."""
    standing, n = int((~outcomes.fooled).sum()), len(outcomes.fooled)
    most = Share.of(standing, n, confidence=confidence)
    return tuple(
        point.model_copy(update={"robust": most})
        if point.eps >= outcomes.threat.eps and point.robust.value > most.value
        else point
        for point in curve
    )


def _step(name: str, tried: int, fooled: int, passes: int, outcomes: Outcomes) -> Step:
    return Step(name=name, tried=tried, fooled=fooled, passes=passes, robust=outcomes.robust_accuracy)
