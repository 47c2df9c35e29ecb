"""Was the right thing measured? Labels that fit, answers that depend on nothing but the input, successes that hold."""

import torch
from torch import Tensor

from tasks.metrics.cell import judged
from tasks.metrics.draws import seed_all, untouched_draws
from tasks.metrics.signs.probe import LEAST, SAME, SAME_HALF, Probe, counted, moot, raised, said_unchanged
from tasks.metrics.soundness import Sign
from tasks.statistics import mcnemar

ONE_ANSWER = "one answer to everything"


def labels(probe: Probe) -> Sign:
    """Do labels and classes fit? A renaming of the classes that is learnt on half of the samples mends the other half.

    A renaming gives each class one other name, so a model that merely prefers a class is not taken for one.
    """
    name, found, y = "labels do not fit", probe.outcomes, probe.y.cpu()
    if len(y.unique()) == 1:
        return moot(name, "measurement", "all samples are of one class")
    answer = said_unchanged(found, y)
    classes, learnt = int(max(answer.max(), y.max())) + 1, torch.arange(len(y)) % 2 == 0
    renamed = _renaming(answer[learnt], y[learnt], classes)
    before, after = answer[~learnt] == y[~learnt], renamed[answer[~learnt]] == y[~learnt]
    if not len(before):
        return moot(name, "measurement", "there is one sample")
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    figure, p = (gained - lost) / len(before), mcnemar(lost, gained)
    alarm = figure > 0.3 and p < 0.01
    says = f"renaming the model's classes, as half of the samples suggest, mends {gained} and spoils {lost} of "
    says += f"the other {len(before)} (exact p {p:.2g})"
    wrong = (~found.clean_correct).nonzero().flatten()
    return raised(name, "measurement", alarm, figure, 0.3, wrong if alarm else wrong[:0], says)


def one_answer(probe: Probe) -> Sign:
    """Does the model answer one class, whatever it is asked? What never changes its answer cannot be fooled."""
    name, found, y = ONE_ANSWER, probe.outcomes, probe.y.cpu()
    if len(y.unique()) == 1:
        return moot(name, "failure", "all samples are of one class")
    answer = said_unchanged(found, y)
    wrong, most = (~found.clean_correct).nonzero().flatten(), int(answer.mode().values)
    figure = float((answer == most).double().mean())
    says = f"on {100 * figure:.1f} % of the samples as they are the model answers class {most}, "
    says += f"which {100 * float((y == most).double().mean()):.1f} % of them are"
    return raised(name, "failure", figure == 1, figure, 1.0, wrong if figure == 1 else wrong[:0], says)


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
        return moot(name, "measurement", "the model answers at random")
    rows = probe.pick(torch.ones_like(probe.correct), part=0.04, cost=3)
    points = probe.points(rows)
    together = probe.meter.once(points)
    try:
        alone = torch.cat([probe.meter.once(point) for point in points.split(1)])
    except Exception as failure:  # a batch of one is an input like any other
        says = f"the model raised {type(failure).__name__} for a batch of one"
        return raised(name, "measurement", True, 1.0, 0.0, rows, says)
    differ = _differ(together, alone)
    says = "{hits} of {tried} samples get another answer alone than in company"
    return counted(name, "measurement", rows[differ], len(rows), 0.0, says, least=1)


@torch.no_grad()
def reseeded(probe: Probe) -> Sign:
    """Does the answer follow from the global random state, though it looks constant?"""
    name = "answers depend on the seed"
    if probe.outcomes.draws > 1:
        return moot(name, "measurement", "the model answers at random, and is judged so")
    rows = probe.pick(torch.ones_like(probe.correct), part=0.04, cost=4)
    points = probe.points(rows)
    with untouched_draws():
        first = probe.meter.once(points)
        differ = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for _ in range(3):
            seed_all(int(torch.randint(2**62, (1,), generator=probe.rng, device=rows.device)))
            differ |= _differ(first, probe.meter.once(points))
    says = "{hits} of {tried} samples get another answer under another global seed"
    return counted(name, "measurement", rows[differ], len(rows), 0.0, says, least=1)


@torch.no_grad()
def reverified(probe: Probe) -> Sign:
    """Do the successes hold when they are asked again?"""
    name, fooled = "successes do not hold", probe.correct & probe.outcomes.fooled.to(probe.x.device)
    dropped = probe.outcomes.dropped
    if probe.outcomes.draws == 1 and dropped is not None and int(dropped.sum()) > max(0.01 * len(dropped), LEAST - 1):
        says = "the search fooled {hits} of {tried} samples that the judge, asked the same, answered rightly"
        return counted(name, "measurement", dropped.nonzero().flatten(), len(dropped), 0.01, says)
    rows = probe.pick(fooled, part=0.08, cost=3)
    if not len(rows):
        return moot(name, "measurement", "nothing was fooled")
    again = judged(probe.meter, probe.x_adv[rows])[1]
    says = "{hits} of {tried} successes did not hold when the model was asked again"
    limit = 0.01 if probe.outcomes.draws == 1 else 0.25  # a narrow majority may turn
    return counted(name, "measurement", rows[again == probe.y[rows]], len(rows), limit, says)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which answers [R, C] are not the same: bool [R]."""
    same = SAME if a.dtype.itemsize >= 4 else SAME_HALF
    a, b = a.float().nan_to_num(), b.float().nan_to_num()
    return ~((a - b).abs().amax(1) <= same * a.abs().amax(1).clamp_min(1e-6))
