"""Stored examples shown to a model: hand counts, closed forms, and what withstanding them does not prove."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.data.digits import digits
from tasks.errors import EvidenceBroken, ModelRejected, WrongInput
from tasks.metrics import measure
from tasks.metrics.corpus import Corpus, begin_at, replay
from tasks.metrics.transfer import transfer

LINF = ThreatModel(norm="linf", eps=0.1)
ROWS = torch.tensor([7, 3, 11, 5])  # places in the split, in no order
X = torch.tensor([[0.45, 0.55], [0.45, 0.45], [0.55, 0.55], [0.45, 0.52]])
Y = torch.tensor([0, 0, 1, 0])


def plane(feature: int, slope: float = 10.0) -> nn.Linear:
    """Class 1 where this one of two features is above 0.5; slope is the margin's."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()[1, feature] = slope
        model.bias.copy_(torch.tensor([0.0, -slope / 2]))
    return model


def corpus_of(entries: list[tuple[int, int, list[float], int]], threat: ThreatModel = LINF) -> Corpus:
    """A corpus of (version, row, x_adv, y), read from its file: so nothing but the file's own checks has seen them."""
    version, rows, x_adv, y = zip(*entries, strict=True)
    held = Corpus(*(torch.tensor(part) for part in (rows, x_adv, y, version)), "0123456789abcdef", threat)
    return Corpus.from_bytes(held.to_bytes())


STORED = corpus_of(
    [
        (1, 7, [0.52, 0.55], 0),
        (1, 7, [0.48, 0.46], 0),
        (1, 3, [0.51, 0.53], 0),
        (1, 99, [0.9, 0.9], 1),
        (2, 7, [0.54, 0.48], 0),
        (2, 11, [0.52, 0.48], 1),
    ]
)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_replay_matches_a_hand_count_in_every_precision(kind):
    found = replay(plane(0).to(kind), STORED, X.to(kind), Y, rows=ROWS)
    assert found.fooled.tolist() == [True, True, False, False]
    assert found.tried.tolist() == [True, True, True, False]
    assert (found.standing.value, found.standing.n) == (pytest.approx(1 / 3), 3)
    assert found.of_version == {1: (2, 3), 2: (1, 2)}  # row 99 is not measured
    assert found.passes == 2 * 9 + 4 + 5  # asked twice whether it answers at random, then once each
    other = replay(plane(1).to(kind), STORED, X.to(kind), Y, rows=ROWS)  # wrong on rows 7 and 5 as they are
    assert other.fooled.tolist() == [True, True, True, True]
    assert other.standing.value == 0
    assert other.of_version == {1: (2, 3), 2: (1, 2)}


def test_a_corpus_without_the_measured_rows_says_nothing():
    found = replay(plane(0), STORED, X[3:], Y[3:], rows=ROWS[3:])
    assert (found.standing, found.of_version, found.tried.tolist()) == (None, {}, [False])
    assert torch.equal(begin_at(plane(0), STORED, X[3:], y=Y[3:], rows=ROWS[3:]), X[3:])


@pytest.mark.parametrize(
    ("row", "x_adv", "y", "says"),
    [
        (7, [0.56, 0.55], 0, "row 7 is none under L-inf 0.1: it left the ball: moved 0.11"),
        (3, [0.52, 0.45], 1, "row 3 is labelled 1, the sample 0"),
    ],
)
def test_an_example_outside_its_ball_or_with_another_label_is_refused_wherever_it_is_used(row, x_adv, y, says):
    moved = corpus_of([(1, 5, [0.45, 0.45], 0), (1, row, x_adv, y)])
    for use in (replay, begin_at):
        with pytest.raises(EvidenceBroken, match=says):
            use(plane(0), moved, X, y=Y, rows=ROWS)
    if y == 0:
        with pytest.raises(EvidenceBroken, match=says):
            transfer({1: plane(0)}, moved.by_version(), X, Y, rows=ROWS, threat=LINF)
    assert replay(plane(0), moved, X[3:], Y[3:], rows=ROWS[3:]).of_version == {1: (0, 1)}


@pytest.mark.parametrize(
    "threat",
    [ThreatModel(norm="l0", eps=1), ThreatModel(norm="l2", eps=0.2, mask=(True, False, False))],
    ids=str,
)
def test_samples_in_double_precision_have_not_moved_where_the_file_only_rounds_them(threat):
    x = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8
    x_adv = x + torch.tensor([0.1, 0.0, 0.0])
    rows, y = torch.arange(20), (x[:, 0] > 0.4).long()
    held = Corpus.empty((3,), data_digest="d", threat=threat).with_found(1, rows, x_adv, y)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 3, [1.0, 0.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, -0.4]))
    crossed = (x[:, 0] < 0.4) & (x[:, 0] > 0.3)
    assert torch.equal(replay(model, held, x, y, rows=rows).fooled, crossed)
    assert begin_at(model, held, x, y=y, rows=rows).dtype == torch.float64


class Noisy(nn.Module):
    """The plane x0 = 0.5, told wrong in a share of its answers."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.plane, self.wrong = plane(0), wrong

    def forward(self, x: Tensor) -> Tensor:
        logits = self.plane(x)
        return torch.where(torch.rand(len(x), 1) < self.wrong, logits.flip(1), logits)


@pytest.mark.parametrize(("wrong", "standing"), [(0.1, 1.0), (0.9, 0.0)])
def test_a_model_that_answers_at_random_is_judged_by_majority(wrong, standing):
    n = 200
    x, rows, y = torch.full((n, 2), 0.4), torch.arange(n), torch.zeros(n, dtype=torch.long)
    held = Corpus.empty((2,), data_digest="d", threat=LINF).with_found(1, rows, x + 0.05, y)
    found = replay(Noisy(wrong), held, x, y, rows=rows)
    assert found.standing.value == standing
    assert found.passes == 2 * 32 + 30 * 2 * n


class Broken(nn.Module):
    """Class 0, by a logit that is not finite beyond x0 = 0.5."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1 - x[:, 0], torch.where(x[:, 0] > 0.5, self.logit, x[:, 0])], dim=1)


def test_logits_that_are_not_finite_count_as_wrong_and_are_no_start():
    held = corpus_of([(1, 7, [0.52, 0.55], 0), (1, 3, [0.48, 0.45], 0)])
    assert replay(Broken(-torch.inf), held, X[:2], Y[:2], rows=ROWS[:2]).fooled.tolist() == [True, False]
    both = corpus_of([(1, 7, [0.52, 0.55], 0), (1, 7, [0.48, 0.55], 0)])
    for logit in (-torch.inf, torch.inf, torch.nan):
        begin = begin_at(Broken(logit), both, X[:1], y=Y[:1], rows=ROWS[:1])
        assert begin[0, 0].item() == pytest.approx(0.48)


def test_the_start_is_the_stored_example_of_smallest_margin_and_the_first_of_equals():
    on_first = begin_at(plane(0), STORED, X, y=Y, rows=ROWS)
    assert torch.allclose(on_first, torch.tensor([[0.54, 0.48], [0.51, 0.53], [0.52, 0.48], [0.45, 0.52]]))
    on_second = begin_at(plane(1), STORED, X, y=Y, rows=ROWS)
    assert torch.allclose(on_second[0], torch.tensor([0.52, 0.55]))
    tied = corpus_of([(1, 7, [0.5, 0.5], 0), (1, 7, [0.52, 0.6], 0), (2, 7, [0.52, 0.5], 0)])
    assert torch.allclose(begin_at(plane(0), tied, X, y=Y, rows=ROWS)[0], torch.tensor([0.52, 0.6]))
    assert begin_at(plane(0).half(), STORED, X.half(), y=Y, rows=ROWS).dtype == torch.float32
    assert X[0].tolist() == pytest.approx([0.45, 0.55])  # the samples themselves are as they were


def test_the_model_is_left_exactly_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    model[0].weight.requires_grad_(False)
    model[3](torch.ones(1, 8)).sum().backward()
    before, flags = copy.deepcopy(model), [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    replay(model, STORED, X, Y, rows=ROWS)
    begin_at(model, STORED, X, y=Y, rows=ROWS)
    transfer({1: model}, STORED.by_version(), X, Y, rows=ROWS, threat=LINF)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rows": ROWS[:3]}, WrongInput, "same number of samples"),
        ({"rows": torch.tensor([7, 7, 3, 5])}, WrongInput, "a row of its own"),
        ({"x": X[:0], "y": Y[:0], "rows": ROWS[:0]}, WrongInput, "one at least"),
        ({"x": X[:, :1]}, WrongInput, "the data that the examples were made of"),
        ({"x": X * float("nan")}, WrongInput, "not finite"),
        ({"y": Y.float()}, WrongInput, "integers"),
        ({"x": X * 255}, EvidenceBroken, "left the ball"),
        ({"model": nn.Linear(3, 2)}, ModelRejected, "fails on x"),
        ({"model": nn.Linear(2, 1)}, ModelRejected, "returned"),
        ({"model": nn.Flatten(0)}, ModelRejected, "."),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, error, says):
    given = {"model": plane(0), "x": X, "y": Y, "rows": ROWS} | change
    for use in (replay, begin_at):
        with pytest.raises(error, match=says):
            use(corpus=STORED, **given)


def trained(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, lr: float = 3e-3) -> nn.Module:
    model = copy.deepcopy(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


@pytest.fixture(scope="module")
def attacked():
    """A plain model of the digits, the samples, and the corpus of what fooled it."""
    torch.manual_seed(0)
    train, (x, y) = digits("train"), digits("test")
    train, x, y, rows = (train[0].flatten(1), train[1]), x.flatten(1)[:120], y[:120], torch.arange(120)
    model = trained(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), *train, steps=150)
    found = measure(model, x, y, threat=LINF, suite="quick")
    hit = found.fooled & found.clean_correct
    held = Corpus.empty((64,), data_digest="d", threat=LINF).with_found(1, rows[hit], found.x_adv[hit], y[hit])
    assert replay(model, held, x, y, rows=rows).standing.value == 0
    return model, train, x, y, rows, held


def test_a_model_retrained_on_the_stored_examples_withstands_all_of_them_and_falls_to_a_fresh_attack(attacked):
    model, train, x, y, rows, held = attacked
    fault = trained(model, torch.cat([train[0], held.x_adv]), torch.cat([train[1], held.y]), steps=300)
    replayed = replay(fault, held, x, y, rows=rows)
    fresh = measure(fault, x[replayed.tried], y[replayed.tried], threat=LINF, suite="quick")
    assert replayed.standing.value > 0.95
    assert fresh.clean_accuracy > 0.95
    assert fresh.robust_accuracy < 0.25
    assert replayed.standing.lo > fresh.robust_accuracy + 0.5


def test_an_attack_that_begins_at_stored_examples_finds_no_less_on_a_slightly_changed_model(attacked):
    model, train, x, y, rows, held = attacked
    near = trained(model, *train, steps=5, lr=1e-3)
    begin = begin_at(near, held, x, y=y, rows=rows)
    warm = measure(near, x, y, threat=LINF, suite="warm", warm=begin)
    cold = measure(near, x, y, threat=LINF, suite="warm", warm=x)
    assert warm.robust_accuracy <= cold.robust_accuracy
    assert warm.passes < measure(near, x, y, threat=LINF).passes / 3
    assert warm.fooled[replay(near, held, x, y, rows=rows).fooled].all()
