"""Slopes through choices: what a place leads to, and what every other place would have led to."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel, search
from tasks.attacks.labels import behind_labels
from tasks.attacks.straight_through import StraightThrough, steepened

ROWS, PLACES, OUT = 6, 4, 3
GATE = torch.randn(5, PLACES, generator=torch.Generator().manual_seed(4))
LED = torch.randn(PLACES, OUT, generator=torch.Generator().manual_seed(1))  # what each place leads to
X = torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(2))


def experts(x):
    """[B, PLACES, OUT]: each place's own answer, which depends on the sample."""
    return x.sum(1)[:, None, None] * LED


def masked(x):
    """Each place's answer where it is the highest, and 0 elsewhere."""
    place = (x @ GATE).argmax(1)
    return sum(torch.where((place == k)[:, None], experts(x)[:, k], torch.zeros(())) for k in range(PLACES))


USES = {
    "index": lambda x: experts(x)[torch.arange(len(x)), (x @ GATE).argmax(1)],
    "one hot": lambda x: (experts(x) * F.one_hot((x @ GATE).argmax(dim=1), PLACES)[:, :, None]).sum(1),
    "as floats": lambda x: torch.bmm(F.one_hot((x @ GATE).argmax(-1), PLACES)[:, None].float(), experts(x))[:, 0],
    "one hot as wide as needed": lambda x: (
        experts(x)[:, : int((x @ GATE).argmax(1).max()) + 1] * F.one_hot((x @ GATE).argmax(1))[:, :, None]
    ).sum(1),
    "gather": lambda x: experts(x).gather(1, (x @ GATE).argmax(1)[:, None, None].expand(-1, 1, OUT)).squeeze(1),
    "along": lambda x: torch.take_along_dim(experts(x), (x @ GATE).argmax(1).view(-1, 1, 1), dim=1).squeeze(1),
    "max": lambda x: experts(x)[torch.arange(len(x)), (x @ GATE).max(1)[1]],
    "max by name": lambda x: experts(x)[torch.arange(len(x)), torch.max(input=x @ GATE, dim=1).indices],
    "topk": lambda x: experts(x)[torch.arange(len(x)), (x @ GATE).topk(1).indices.squeeze(1)],
    "as other whole numbers": lambda x: experts(x)[
        torch.arange(len(x)), (x @ GATE).argmax(1).detach().to(torch.int32).clone().long()
    ],
    "axis": lambda x: experts(x)[torch.arange(len(x)), (x @ GATE).argmax(axis=1)],
    "lowest": lambda x: experts(x)[torch.arange(len(x)), (-(x @ GATE)).argmin(1)],
    "where": masked,
    "equal to each": lambda x: (
        experts(x) * ((x @ GATE).argmax(1, keepdim=True) == torch.arange(PLACES)).float()[:, :, None]
    ).sum(1),
}
TABLES = {
    "row": lambda x: LED[(x @ GATE).argmax(1)],
    "embedding": lambda x: F.embedding((x @ GATE).argmax(1), LED),
    "scattered": lambda x: torch.zeros(len(x), PLACES).scatter(1, (x @ GATE).argmax(1, keepdim=True), 1.0) @ LED,
}


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def by_hand(x, led):
    """The hard choice's slope and, besides, a softmax's, as steep as the values are near to the highest in the mean."""
    values = x @ GATE
    near = (values.amax(1, keepdim=True) - values).mean(1, keepdim=True).detach()
    soft = (values / near).softmax(1)
    weights = F.one_hot(values.argmax(1), PLACES) + soft - soft.detach()
    return torch.einsum("bk,bko->bo", weights, led)


@pytest.mark.parametrize("use", [*USES, *TABLES])
def test_a_choice_has_a_softmax_s_slope_however_it_is_used(use):
    function = {**USES, **TABLES}[use]
    view = steepened(Model(function), X)
    assert view is not None
    assert view.chosen
    assert not view.compared
    leaf, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    answers = view(leaf)
    assert torch.equal(answers, function(X))
    led = experts(other) if use in USES else LED.expand(ROWS, -1, -1)
    expected = search.slope((by_hand(other, led) * torch.arange(1.0, 4.0)).sum(), other)
    assert torch.allclose(search.slope((answers * torch.arange(1.0, 4.0)).sum(), leaf), expected, atol=1e-4)
    assert expected.norm() > 1


def test_a_place_that_leads_nowhere_spoils_no_answer():
    least = int((X @ GATE).argmax(1).bincount(minlength=PLACES).argmin())
    led = LED.clone()
    led[least] = float("-inf")
    model = Model(lambda x: led[(x @ GATE).masked_fill(torch.arange(PLACES) == least, -9.0).argmax(1)])
    view, leaf = steepened(model, X), X.clone().requires_grad_()
    answers = view(leaf)
    assert torch.equal(answers, model(X))
    assert search.slope(answers.sum(), leaf).isfinite().all()


def test_a_place_that_could_not_be_another_keeps_its_answer_and_gets_no_slope():
    fewer = int((X @ GATE).argmax(1).max())  # the last place of all is never chosen
    gate = torch.cat([GATE[:, : fewer + 1], GATE[:, :1] - 9.0], 1)
    model = Model(lambda x: LED[: fewer + 1][(x @ gate).argmax(1)] + x.sum(1, keepdim=True))
    assert steepened(model, X) is None
    leaf = X.clone().requires_grad_()
    assert torch.equal(StraightThrough(model, steep=True)(leaf), model(X))


@pytest.mark.parametrize("function", [lambda x: x @ GATE, lambda x: (x @ GATE).amax(1, keepdim=True).expand(-1, 2)])
def test_a_model_that_makes_no_use_of_a_choice_is_not_opened(function):
    assert steepened(Model(function), X) is None


def test_an_answer_that_is_a_label_gets_the_slope_of_the_values_it_was_chosen_from():
    view, leaf = StraightThrough(Model(lambda x: F.one_hot((x @ GATE).argmax(1), PLACES))), X.clone().requires_grad_()
    answers = view(leaf)
    assert torch.equal(answers.detach(), F.one_hot((X @ GATE).argmax(1), PLACES).float())
    assert torch.allclose(search.slope(answers[:, 2].sum(), leaf), GATE[:, 2].expand(ROWS, -1))


def counted_by_numpy(x):
    with torch.no_grad():
        return F.one_hot(torch.from_numpy((x @ GATE).numpy().argmax(1)), PLACES).float()


def unseen(x):
    with torch.no_grad():
        return F.one_hot((x @ GATE).argmax(1), PLACES).float()


LABELS = {
    "one hot": lambda x: F.one_hot((x @ GATE).argmax(1), PLACES).float(),
    "equal": lambda x: ((x @ GATE) == (x @ GATE).max(1, keepdim=True).values).float() * 9,
    "no_grad": unseen,
    "detached": lambda x: F.one_hot((x @ GATE).detach().argmax(1), PLACES).float(),
}


@pytest.mark.parametrize("answer", LABELS.values(), ids=LABELS)
def test_behind_labels_stand_the_values_that_were_ranked(answer):
    view, leaf = behind_labels(Model(answer), X), X.clone().requires_grad_()
    assert view is not None
    values = view(leaf)
    assert torch.equal(values, X @ GATE)
    assert torch.allclose(search.slope(values[:, 1].sum(), leaf), GATE[:, 1].expand(ROWS, -1))


OTHERS = {
    "no choice": lambda x: x @ GATE,
    "another order": lambda x: F.one_hot((x @ GATE).argmax(1), PLACES).float().flip(1),
    "another width": lambda x: F.one_hot((x @ GATE).argmax(1), PLACES + 1).float(),
    "not finite": lambda x: F.one_hot((x @ GATE).log().argmax(1), PLACES).float(),
    "by numpy": counted_by_numpy,
    "of a number": lambda x: F.one_hot((x.data @ GATE).argmax(1), PLACES).float(),
}


@pytest.mark.parametrize("answer", OTHERS.values(), ids=OTHERS)
def test_where_the_last_choice_is_not_the_answer_nothing_stands_behind_it(answer):
    assert behind_labels(Model(answer), X) is None


@pytest.mark.parametrize("coarse", [False, True])
def test_a_search_that_begins_again_keeps_what_fell_and_nothing_else(coarse):
    first, second = Model(LABELS["one hot"]), Model(lambda x: x @ GATE)
    exact, y = first if coarse else None, (X @ GATE).argmax(1)
    found = search.Search(
        first, X, y, threat=ThreatModel(eps=0.1), rng=torch.Generator().manual_seed(0), exact=exact, straight=0.5
    )
    near = X + 0.05 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    found.nearest[[0, 2]] = near[[0, 2]]
    found.fooled[2], found.margin[2], found.steps, found.aimed[:] = True, -3.0, 9, True
    found.begin_again(second)
    assert found.exact is (second if coarse else None)
    assert torch.equal(found.clean, X @ GATE)
    assert torch.equal(found.nearest[2], near[2])
    assert found.margin[2] == -3
    at_x, at_near = (search.margins(points @ GATE, y) for points in (X, near))
    assert found.margin[0] == pytest.approx(float(min(at_x[0], at_near[0])))
    assert torch.equal(found.nearest[0], near[0] if at_near[0] < at_x[0] else X[0])
    others = torch.tensor([1, 3, 4, 5])
    assert torch.equal(found.nearest[others], X[others])
    assert torch.allclose(found.margin[others], at_x[others])
    assert found.straight is None
    assert found.steps == int(found.level) == int(found.aimed.sum()) == 0
