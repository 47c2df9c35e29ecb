"""Models that draw from the global generators of torch, numpy and Python: repeatable, and the caller's draws go on."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel
from tasks.errors import WrongInput
from tasks.metrics import binarise, draws, examine, measure, measure_pairs, security_curve

LINF = ThreatModel(norm="linf", eps=0.2)
LIBRARIES = {
    "numpy": lambda n: np.random.normal(size=n),
    "python": lambda n: [random.gauss(0, 1) for _ in range(n)],
    "torch": lambda n: torch.randn(n),
}


class Shaken(nn.Module):
    """A linear model of 4 features and 3 classes, whose input shakes by what a library draws."""

    def __init__(self, library):
        super().__init__()
        self.linear, self.draw = nn.Linear(4, 3), LIBRARIES[library]

    def forward(self, x):
        return self.linear(x + 0.1 * torch.as_tensor(self.draw(x.numel()), dtype=x.dtype).view_as(x))


def shaken(library):
    torch.manual_seed(0)
    model, x = Shaken(library), torch.rand(60, 4)
    return model, x, model.linear(x).argmax(1)


def states():
    kind, key, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (kind, key.tolist(), *rest)


def scrambled(seed):
    """The caller's own generators, somewhere else each time, with half a pair of normal numbers left over."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    np.random.normal(), random.gauss(0, 1)


def attack(model, x, y, *, threat, rng):
    """Asks the model a few times at random points."""
    for _ in range(3):
        x_adv = (x + threat.eps * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(0, 1)
        model(x_adv)
    return x_adv


def told(found):
    return found.draws, found.fooled.tolist(), found.x_adv.tolist(), found.margin.tolist(), found.passes, found.problems


@pytest.mark.parametrize("suite", ["quick", ["pgd"], [f"{__name__}:attack"]], ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_seed_gives_the_same_result_and_another_seed_another(library, suite):
    model, x, y = shaken(library)
    found = []
    for place, seed in enumerate((3, 3, 4)):
        scrambled(place)
        found.append(told(measure(model, x, y, threat=LINF, suite=suite, seed=seed)))
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert found[0][0] == 10


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_callers_generators_are_left_where_they_were(library):
    model, x, y = shaken(library)
    scrambled(5)
    before = states()
    found = measure(model, x, y, threat=LINF, suite=["pgd", f"{__name__}:attack"])
    assert states() == before
    found, curve = security_curve(model, x, y, outcomes=found)
    examine(model, x, y, outcomes=found, curve=curve)
    assert states() == before
    with pytest.raises(WrongInput, match="critical_pairs"):
        measure_pairs(model, x, y, [(0, 9)], threat=LINF)
    assert states() == before


@pytest.mark.parametrize("library", LIBRARIES)
def test_curve_and_signs_are_repeatable_too(library):
    model, x, y = shaken(library)
    outcomes, found = measure(model, x, y, threat=LINF, suite="quick"), []
    for place in range(2):
        scrambled(place)
        after, curve = security_curve(model, x, y, outcomes=outcomes)
        after, curve, soundness = examine(model, x, y, outcomes=after, curve=curve)
        found.append((told(after), curve, soundness.signs, soundness.steps))
    assert found[0] == found[1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_drawn_in_an_attack_s_own_process_is_not_drawn_again_in_this_one(library, monkeypatch):
    model, x, y = shaken(library)
    monkeypatch.setattr("tasks.metrics.foreign.can_fork", lambda: False)
    here = measure(model, x, y, threat=LINF, suite=[f"{__name__}:attack"])
    monkeypatch.undo()
    apart = measure(model, x, y, threat=LINF, suite=[f"{__name__}:attack"])
    assert told(apart) == told(here)


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_can_be_hidden_in_a_model_that_answers_at_random(library):
    model, x, _ = shaken(library)
    with pytest.raises(WrongInput, match="answers at random"):
        binarise(model, x, threat=LINF, samples=2)


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**64 - 1, 2**63])
def test_every_seed_that_torch_takes_seeds_all_three(seed):
    with draws.untouched_draws():
        drawn = []
        for _ in range(2):
            draws.seed_all(seed)
            drawn.append([torch.rand(()).item(), np.random.rand(), random.random()])
        torch.manual_seed(seed)
        assert torch.rand(()).item() == drawn[0][0]
        draws.seed_all(seed ^ 1)
        other = [torch.rand(()).item(), np.random.rand(), random.random()]
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(other)


class Reads(nn.Module):
    """Looks constant, and follows the state of numpy's or Python's generator without moving it."""

    def __init__(self, library):
        super().__init__()
        self.linear, self.library = nn.Linear(4, 3), library

    def forward(self, x):
        state = np.random.get_state()[1][7] if self.library == "numpy" else random.getstate()[1][7]
        return self.linear(x) + 0.1 * nn.functional.one_hot(torch.tensor(int(state) % 3), 3)


@pytest.mark.parametrize("library", ["numpy", "python"])
def test_answers_that_follow_from_the_state_of_any_of_them_are_found_out(library):
    torch.manual_seed(0)
    model, x = Reads(library), torch.rand(60, 4)
    y = model.linear(x).argmax(1)
    found = measure(model, x, y, threat=LINF, suite="quick")
    before = replace(found, fooled=~found.clean_correct, x_adv=x, nearest=x)  # as if under one seed all had stood
    after, _, soundness = examine(model, x, y, outcomes=before)
    sign = next(sign for sign in soundness.signs if sign.name == "answers depend on the seed")
    assert sign.first == "alarm"
    afresh, rest = soundness.steps[0], soundness.steps[1:]
    assert 0 < afresh.fooled <= found.fooled.sum()  # but for what the signs found on their way
    assert after.passes == before.passes + afresh.passes + sum(step.passes for step in rest)
