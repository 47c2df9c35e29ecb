"""Models and settings that are out of the ordinary: measured as any other, or refused in words."""

import copy

import pytest
import torch
from torch import nn

from tasks.attacks import ATTACKS, ThreatModel
from tasks.data import digits
from tasks.errors import ModelRejected
from tasks.metrics import EvaluationConfig, evaluate, measure

LINF = ThreatModel(norm="linf", eps=0.1)
EPS = {"linf": 0.1, "l2": 0.3, "l1": 0.5, "l0": 2, "l0-pixels": 2, "unbounded": None}
FEW = {"hopskipjump": {"queries": 60}, "square": {"queries": 60}}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)).eval()


NET, X = network(), torch.rand(40, 1, 2, 3, generator=torch.Generator().manual_seed(0))
Y = NET(X).argmax(1)


def told(found):
    return found.fooled.tolist(), found.x_adv.tolist(), found.margin.tolist(), found.passes, found.problems


# --- torch's default of another precision ---


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("suite", ["quick", "standard"])
@pytest.mark.parametrize("norm", EPS)
def test_the_callers_default_precision_changes_nothing(norm, suite, doubles):
    threat, model = ThreatModel(norm=norm, eps=EPS[norm]), copy.deepcopy(NET)
    found = measure(model, X, Y, threat=threat, suite=suite)
    assert torch.get_default_dtype() == torch.float64
    assert found.x_adv.dtype == found.nearest.dtype == found.margin.dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    assert told(found) == told(measure(model, X, Y, threat=threat, suite=suite))


@pytest.mark.parametrize("norm", ["linf", "l0"])
@pytest.mark.parametrize("name", ATTACKS)
def test_nor_does_it_change_what_an_attack_finds_alone(name, norm, doubles):
    def attacked():
        rng, threat = torch.Generator().manual_seed(0), ThreatModel(norm=norm, eps=EPS[norm])
        return ATTACKS[name](NET, X, Y, threat=threat, rng=rng, **FEW.get(name, {}))

    found = attacked()
    torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, attacked())


def test_nor_a_report(doubles):
    config = EvaluationConfig(threats=(LINF, ThreatModel(norm="l0", eps=2)), suite="quick", critical_pairs=((0, 1),))
    reports = []
    for kind in (torch.float64, torch.float32):
        torch.set_default_dtype(kind)
        report, outcomes = evaluate(NET, X, Y, config)
        signs = [[(sign.name, sign.state) for sign in threat.soundness.signs] for threat in report.threats]
        reports.append((report.metrics(), signs, [told(found) for found in outcomes]))
    for values in reports:
        for key in [key for key in values[0] if key.endswith("seconds")]:
            del values[0][key]
    assert reports[0] == reports[1]


# --- buffers that do not keep their place ---


class Grows(nn.Module):
    """Remembers the mean of every batch."""

    def __init__(self):
        super().__init__()
        self.net = copy.deepcopy(NET)
        self.register_buffer("seen", torch.ones(2))

    def forward(self, x):
        self.seen = torch.cat([self.seen, x.detach().mean().view(1)])
        return self.net(x)


class Swells(Grows):
    """Does so in place."""

    def forward(self, x):
        self.seen.resize_(len(self.seen) + 1)[-1] = x.detach().mean()
        return self.net(x)


class Replaces(Grows):
    """Holds another tensor of the same shape after each batch."""

    def forward(self, x):
        self.seen = self.seen + x.detach().mean()
        return self.net(x)


class Fills(Grows):
    """Fills what was empty, at the first batch, and adds a buffer of another name."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def forward(self, x):
        if self.seen is None:
            self.seen = torch.zeros(1)
            self.register_buffer("late", torch.zeros(1), persistent=False)
        return self.net(x) + self.late


class Empties(Grows):
    """Lets go of its buffer."""

    def forward(self, x):
        self.seen = None
        return self.net(x)


def buffers(model):
    return [[(name, buffer) for name, buffer in part._buffers.items()] for part in model.modules()]


@pytest.mark.parametrize("kind", [Grows, Swells, Replaces, Fills, Empties])
def test_buffers_that_grow_come_or_go_are_as_before(kind):
    model = kind()
    before, values = buffers(model), copy.deepcopy(buffers(model))
    found = measure(model, X, Y, threat=LINF, suite="quick")
    assert told(found) == told(measure(NET, X, Y, threat=LINF, suite="quick"))
    for part, (was, value) in zip(buffers(model), zip(before, values, strict=True), strict=True):
        assert [name for name, _ in part] == [name for name, _ in was]
        assert all(now is then for (_, now), (_, then) in zip(part, was, strict=True))
        assert all(now is then or torch.equal(now, then) for (_, now), (_, then) in zip(part, value, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_s_growing_buffer_is_as_before():
    model = torch.jit.script(Grows())
    measure(model, X, Y, threat=LINF, suite="quick")
    assert model.seen.tolist() == [1, 1]


# --- programs without parameters or attributes ---


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_frozen_program_is_measured_as_the_model_that_it_was_made_of():
    x, y = (part[:80] for part in digits("test"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    y = model(x).argmax(1)
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(model)))
    config = EvaluationConfig(threats=(ThreatModel(eps=0.01), ThreatModel(norm="l2", eps=0.1)), suite="quick")
    report, found = evaluate(frozen, x, y, config)
    expected, by_model = evaluate(model, x, y, config)
    assert [outcome.problems for outcome in found] == [(), ()]
    for one, other in zip(found, by_model, strict=True):
        assert 0 < other.robust_accuracy < 1
        assert abs(one.robust_accuracy - other.robust_accuracy) <= 0.03  # it rounds in another order
    assert all(threat.soundness.sound for threat in report.threats)
    assert all(threat.soundness.sound for threat in expected.threats)


# --- batches of some sizes only ---


class OfTen(nn.Module):
    """A network that was exported for a batch of ten."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.view(10, 1, 2, 3))


class Written(nn.Module):
    """Returns what a message says to write."""

    def __init__(self, model, words):
        super().__init__()
        self.model, self.words = model, words

    def forward(self, x):
        return eval(self.words, {"torch": torch, "self": self, "x": x})


class AtMost(OfTen):
    def __init__(self, net, most):
        super().__init__(net)
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            raise RuntimeError("out of room")
        return self.net(x)


def test_a_model_for_batches_of_one_size_is_refused_with_how_to_wrap_it():
    with pytest.raises(ModelRejected, match=r"fails on x \[2, 1, 2, 3\], but takes 10 rows") as caught:
        measure(OfTen(NET), X, Y, threat=LINF, suite="quick")
    written = str(caught.value).partition("forward(self, x) returns ")[2].removesuffix(".")
    found = measure(Written(OfTen(NET), written), X, Y, threat=LINF, suite="quick")
    assert found.problems == ()
    assert found.fooled.tolist() == measure(NET, X, Y, threat=LINF, suite="quick").fooled.tolist()


def test_so_is_it_where_the_report_asks_it_first_about_its_classes():
    config = EvaluationConfig(threats=(LINF,), suite="quick", critical_pairs=((0, 1),))
    with pytest.raises(ModelRejected, match=r"fails on x \[2, 1, 2, 3\]: RuntimeError"):
        evaluate(OfTen(NET), X, Y, config)


@pytest.mark.parametrize(("most", "given"), [(2, {}), (2, {"draws": 1}), (32, {})], ids=str)
def test_a_model_for_small_batches_only_is_refused_with_the_shape_that_it_failed_on(most, given):
    with pytest.raises(ModelRejected, match=r"fails on x \[(32|40), 1, 2, 3\].*out of room.*any number of rows"):
        measure(AtMost(NET, most), X, Y, threat=LINF, suite="quick", **given)
