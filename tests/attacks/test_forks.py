"""Ways that a model did not go: whose answers, whose slopes, and which decisions are any."""

import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel
from tasks.attacks.forks import DONE, PULL, Fork, forks
from tasks.attacks.search import margins, slope
from tasks.metrics import measure, views

ROWS, WAYS, CLASSES = 12, 3, 4
draw = torch.Generator().manual_seed(0)
GATE, NETS = torch.randn(5, WAYS, generator=draw), torch.randn(WAYS, 5, CLASSES, generator=draw)
X = torch.rand(ROWS, 5, generator=draw)
Y = torch.arange(ROWS) % CLASSES


def each(x):
    """What every net says, [B, WAYS, CLASSES]."""
    return torch.einsum("bf,kfc->bkc", x.square(), NETS)


def of(x, place):
    return each(x)[torch.arange(len(x)), place]


def one_by_one(x):
    """Each net is given the samples that are sent to it."""
    place, out = (x @ GATE).argmax(1), torch.zeros(len(x), CLASSES)
    for k in range(WAYS):
        rows = place == k
        if rows.any():
            out[rows] = x[rows].square() @ NETS[k]
    return out


def unseen(x):
    with torch.no_grad():
        place = (x @ GATE).argmax(1)
    return of(x, place)


CHOICES = {
    "argmax": lambda x: of(x, (x @ GATE).argmax(1)),
    "one after the other": one_by_one,
    "max": lambda x: of(x, (x @ GATE).max(1)[1]),
    "kept dimension": lambda x: of(x, (x @ GATE).argmax(1, keepdim=True)[:, 0]),
    "lowest": lambda x: of(x, (-(x @ GATE)).min(dim=1).indices),
    "topk": lambda x: of(x, (x @ GATE).topk(1).indices[:, 0]),
    "topk of the lowest": lambda x: of(x, (-(x @ GATE)).topk(1, largest=False).indices[:, 0]),
    "without gradients": unseen,
}


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def sloped(model, x):
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    return logits, slope(margins(logits, model.model(x).argmax(1)).sum(), leaf)


def by_hand(x, way):
    """The slope of the answer at the end of this way, if that is not wrong yet, and of what keeps the gate from it."""
    leaf = x.clone().requires_grad_()
    values, led = leaf @ GATE, each(leaf)[:, way]
    own, elsewhere = of(x, (x @ GATE).argmax(1)).argmax(1), values.argmax(1) != way
    gaps = values.amax(1, keepdim=True) - values
    spread = (led.amax(1) - led.mean(1)).detach()
    lead = margins(led, own)
    lead = torch.where(elsewhere & (lead < -DONE * spread), lead.detach(), lead)
    lead = lead + torch.where(elsewhere, PULL * spread * gaps[:, way] / gaps.mean().detach(), 0.0)
    return torch.autograd.grad(lead.sum(), leaf)[0]


@pytest.mark.parametrize("use", CHOICES)
@pytest.mark.parametrize("way", range(WAYS))
def test_a_way_keeps_the_model_s_answers_and_has_the_slopes_of_the_way_and_of_what_is_in_it(use, way):
    model = Model(CHOICES[use])
    logits, grad = sloped(Fork(model, 0, way), X)
    assert torch.allclose(logits, model(X), atol=1e-6)
    assert torch.allclose(grad, by_hand(X, way), atol=1e-5)


@pytest.mark.parametrize("use", CHOICES)
def test_every_way_is_found_those_first_that_take_the_least(use):
    found = forks(Model(CHOICES[use]), X)
    gaps = ((X @ GATE).amax(1, keepdim=True) - X @ GATE).mean(0)
    assert [fork.way for fork, _ in found] == gaps.argsort().tolist()
    for fork, elsewhere in found:
        assert torch.equal(elsewhere, (X @ GATE).argmax(1) != fork.way)


def compared(x):
    return torch.where((x.sum(1) > 2.5)[:, None], x.square() @ NETS[0], x.square() @ NETS[1])


def test_a_comparison_has_two_ways():
    model = Model(compared)
    lead = X.sum(1) - 2.5
    assert (lead > 0).any()
    assert (lead < 0).any()
    for fork, elsewhere in forks(model, X):
        assert torch.equal(elsewhere, (lead <= 0) if fork.way else (lead > 0))
        logits, grad = sloped(fork, X)
        assert torch.allclose(logits, model(X), atol=1e-6)
        led = X.square() @ NETS[1 - fork.way]
        kept = grad[~elsewhere]
        assert torch.allclose(kept, sloped(Fork(model, 9, 0), X)[1][~elsewhere])  # no such decision: its own slopes
        assert torch.equal(fork.led(X.clone().requires_grad_())[0].detach(), led)
    assert len(forks(model, X)) == 2


def second(x):
    """Two of three nets answer together."""
    top, places = (x @ GATE).topk(2)
    return (each(x).gather(1, places[:, :, None].expand(-1, -1, CLASSES)) * top.softmax(1)[:, :, None]).sum(1)


def test_of_several_places_the_last_gives_way():
    found = {fork.way: (fork, elsewhere) for fork, elsewhere in forks(Model(second), X)}
    order = (X @ GATE).argsort(1, descending=True)
    assert set(found) == {0, 1, 2}
    for way, (fork, elsewhere) in found.items():
        assert torch.equal(elsewhere, order[:, 2] == way)
        weights = (X @ GATE).topk(2)[0].softmax(1)
        places = torch.stack([order[:, 0], torch.where(elsewhere, way, order[:, 1])], 1)
        led = (each(X).gather(1, places[:, :, None].expand(-1, -1, CLASSES)) * weights[:, :, None]).sum(1)
        assert torch.allclose(fork.led(X.clone().requires_grad_())[0], led, atol=1e-6)


NONE = {
    "no decision": lambda x: x.square() @ NETS[0],
    "a place that nobody uses": lambda x: x @ NETS[0] + 0 * (x @ GATE).max(1)[0][:, None],
    "one for each feature": lambda x: torch.where(x > 0.5, x, 0 * x) @ NETS[0],
    "one that no input changes": lambda x: x @ NETS[0][:, :CLASSES] * float((GATE.sum(0) > 0).sum()),
    "places along the batch": lambda x: x @ NETS[0] + x[x.argmax(0)[:1]] @ NETS[1],
}


@pytest.mark.parametrize("function", NONE.values(), ids=NONE)
def test_there_is_no_way_where_nothing_is_decided_once_for_a_sample(function):
    assert forks(Model(function), X) == []


def test_no_samples_go_no_way():
    assert forks(Model(CHOICES["argmax"]), X[:0]) == []


class Guarded(nn.Module):
    """Where a first feature is high, an answer that nothing changes; else one that a second feature turns."""

    def forward(self, x):
        steep = torch.stack([torch.full_like(x[:, 1], 0.5), x[:, 1]], 1)
        flat = torch.stack([1 + 0 * x[:, 1], 0 * x[:, 1]], 1)
        return torch.where((x[:, 0] > 0.5)[:, None], flat + 0.01 * x[:, 2:], steep)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_falls_only_on_the_other_way_is_found_by_descents_alone(norm, monkeypatch):
    x = torch.tensor([0.55, 0.42, 0.5, 0.5]) + 0.02 * torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    y, threat = (
        torch.zeros(20, dtype=torch.long),
        ThreatModel(norm=norm, eps={"linf": 0.12, "l2": 0.2, "l1": 0.3}[norm]),
    )
    found = measure(Guarded(), x, y, threat=threat, suite=["margin"])
    assert found.fooled.all()
    monkeypatch.setattr(views, "forks", lambda *_: [])
    assert not measure(Guarded(), x, y, threat=threat, suite=["margin"]).fooled.any()
