"""Did the attack fail, or end too early? The indicators of attack failure, and of a search without an end.

The first four after Pintor et al., 2022, https://arxiv.org/abs/2106.09947.
"""

import itertools
import math

import torch
from torch.nn import functional as F

from tasks.attacks import arms
from tasks.attacks.search import WINDING, margins, slope
from tasks.metrics.curve import NAME as CURVE
from tasks.metrics.signs.probe import LEAST, Probe, counted, from_surrogates, moot, raised, tied
from tasks.metrics.soundness import Sign
from tasks.statistics import mcnemar

ON_THE_MARGIN = {"margin", "classes", "restarts", "fab", "fmn"}  # arms that follow the raw margin


def no_gradients(probe: Probe) -> Sign:
    """Is there a slope to follow? Of the cross-entropy, and of the margin. Pintor et al., 2022, arXiv 2106.09947."""
    name = "no gradients"
    rows = probe.pick(probe.correct, part=0.06, cost=5)
    leaf = probe.points(rows).clone().requires_grad_()
    logits = probe.view(leaf).float()
    if (even := tied(logits.detach(), probe.y[rows])).all():
        return moot(name, "failure", "two classes have the same logit on every sample")
    values = (F.cross_entropy(logits, probe.y[rows], reduction="sum"), margins(logits, probe.y[rows]).sum())
    flat = (~(slope(value, leaf, again=True).flatten(1).abs().amax(1) > 0) for value in values)
    entropy, margin = (shut & ~even for shut in flat)
    says = "the margin has no slope on {hits} of {tried} samples"
    sign = counted(name, "failure", rows[margin], len(rows), 0.1, says)
    lost, left = int(entropy.sum()), len(rows) - int(margin.sum())
    if sign.state == "alarm" or lost < LEAST or lost <= 0.1 * len(rows):
        return sign
    told = f"The cross-entropy has no slope on {lost} of {len(rows)} samples: attacks that follow it stand still."
    sign = raised(name, "failure", True, lost / len(rows), 0.1, rows[entropy], told.rstrip("."))
    if any(a.name in ON_THE_MARGIN or a.name.startswith("escalation") for a in probe.outcomes.attacks):
        answer = f"attacks followed the raw margin, whose slope is there on {left} of {len(rows)}"
        return sign.model_copy(update={"state": "ok", "answer": answer})
    return sign


@torch.no_grad()
def unstable(probe: Probe) -> Sign:
    """Does one question get two answers? Pintor et al., 2022."""
    rows = probe.pick(probe.correct, part=0.04, cost=1)
    draws = max(probe.outcomes.draws, 2)
    classes = torch.stack([probe.meter.once(probe.x[rows]).argmax(1) for _ in range(draws)])
    says = f"of {{tried}} unchanged samples, asked {draws} times each, {{hits}} got more than one class"
    sign = counted("unstable predictions", "failure", rows[(classes != classes[0]).any(0)], len(rows), 0.02, says)
    if sign.state == "alarm" and probe.outcomes.draws > 1:
        answer = f"every answer is the mean of {probe.outcomes.draws}, and a success counts by majority of more"
        return sign.model_copy(update={"state": "ok", "answer": answer})
    return sign


def silent_success(probe: Probe) -> Sign:
    """Did an attack meet a fooling input and return another one? From the ledger; Pintor et al., 2022."""
    rows = [a for a in probe.outcomes.attacks if a.silent is not None]
    if not rows:
        return moot("silent success", "failure", "the engine judges every input that its attacks meet")
    silent = torch.stack([a.silent for a in rows if a.silent is not None]).any(0)
    says = "attacks passed over {hits} fooling inputs that they had met, on {tried} samples"
    tried = int(torch.stack([a.tried for a in rows]).any(0).sum())
    sign = counted("silent success", "failure", silent.nonzero().flatten(), max(tried, 1), 0.01, says)
    if sign.state == "alarm":
        return sign.model_copy(update={"state": "ok", "answer": "what an attack meets within the budget counts"})
    return sign


def transfer_failure(probe: Probe) -> Sign:
    """Do a surrogate's examples win where the model's own gradients failed? Pintor et al., 2022."""
    name = "transfer beats the attack"
    rows = from_surrogates(probe.outcomes)
    if not rows:
        says = "Not run: no surrogate was given. Add attacks: [{name: transfer, params: {surrogate: 'acme:other'}}]."
        return Sign(name=name, kind="failure", state="not run", first="not run", says=says)
    if not rows[0].tried.any():
        return moot(name, "failure", "no sample was left to it")
    says = "a surrogate's examples fooled {hits} of {tried} samples that had withstood the rest"
    return counted(name, "failure", rows[0].fooled.nonzero().flatten(), int(rows[0].tried.sum()), 0.05, says)


def convergence(probe: Probe) -> tuple[Sign, ...]:
    """Would more steps and restarts have gone further? Two signs from one further search, on the nearest samples."""
    names = ("unfinished optimisation", "more steps help")
    rows = probe.pick(probe.standing, part=0.3, cost=84, nearest=True)
    if not len(rows):
        return moot(names[0], "failure", "no sample stands"), moot(names[1], "convergence", "no sample stands")
    found = probe.search(rows)
    every = torch.arange(len(rows), device=rows.device)
    found.look(every, probe.outcomes.nearest.to(probe.x)[rows])
    before = found.margin.clone()
    arms.restarts(found, found.standing(), starts="nearest noise", steps=20)
    hits = probe.note(rows, found)
    lower = ~found.fooled & (found.margin < 0.5 * before)
    says = "on {hits} of the {tried} nearest samples 20 more steps halved the margin without an end"
    unfinished = counted(names[0], "failure", rows[lower], len(rows), 0.34, says)
    if probe.meter.draws > 1:
        unfinished = moot(names[0], "failure", "the margins of a model that answers at random are estimates")
    n, p = len(probe.y), mcnemar(len(hits), 0)
    says = f"another 40 steps on each of the {len(rows)} nearest samples fooled {len(hits)} (exact p {p:.2g})"
    more = p < 0.05 and len(hits) > 0.01 * n
    return unfinished, raised(names[1], "convergence", more, len(hits) / n, 0.01, hits if more else hits[:0], says)


def late_flips(probe: Probe) -> Sign:
    """Was something still being found when the search ended? From the ledger."""
    found = probe.outcomes
    late = torch.zeros_like(found.fooled) if found.late is None else found.late.clone()
    for attack in found.attacks:
        late |= attack.fooled if attack.name == CURVE else torch.zeros_like(late)
    ended = "the cap on passes ended it" if found.capped else "it ended by itself"
    says = f"{{hits}} of {{tried}} samples fell in the last quarter of the search or after it; {ended}"
    hits = (late & found.clean_correct).nonzero().flatten()
    return counted("late flips", "convergence", hits, max(int(found.clean_correct.sum()), 1), 0.03, says)


def cut_short(probe: Probe) -> Sign:
    """Did a limit on passes end the search where slopes do not hold as far as the radius? From the ledger."""
    name, straight, most = "cut short", probe.outcomes.straight, 1 - WINDING
    if straight is None:
        return moot(name, "convergence", "no descent has told how far slopes hold")
    ended = "the cap on passes ended" if probe.outcomes.capped else "no cap on passes ended"
    says = f"{1 - straight:.0%} of what a first descent gained came after its first step, and {ended} the search"
    alarm = straight < WINDING and probe.outcomes.capped
    return raised(name, "convergence", alarm, 1 - straight, most, torch.zeros(0), says)


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
    return raised(name, "convergence", figure > 1e-6, figure, 0.0, torch.zeros(0), says)
