"""Is something hidden? The signs of masked gradients.

After Athalye, Carlini, Wagner, 2018, https://arxiv.org/abs/1802.00420.
"""

import torch
from torch import Tensor

from tasks.attacks import ThreatModel, arms
from tasks.attacks.controls import noise
from tasks.attacks.fgsm import fgsm
from tasks.attacks.geometry import per_sample, uphill
from tasks.attacks.search import margins, slope
from tasks.metrics.signs.probe import SAME, SAME_HALF, Probe, counted, from_surrogates, moot, tied
from tasks.metrics.soundness import Sign

BLACK_BOX = {"square", "hopskipjump", "noise", "greedy", "sweep"}
LARGER = 3.0  # times the radius
JUMPS = 0.1  # of the samples: a third where only winners pass (Xiao et al., 2020), 0.01 at most on other models
APART = 3.0  # times: a slope that promises so much more or less than is kept does not fit


def one_step(probe: Probe) -> Sign:
    """Does a single step fool what many steps could not? Athalye et al., 2018."""
    rows = probe.pick(probe.standing, part=0.08, cost=4)
    if not len(rows):
        return moot("one step beats many", "masking", "no sample stands")
    found = probe.search(rows)
    found.look(
        torch.arange(len(rows), device=rows.device),
        fgsm(probe.view, found.x, found.y, threat=found.threat, rng=probe.rng),
    )
    hits = probe.note(rows, found)
    says = "single steps fooled {hits} of {tried} samples that had withstood every attack"
    return counted("one step beats many", "masking", hits, len(rows), 0.05, says)


def random_noise(probe: Probe) -> Sign:
    """Does noise fool what gradients could not? Athalye et al., 2018."""
    rows = probe.pick(probe.standing, part=0.12, cost=10)
    if not len(rows):
        return moot("noise beats gradients", "masking", "no sample stands")
    found = probe.search(rows)
    tried = noise(probe.view, found.x, found.y, threat=found.threat, rng=probe.rng, draws=8)
    found.look(torch.arange(len(rows), device=rows.device), tried, inside=True)
    says = "random noise fooled {hits} of {tried} samples that had withstood every attack"
    return counted("noise beats gradients", "masking", probe.note(rows, found), len(rows), 0.05, says)


def black_box(probe: Probe) -> Sign:
    """Do attacks without gradients win where those with gradients failed? From the ledger; Athalye et al., 2018."""
    name, found = "black-box beats white-box", probe.outcomes
    rows = [a for a in found.attacks if a.name in BLACK_BOX] + from_surrogates(found)
    if not any(a.tried.any() for a in rows):
        why = "no sample was left to it" if rows else "the suite holds no attack without gradients"
        return Sign(name=name, kind="masking", state="not run", first="not run", says=f"Not run: {why}.")
    fooled = torch.stack([a.fooled for a in rows]).any(0)
    says = "attacks without gradients won on {hits} samples, of {tried} that are right, where gradients had failed"
    return counted(name, "masking", fooled.nonzero().flatten(), int(found.clean_correct.sum()), 0.05, says)


def unbounded(probe: Probe) -> Sign:
    """Does an attack fail that may do anything? Athalye et al., 2018; Pintor et al., 2022."""
    name, threat = "unbounded attack fails", probe.outcomes.threat
    if threat.norm == "unbounded":
        return moot(name, "masking", "the threat model itself is unbounded")
    if threat.mask is not None:
        return moot(name, "masking", "the attacker may change some features only, which need not suffice")
    rows = probe.pick(probe.correct, part=0.2, cost=41)
    with torch.no_grad():
        rows = rows[~tied(probe.meter.once(probe.x[rows]), probe.y[rows])]
    if not len(rows) or _says_one_thing(probe):
        return moot(name, "masking", "the model answers one class whatever it is asked")
    anything = ThreatModel(norm="unbounded", eps=threat.bounds[1] - threat.bounds[0], bounds=threat.bounds)
    found = probe.search(rows, anything)
    arms.margin(found, found.standing(), steps=20)
    says = "a gradient attack without a radius left {hits} of {tried} samples standing"
    return counted(name, "masking", rows[~found.fooled], len(rows), 0.1, says)


def larger_budget(probe: Probe) -> Sign:
    """Do samples stand at three times the radius that fell within it? Athalye et al., 2018."""
    name, threat = "a larger budget does not help", probe.outcomes.threat
    if threat.norm == "unbounded":
        return moot(name, "masking", "the threat model has no radius")
    rows = probe.pick(probe.correct & ~probe.standing, part=0.1, cost=40)
    if not len(rows):
        return moot(name, "masking", "no sample fell within the radius")
    found = probe.search(rows, threat.model_copy(update={"eps": LARGER * threat.eps}))
    arms.margin(found, found.standing(), steps=12)
    arms.restarts(found, found.standing(), starts="nearest", steps=20)  # around the corners of the box
    says = "at three times the radius gradients failed on {hits} of {tried} samples that fell within the radius itself"
    return counted(name, "masking", rows[~found.fooled], len(rows), 0.2, says)


def misfit(probe: Probe) -> Sign:
    """Do the slopes fit the answers? The margin's change over a small step against what its slope promises."""
    name = "slopes do not fit the answers"
    if probe.outcomes.draws > 1:
        return moot(name, "masking", "the model answers at random")
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
    told = (promised.abs() > resolved * scale) & ~tied(logits.detach(), y)
    if not told.any():
        return moot(name, "masking", "the slopes promise no change that could be measured")
    kept = (up - down) / promised
    hits = told & ~((kept > 1 / APART) & (kept < APART))
    says = "over a small step the answers on {hits} of {tried} samples change by less than a third, or more than three "
    says += "times, of what the slope promises"
    return counted(name, "masking", rows[hits], int(told.sum()), JUMPS, says)


def _small_step(grad: Tensor, threat: ThreatModel) -> Tensor:
    """A tenth of the radius up the slope; a fiftieth of the box where the radius counts features or there is none."""
    if threat.norm in ("linf", "l2"):
        return 0.1 * threat.eps * uphill(grad, threat)
    if threat.norm == "l1":
        return 0.1 * threat.eps * grad / per_sample(grad.flatten(1).abs().sum(1).clamp_min(1e-12), like=grad)
    return (threat.bounds[1] - threat.bounds[0]) / 50 * grad.sign()


def _says_one_thing(probe: Probe) -> bool:
    """Whether the model answers one class on every sample as it is, though there are more."""
    answer = torch.where(probe.outcomes.clean_correct, probe.y.cpu(), probe.outcomes.prediction)
    return len(answer.unique()) == 1 and len(probe.y.unique()) > 1
