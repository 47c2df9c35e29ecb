"""The signs of soundness: each asks one question of a number that the engine has measured.

They read the engine's own ledger where it answers, and else ask the model a little more, on a few samples. What they
find on their way counts like any other success.
"""

import itertools
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel, arms
from tasks.attacks.controls import noise
from tasks.attacks.fgsm import fgsm
from tasks.attacks.geometry import per_sample, uphill
from tasks.attacks.search import CLOSE_CALL, Search, margins, slope
from tasks.metrics.cell import judged
from tasks.metrics.curve import NAME as CURVE
from tasks.metrics.curve import CurvePoint
from tasks.metrics.isolation import Meter
from tasks.metrics.outcomes import Outcomes
from tasks.metrics.soundness import Kind, Sign, State
from tasks.metrics.statistics import mcnemar

BLACK_BOX = {"square", "hopskipjump", "noise", "greedy", "transfer"}
ON_THE_MARGIN = {"margin", "classes", "restarts", "fab", "fmn"}  # arms that follow the raw margin
BUDGET = 0.12  # of the evaluation's passes may be spent on signs
FEWEST = 8  # samples of a probe, however small its part of the budget
LEAST = 3  # samples that must raise a sign, where so many were asked: fewer may be chance
APART = 3.0  # times: a slope that promises so much more or less than is kept does not fit
SAME, SAME_HALF = 1e-3, 3e-2  # of the largest logit: answers that differ by less are the same


@dataclass
class Probe:
    """A measured number under examination, and the view of the model through which it is examined."""

    meter: Meter  # the model as it is
    view: nn.Module  # what gradients are asked of: the meter, or the adaptive attacker's stand-in
    x: Tensor
    y: Tensor
    outcomes: Outcomes
    curve: Sequence[CurvePoint]
    allowed: float  # passes
    rng: Generator
    fell: Tensor = field(init=False)  # bool [N]: fooled by a probe, after standing against the suite
    x_adv: Tensor = field(init=False)
    prediction: Tensor = field(init=False)  # int64 [N]

    def __post_init__(self) -> None:
        self.fell = torch.zeros_like(self.y, dtype=torch.bool)
        self.x_adv, self.prediction = (
            self.outcomes.x_adv.to(self.x).clone(),
            self.outcomes.prediction.to(self.y).clone(),
        )

    @property
    def correct(self) -> Tensor:
        """Bool [N]: right as they are."""
        return self.outcomes.clean_correct.to(self.x.device)

    @property
    def standing(self) -> Tensor:
        """Bool [N]: nothing has fooled them yet."""
        return ~self.outcomes.fooled.to(self.x.device) & ~self.fell

    def pick(self, among: Tensor, *, part: float, cost: float, nearest: bool = False) -> Tensor:
        """As many of these samples as `part` of the budget pays for, at random or of smallest margin: [<= N]."""
        rows = among.nonzero().flatten()
        count = max(FEWEST, int(part * self.allowed / (cost * self.meter.draws)))
        if nearest:
            order = self.outcomes.margin.to(self.x.device)[rows].argsort(stable=True)
        else:
            order = torch.randperm(len(rows), generator=self.rng, device=rows.device)
        return rows[order[:count]]

    def points(self, rows: Tensor) -> Tensor:
        """Where these samples are asked: every other one as it is, the others at the nearest point known to fooling."""
        moved = torch.arange(len(rows), device=rows.device) % 2 == 1
        nearest = self.outcomes.nearest.to(self.x)[rows]
        return torch.where(per_sample(moved, like=nearest), nearest, self.x[rows])

    def search(self, rows: Tensor, threat: ThreatModel | None = None) -> Search:
        """A search on these samples, under the number's own threat model or another one."""
        return Search(self.view, self.x[rows], self.y[rows], threat=threat or self.outcomes.threat, rng=self.rng)

    def note(self, rows: Tensor, found: Search) -> Tensor:
        """Count what a search under the number's own threat model has fooled; which of the rows, by the meter."""
        hit = found.fooled.nonzero().flatten()
        if not len(hit):
            return rows[hit]
        answer = judged(self.meter, found.nearest[hit])[1]
        hit, answer = hit[answer != self.y[rows[hit]]], answer[answer != self.y[rows[hit]]]
        self.fell[rows[hit]], self.x_adv[rows[hit]], self.prediction[rows[hit]] = True, found.nearest[hit], answer
        return rows[hit]


Question = Callable[[Probe], Sign | tuple[Sign, ...]]


def one_step(probe: Probe) -> Sign:
    """Does a single step fool what many steps could not? Athalye et al., 2018."""
    rows = probe.pick(probe.standing, part=0.08, cost=4)
    if not len(rows):
        return _moot("one step beats many", "masking", "no sample stands")
    found = probe.search(rows)
    found.look(
        torch.arange(len(rows), device=rows.device),
        fgsm(probe.view, found.x, found.y, threat=found.threat, rng=probe.rng),
    )
    hits = probe.note(rows, found)
    says = "single steps fooled {hits} of {tried} samples that had withstood every attack"
    return _judged("one step beats many", "masking", hits, len(rows), 0.05, says)


def random_noise(probe: Probe) -> Sign:
    """Does noise fool what gradients could not? Athalye et al., 2018."""
    rows = probe.pick(probe.standing, part=0.12, cost=10)
    if not len(rows):
        return _moot("noise beats gradients", "masking", "no sample stands")
    found = probe.search(rows)
    tried = noise(probe.view, found.x, found.y, threat=found.threat, rng=probe.rng, draws=8)
    found.look(torch.arange(len(rows), device=rows.device), tried, inside=True)
    says = "random noise fooled {hits} of {tried} samples that had withstood every attack"
    return _judged("noise beats gradients", "masking", probe.note(rows, found), len(rows), 0.05, says)


def black_box(probe: Probe) -> Sign:
    """Do attacks without gradients win where those with gradients failed? From the ledger; Athalye et al., 2018."""
    name, found = "black-box beats white-box", probe.outcomes
    rows = [a for a in found.attacks if a.name in BLACK_BOX]
    if not any(a.tried.any() for a in rows):
        why = "no sample was left to it" if rows else "the suite holds no attack without gradients"
        return Sign(name=name, kind="masking", state="not run", first="not run", says=f"Not run: {why}.")
    fooled = torch.stack([a.fooled for a in rows]).any(0)
    says = "attacks without gradients won on {hits} samples, of {tried} that are right, where gradients had failed"
    return _judged(name, "masking", fooled.nonzero().flatten(), int(found.clean_correct.sum()), 0.05, says)


def unbounded(probe: Probe) -> Sign:
    """Does an attack fail that may do anything? Athalye et al., 2018; Pintor et al., 2022."""
    name, threat = "unbounded attack fails", probe.outcomes.threat
    if threat.norm == "unbounded":
        return _moot(name, "masking", "the threat model itself is unbounded")
    if threat.mask is not None:
        return _moot(name, "masking", "the attacker may change some features only, which need not suffice")
    rows = probe.pick(probe.correct, part=0.2, cost=41)
    with torch.no_grad():
        rows = rows[~_tied(probe.meter.once(probe.x[rows]), probe.y[rows])]
    if not len(rows) or _says_one_thing(probe):
        return _moot(name, "masking", "the model answers one class whatever it is asked")
    anything = ThreatModel(norm="unbounded", eps=threat.bounds[1] - threat.bounds[0], bounds=threat.bounds)
    found = probe.search(rows, anything)
    arms.margin(found, found.standing(), steps=20)
    says = "a gradient attack without a radius left {hits} of {tried} samples standing"
    return _judged(name, "masking", rows[~found.fooled], len(rows), 0.1, says)


def larger_budget(probe: Probe) -> Sign:
    """Do samples stand at twice the radius that fell within it? Athalye et al., 2018."""
    name, threat = "a larger budget does not help", probe.outcomes.threat
    if threat.norm == "unbounded":
        return _moot(name, "masking", "the threat model has no radius")
    rows = probe.pick(probe.correct & ~probe.standing, part=0.1, cost=26)
    if not len(rows):
        return _moot(name, "masking", "no sample fell within the radius")
    found = probe.search(rows, threat.model_copy(update={"eps": 2 * threat.eps}))
    arms.margin(found, found.standing(), steps=12)
    says = "at twice the radius gradients failed on {hits} of {tried} samples that fell within the radius itself"
    return _judged(name, "masking", rows[~found.fooled], len(rows), 0.2, says)


def misfit(probe: Probe) -> Sign:
    """Do the slopes fit the answers? The margin's change over a small step against what its slope promises."""
    name = "slopes do not fit the answers"
    if probe.outcomes.draws > 1:
        return _moot(name, "masking", "the model answers at random")
    rows = probe.pick(probe.correct, part=0.08, cost=5)
    x, y = probe.points(rows), probe.y[rows]
    leaf = x.clone().requires_grad_()
    logits = probe.view(leaf).float()
    grad = slope(margins(logits, y).sum(), leaf)
    step = _small_step(grad, probe.outcomes.threat)
    ends = [(x + side * step).clamp(*probe.outcomes.threat.bounds) for side in (1, -1)]
    with torch.no_grad():
        up, down = (margins(probe.meter.once(end).float(), y) for end in ends)
    promised, scale = (grad * (ends[0] - ends[1])).flatten(1).sum(1), logits.detach().abs().amax(1)
    resolved = SAME_HALF if probe.meter.narrow is not None else SAME / 100
    told = (promised.abs() > resolved * scale) & ~_tied(logits.detach(), y)
    if not told.any():
        return _moot(name, "masking", "the slopes promise no change that could be measured")
    kept = (up - down) / promised
    hits = told & ~((kept > 1 / APART) & (kept < APART))
    says = "over a small step the answers on {hits} of {tried} samples change by less than a third, or more than three "
    says += "times, of what the slope promises"
    return _judged(name, "masking", rows[hits], int(told.sum()), 0.34, says)


def _small_step(grad: Tensor, threat: ThreatModel) -> Tensor:
    """A tenth of the radius up the slope; a fiftieth of the box where the radius counts features or there is none."""
    if threat.norm in ("linf", "l2"):
        return 0.1 * threat.eps * uphill(grad, threat)
    if threat.norm == "l1":
        return 0.1 * threat.eps * grad / per_sample(grad.flatten(1).abs().sum(1).clamp_min(1e-12), like=grad)
    return (threat.bounds[1] - threat.bounds[0]) / 50 * grad.sign()


def no_gradients(probe: Probe) -> Sign:
    """Is there a slope to follow? Of the cross-entropy, and of the margin. Pintor et al., 2022, arXiv 2106.09947."""
    name = "no gradients"
    rows = probe.pick(probe.correct, part=0.06, cost=5)
    leaf = probe.points(rows).clone().requires_grad_()
    logits = probe.view(leaf).float()
    if (tied := _tied(logits.detach(), probe.y[rows])).all():
        return _moot(name, "failure", "two classes have the same logit on every sample")
    values = (F.cross_entropy(logits, probe.y[rows], reduction="sum"), margins(logits, probe.y[rows]).sum())
    flat = (~(slope(value, leaf, again=True).flatten(1).abs().amax(1) > 0) for value in values)
    entropy, margin = (shut & ~tied for shut in flat)
    says = "the margin has no slope on {hits} of {tried} samples"
    sign = _judged(name, "failure", rows[margin], len(rows), 0.1, says)
    lost, left = int(entropy.sum()), len(rows) - int(margin.sum())
    if sign.state == "alarm" or lost < LEAST or lost <= 0.1 * len(rows):
        return sign
    told = f"The cross-entropy has no slope on {lost} of {len(rows)} samples: attacks that follow it stand still."
    raised = _sign(name, "failure", True, lost / len(rows), 0.1, rows[entropy], told.rstrip("."))
    if any(a.name in ON_THE_MARGIN or a.name.startswith("escalation") for a in probe.outcomes.attacks):
        answer = f"attacks followed the raw margin, whose slope is there on {left} of {len(rows)}"
        return raised.model_copy(update={"state": "ok", "answer": answer})
    return raised


@torch.no_grad()
def unstable(probe: Probe) -> Sign:
    """Does one question get two answers? Pintor et al., 2022."""
    rows = probe.pick(probe.correct, part=0.04, cost=1)
    draws = max(probe.outcomes.draws, 2)
    classes = torch.stack([probe.meter.once(probe.x[rows]).argmax(1) for _ in range(draws)])
    says = f"of {{tried}} unchanged samples, asked {draws} times each, {{hits}} got more than one class"
    sign = _judged("unstable predictions", "failure", rows[(classes != classes[0]).any(0)], len(rows), 0.02, says)
    if sign.state == "alarm" and probe.outcomes.draws > 1:
        answer = f"every answer is the mean of {probe.outcomes.draws}, and a success counts by majority of more"
        return sign.model_copy(update={"state": "ok", "answer": answer})
    return sign


def silent_success(probe: Probe) -> Sign:
    """Did an attack meet a fooling input and return another one? From the ledger; Pintor et al., 2022."""
    rows = [a for a in probe.outcomes.attacks if a.silent is not None]
    if not rows:
        return _moot("silent success", "failure", "the engine judges every input that its attacks meet")
    silent = torch.stack([a.silent for a in rows if a.silent is not None]).any(0)
    says = "attacks passed over {hits} fooling inputs that they had met, on {tried} samples"
    tried = int(torch.stack([a.tried for a in rows]).any(0).sum())
    sign = _judged("silent success", "failure", silent.nonzero().flatten(), max(tried, 1), 0.01, says)
    if sign.state == "alarm":
        return sign.model_copy(update={"state": "ok", "answer": "what an attack meets within the budget counts"})
    return sign


def transfer_failure(probe: Probe) -> Sign:
    """Do a surrogate's examples win where the model's own gradients failed? Pintor et al., 2022."""
    name = "transfer beats the attack"
    rows = [a for a in probe.outcomes.attacks if a.name == "transfer"]
    if not rows:
        says = "Not run: no surrogate was given. Add attacks: [{name: transfer, params: {surrogate: 'acme:other'}}]."
        return Sign(name=name, kind="failure", state="not run", first="not run", says=says)
    says = "a surrogate's examples fooled {hits} of {tried} samples that had withstood the rest"
    return _judged(name, "failure", rows[0].fooled.nonzero().flatten(), max(int(rows[0].tried.sum()), 1), 0.05, says)


def convergence(probe: Probe) -> tuple[Sign, ...]:
    """Would more steps and restarts have gone further? Two signs from one further search, on the nearest samples."""
    names = ("unfinished optimisation", "more steps help")
    rows = probe.pick(probe.standing, part=0.3, cost=84, nearest=True)
    if not len(rows):
        return _moot(names[0], "failure", "no sample stands"), _moot(names[1], "convergence", "no sample stands")
    found = probe.search(rows)
    every = torch.arange(len(rows), device=rows.device)
    found.look(every, probe.outcomes.nearest.to(probe.x)[rows])
    before = found.margin.clone()
    arms.restarts(found, found.standing(), starts="nearest noise", steps=20)
    hits = probe.note(rows, found)
    lower = ~found.fooled & (found.margin < 0.5 * before)
    says = "on {hits} of the {tried} nearest samples 20 more steps halved the margin without an end"
    unfinished = _judged(names[0], "failure", rows[lower], len(rows), 0.34, says)
    if probe.meter.draws > 1:
        unfinished = _moot(names[0], "failure", "the margins of a model that answers at random are estimates")
    n, p = len(probe.y), mcnemar(len(hits), 0)
    says = f"another 40 steps on each of the {len(rows)} nearest samples fooled {len(hits)} (exact p {p:.2g})"
    more = p < 0.05 and len(hits) > 0.01 * n
    return unfinished, _sign(names[1], "convergence", more, len(hits) / n, 0.01, hits if more else hits[:0], says)


def late_flips(probe: Probe) -> Sign:
    """Was something still being found when the search ended? From the ledger."""
    found = probe.outcomes
    late = torch.zeros_like(found.fooled) if found.late is None else found.late.clone()
    for attack in found.attacks:
        late |= attack.fooled if attack.name == CURVE else torch.zeros_like(late)
    ended = "the cap on passes ended it" if found.capped else "it ended by itself"
    says = f"{{hits}} of {{tried}} samples fell in the last quarter of the search or after it; {ended}"
    hits = (late & found.clean_correct).nonzero().flatten()
    return _judged("late flips", "convergence", hits, max(int(found.clean_correct.sum()), 1), 0.03, says)


def falling_curve(probe: Probe) -> Sign:
    """Does robust accuracy fall as the budget grows, and meet the headline at its radius? From the curve."""
    name, points = "the curve does not fall", probe.curve
    if not points:
        says = "Not run: no security curve was computed."
        return Sign(name=name, kind="convergence", state="not run", first="not run", says=says)
    values = [point.robust.value for point in points]
    rise = max((b - a for a, b in itertools.pairwise(values)), default=0.0)
    meets = [p.robust.value for p in points if math.isclose(p.eps, probe.outcomes.threat.eps)]
    apart = abs(meets[0] - probe.outcomes.robust_accuracy) if meets else 0.0
    figure = max(rise, apart, 0.0)
    says = f"over {len(points)} radii robust accuracy goes from {values[0]:.1%} to {values[-1]:.1%} and never rises"
    if figure > 1e-6:
        says = f"the curve rises by {rise:.1%} or misses the headline by {apart:.1%}"
    return _sign(name, "convergence", figure > 1e-6, figure, 0.0, torch.zeros(0), says)


def labels(probe: Probe) -> Sign:
    """Do labels and classes fit? A renaming of the classes that is learnt on half of the samples mends the other half.

    A renaming gives each class one other name, so a model that merely prefers a class is not taken for one.
    """
    name, found, y = "labels do not fit", probe.outcomes, probe.y.cpu()
    if len(y.unique()) == 1:
        return _moot(name, "measurement", "all samples are of one class")
    answer = torch.where(found.clean_correct, y, found.prediction)
    classes, learnt = int(max(answer.max(), y.max())) + 1, torch.arange(len(y)) % 2 == 0
    renamed = _renaming(answer[learnt], y[learnt], classes)
    before, after = answer[~learnt] == y[~learnt], renamed[answer[~learnt]] == y[~learnt]
    if not len(before):
        return _moot(name, "measurement", "there is one sample")
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    figure, p = (gained - lost) / len(before), mcnemar(lost, gained)
    alarm = figure > 0.3 and p < 0.01
    says = f"renaming the model's classes, as half of the samples suggest, mends {gained} and spoils {lost} of "
    says += f"the other {len(before)} (exact p {p:.2g})"
    wrong = (~found.clean_correct).nonzero().flatten()
    return _sign(name, "measurement", alarm, figure, 0.3, wrong if alarm else wrong[:0], says)


def _renaming(answer: Tensor, y: Tensor, classes: int) -> Tensor:
    """Which label each answered class seems to stand for, one to one, the most frequent pairs first: [classes]."""
    pairs, counts = torch.unique(answer * classes + y, return_counts=True)
    renamed, taken = torch.full((classes,), -1), torch.zeros(classes, dtype=torch.bool)
    for pair in pairs[counts.argsort(descending=True, stable=True)].tolist():
        named, label = divmod(pair, classes)
        if renamed[named] < 0 and not taken[label]:
            renamed[named], taken[label] = label, True
    own = (renamed < 0) & ~taken  # what nothing was learnt of keeps its name, where that is free
    renamed[own], taken[own] = torch.arange(classes)[own], True
    renamed[renamed < 0] = (~taken).nonzero().flatten()
    return renamed


@torch.no_grad()
def company(probe: Probe) -> Sign:
    """Does a sample's answer depend on the others in its batch?"""
    name = "answers depend on the batch"
    if probe.outcomes.draws > 1:
        return _moot(name, "measurement", "the model answers at random")
    rows = probe.pick(torch.ones_like(probe.correct), part=0.04, cost=3)
    points = probe.points(rows)
    together = probe.meter.once(points)
    try:
        alone = torch.cat([probe.meter.once(point) for point in points.split(1)])
    except Exception as failure:  # a batch of one is an input like any other
        says = f"the model raised {type(failure).__name__} for a batch of one"
        return _sign(name, "measurement", True, 1.0, 0.0, rows, says)
    differ = _differ(together, alone)
    says = "{hits} of {tried} samples get another answer alone than in company"
    return _judged(name, "measurement", rows[differ], len(rows), 0.0, says, least=1)


@torch.no_grad()
def reseeded(probe: Probe) -> Sign:
    """Does the answer follow from the global random state, though it looks constant?"""
    name = "answers depend on the seed"
    if probe.outcomes.draws > 1:
        return _moot(name, "measurement", "the model answers at random, and is judged so")
    rows = probe.pick(torch.ones_like(probe.correct), part=0.04, cost=4)
    state, points = torch.get_rng_state(), probe.points(rows)
    first = probe.meter.once(points)
    differ = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for _ in range(3):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=probe.rng, device=rows.device)))
        differ |= _differ(first, probe.meter.once(points))
    torch.set_rng_state(state)
    says = "{hits} of {tried} samples get another answer under another global seed"
    return _judged(name, "measurement", rows[differ], len(rows), 0.0, says, least=1)


@torch.no_grad()
def reverified(probe: Probe) -> Sign:
    """Do the successes hold when they are asked again?"""
    name, fooled = "successes do not hold", probe.correct & probe.outcomes.fooled.to(probe.x.device)
    dropped = probe.outcomes.dropped
    if probe.outcomes.draws == 1 and dropped is not None and int(dropped.sum()) > max(0.01 * len(dropped), LEAST - 1):
        says = "the search fooled {hits} of {tried} samples that the judge, asked the same, answered rightly"
        return _judged(name, "measurement", dropped.nonzero().flatten(), len(dropped), 0.01, says)
    rows = probe.pick(fooled, part=0.08, cost=3)
    if not len(rows):
        return _moot(name, "measurement", "nothing was fooled")
    again = judged(probe.meter, probe.x_adv[rows])[1]
    says = "{hits} of {tried} successes did not hold when the model was asked again"
    limit = 0.01 if probe.outcomes.draws == 1 else 0.25  # a narrow majority may turn
    return _judged(name, "measurement", rows[again == probe.y[rows]], len(rows), limit, says)


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
    "the curve does not fall": falling_curve,
    "labels do not fit": labels,
    "answers depend on the batch": company,
    "answers depend on the seed": reseeded,
    "successes do not hold": reverified,
}


def ask(probe: Probe, only: Container[str] | None = None) -> tuple[Sign, ...]:
    """Every sign, or only those of these names. A question that the model does not survive is an alarm."""
    if not probe.correct.any():
        moot = "no sample is classified correctly"
        return (labels(probe), _moot("every other sign", "measurement", moot))
    signs: list[Sign] = []
    for name, question in QUESTIONS.items():
        if only is not None and not any(part in only for part in name.split(" / ")):
            continue
        try:
            answer = question(probe)
        except Exception as failure:  # a user's model may raise anything; nobody may take that for a good sign
            says = f"the model raised {type(failure).__name__} when it was asked: {failure}"
            none = torch.zeros(0, dtype=torch.long)
            answer = _sign(name.split(" / ")[0], "measurement", True, 1.0, 0.0, none, says)
        signs += answer if isinstance(answer, tuple) else (answer,)
    return tuple(sign for sign in signs if only is None or sign.name in only)


def settled(probe: Probe) -> Sign:
    """Whether the search has come to its end, now that it was made longer: the answer to late flips."""
    return convergence(probe)[1]


def home(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what a search for it does: float32 at least."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    return parameter.device, torch.promote_types(parameter.dtype, torch.float32)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which answers [R, C] are not the same: bool [R]."""
    same = SAME if a.dtype.itemsize >= 4 else SAME_HALF
    a, b = a.float().nan_to_num(), b.float().nan_to_num()
    return ~((a - b).abs().amax(1) <= same * a.abs().amax(1).clamp_min(1e-6))


def _tied(logits: Tensor, y: Tensor) -> Tensor:
    """Where another class has the same logit as y's, so that the margin need have no slope: bool [R]."""
    return margins(logits.float(), y).abs() <= CLOSE_CALL * logits.float().abs().amax(1)


def _says_one_thing(probe: Probe) -> bool:
    """Whether the model answers one class on every sample as it is, though there are more."""
    answer = torch.where(probe.outcomes.clean_correct, probe.y.cpu(), probe.outcomes.prediction)
    return len(answer.unique()) == 1 and len(probe.y.unique()) > 1


def _judged(name: str, kind: Kind, hits: Tensor, tried: int, limit: float, says: str, *, least: int = LEAST) -> Sign:
    """The sign that `hits` of `tried` samples make."""
    figure, told = len(hits) / tried, says.format(hits=len(hits), tried=tried)
    return _sign(name, kind, figure > limit and len(hits) >= min(least, tried), figure, limit, hits, told)


def _sign(name: str, kind: Kind, alarm: bool, figure: float, limit: float, hits: Tensor, says: str) -> Sign:
    state: State = "alarm" if alarm else "ok"
    samples = tuple(int(row) for row in hits.tolist()) if alarm else ()
    says = f"{says[0].upper()}{says[1:]}."
    return Sign(
        name=name, kind=kind, state=state, first=state, figure=figure, threshold=limit, samples=samples, says=says
    )


def _moot(name: str, kind: Kind, why: str) -> Sign:
    return Sign(name=name, kind=kind, state="not applicable", first="not applicable", says=f"Not applicable: {why}.")
