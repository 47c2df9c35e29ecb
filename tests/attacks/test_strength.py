"""How much of what is in reach each attack finds, where that is known; and what an attack may not ask for."""

import functools

import pytest
import torch
from torch import nn

from tasks.attacks import ATTACKS, AttackConfig, ThreatModel
from tasks.attacks.rows import run_rows
from tasks.attacks.search import ANY, Search
from tasks.data import digits
from tasks.defences import plain
from tasks.metrics import measure
from tasks.models import TrainingConfig, fit
from tasks.models.networks import mlp

SHAPE = (3, 4, 4)
FEATURES = 48
SCALE = tuple(torch.linspace(0.25, 1.75, FEATURES)[torch.arange(FEATURES) * 5 % FEATURES].tolist())
MASK = tuple(i % 4 > 0 for i in range(FEATURES))
SIZES = {"linf": 0.07, "l2": 0.4, "l1": 1.2, "l0": 2, "l0-pixels": 1}  # where some are out of reach or nearly so


def linear() -> nn.Module:
    """Two classes; the boundary goes through the middle of the box."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 2)).requires_grad_(False)
    model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    return model


def drawn(model: nn.Module, count: int = 100):
    """Of four times as many random inputs those that are furthest from the boundary, and their classes."""
    x = 0.5 + 0.2 * torch.randn(4 * count, *SHAPE, generator=torch.Generator().manual_seed(1))
    x = x.clamp(0.05, 0.95)
    lead = model(x).diff(dim=1).abs().squeeze(1)
    x = x[lead.argsort(descending=True)[:count]]
    return x, model(x).argmax(1)


def in_reach(model: nn.Module, x, y, threat):
    """Which samples some input within eps fools, by more than rounding: the margin against the most that it can fall.

    In L0 by the best features or pixels at the box's edge; else the gap against eps times the slope's dual norm, in a
    box that is too far off to matter, or in L1 is met by the steepest features first.
    """
    margin = (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None])).squeeze(1)
    slope = (model[1].weight[1 - y] - model[1].weight[y]) * torch.tensor(threat.mask or (True,) * FEATURES)
    flat, scale = x.flatten(1), torch.tensor(threat.scale or (1.0,) * FEATURES)
    room = torch.where(slope > 0, 1 - flat, flat)
    gain = slope.abs() * room
    if threat.norm == "l0-pixels":
        gain = gain.view(-1, *SHAPE).sum(1).flatten(1)
    if threat.norm.startswith("l0"):
        most = gain.topk(int(threat.eps), dim=1).values.sum(1)
    elif threat.norm == "l1":
        order = (slope.abs() * scale).argsort(1, descending=True)
        rooms = (room / scale).gather(1, order)
        spent = (threat.eps - rooms.cumsum(1) + rooms).clamp_min(0).minimum(rooms)
        most = (spent * (slope.abs() * scale).gather(1, order)).sum(1)
    elif threat.norm == "linf":
        most = (slope.abs() * (threat.eps * scale).minimum(room)).sum(1)
    else:
        most = threat.eps * (slope * scale).norm(dim=1)
    return margin < 0.99 * most


def found(name: str, threat: ThreatModel, seed: int, **params) -> tuple[float, float]:
    """The share of the samples in reach that fall, and how many of all are in reach."""
    model = linear()
    x, y = drawn(model)
    x_adv = ATTACKS[name](model, x, y, threat=threat, rng=torch.Generator().manual_seed(seed), **params)
    there = in_reach(model, x, y, threat)
    return (model(x_adv).argmax(1) != y)[there].float().mean().item(), there.float().mean().item()


SPECIAL = {"scale": SCALE, "mask": MASK}
ASKS = {"queries": 500}
STRONG = [  # attack, parameters, norm, threat, and the share of those in reach that must fall, whatever the seed
    ("hopskipjump", ASKS, "linf", {}, 0.6),
    ("hopskipjump", ASKS, "linf", SPECIAL, 0.7),
    ("hopskipjump", ASKS, "l2", {}, 0.8),
    ("hopskipjump", ASKS, "l2", SPECIAL, 0.8),
    ("hopskipjump", ASKS, "l1", {}, 0.75),
    ("hopskipjump", ASKS, "l1", SPECIAL, 0.7),
    ("hopskipjump", ASKS, "l0", {}, 0.8),
    ("hopskipjump", ASKS, "l0", SPECIAL, 0.7),
    ("hopskipjump", ASKS, "l0-pixels", {}, 0.9),
    ("hopskipjump", ASKS, "l0-pixels", SPECIAL, 0.85),
    ("square", {"queries": 200}, "l2", {"eps": 0.5}, 0.4),
    ("square", {"queries": 200}, "l1", {}, 0.4),
    ("square", {"queries": 200}, "l0", {}, 0.75),
    ("sigma-zero", {}, "l0", {}, 0.9),
    ("sigma-zero", {}, "l0", SPECIAL, 0.9),
]
STRONG_IDS = [f"{name}-{norm}-{'scaled-masked' if kind is SPECIAL else 'plain'}" for name, _, norm, kind, _ in STRONG]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "params", "norm", "kind", "least"), STRONG, ids=STRONG_IDS)
def test_most_of_what_is_in_reach_falls_and_far_more_than_noise_finds(name, params, norm, kind, least, seed):
    threat = ThreatModel(**{"norm": norm, "eps": SIZES[norm]} | kind)
    fell, there = found(name, threat, seed, **params)
    by_chance, _ = found("noise", threat, seed)
    assert fell >= least
    assert by_chance <= fell - 0.35
    assert there > 0.5  # the question was not trivial


def test_without_a_bound_everything_falls():
    fell, _ = found("hopskipjump", ThreatModel(norm="unbounded"), 0, queries=100)
    assert fell == 1


@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("queries", [1, 17, 100])
def test_hopskipjump_asks_all_that_it_may_of_what_stands_and_no_more(norm, queries):
    """The class turns far from every ball; a sample is told apart by a feature that nothing moves."""
    count, asked = 5, torch.zeros(5, dtype=torch.long)

    def model(x):
        asked.add_(torch.bincount((x[:, -1] * count).round().long(), minlength=count))
        lead = x[:, :6].sum(1) - 3.5
        return torch.stack([lead, -lead], 1)

    x = torch.cat([torch.full((count, 6), 0.95), torch.arange(count)[:, None] / count], 1)
    threat = ThreatModel(norm=norm, eps=1 if norm.startswith("l0") else 0.02, mask=(*[True] * 6, False))
    y = torch.zeros(count, dtype=torch.long)
    ATTACKS["hopskipjump"](model, x, y, threat=threat, rng=torch.Generator().manual_seed(0), queries=queries)
    assert (asked == queries).all()


class Noting(nn.Module):
    """A model that notes how many samples it is asked about, and whether its weights are open to training."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked, self.open = model, 0, []

    def forward(self, x):
        self.asked += len(x)
        self.open.append([p.requires_grad for p in self.model.parameters()])
        return self.model(x)


def reads_digits(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp(64, 10)
        config = TrainingConfig(
            model="its", threat=ThreatModel(eps=0.1), epochs=4, lr=5e-3, device="cpu", precision="fp32"
        )
        fit(model, digits("train"), digits("select"), plain, config)
    return model.eval().requires_grad_(False)


@functools.cache
def another() -> nn.Module:
    return reads_digits(seed=1)


def test_examples_of_a_surrogate_fool_more_than_noise_and_ask_the_model_only_for_its_verdict():
    model, (x, y) = reads_digits(seed=0), digits("test")
    x, y, threat = x[:200], y[:200], ThreatModel(norm="linf", eps=0.15)
    noting = Noting(model)
    row = AttackConfig(name="transfer", params={"surrogate": f"{__name__}:another"})
    found_ = measure(noting, x, y, threat=threat, suite=[row])
    by_chance = measure(model, x, y, threat=threat, suite=["noise"])
    (tally,) = found_.attacks
    assert tally.error is None
    assert (tally.forward_samples, tally.backward_samples) == (int(tally.tried.sum()), 0)
    fell, by_noise = (1 - o.robust_accuracy / o.clean_accuracy for o in (found_, by_chance))
    assert fell > by_noise + 0.2
    noting.asked = 0
    params = {"surrogate": f"{__name__}:another", "threat": threat}
    ATTACKS["transfer"](noting, x, y, rng=torch.Generator().manual_seed(0), **params)
    assert noting.asked == 0


DEEP = {"linf": 0.13, "l2": 0.8, "l1": 2.5, "l0": 4, "l0-pixels": 2}


@pytest.mark.parametrize("norm", ["unbounded", *(pytest.param(n, marks=pytest.mark.nightly) for n in DEEP)])
def test_deep_has_no_problems_and_is_nowhere_weaker_than_standard(norm):
    threat = ThreatModel(norm=norm, **({} if norm == "unbounded" else {"eps": DEEP[norm]}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 3))
        model = nn.Sequential(nn.Flatten(), *layers).requires_grad_(False)
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    standard, deep = (measure(model, x, y, threat=threat, suite=suite) for suite in ("standard", "deep"))
    assert standard.problems == deep.problems == ()
    assert all(attack.error is None for attack in deep.attacks)
    assert (deep.fooled | ~standard.fooled).all()
    assert standard.fooled.any()
    assert norm == "unbounded" or not standard.fooled.all()  # the question was not trivial


def test_no_row_of_a_fooled_sample_is_asked_again(monkeypatch):
    """Three rows a sample, sixteen rows a pass; a sample is told apart by a feature that nothing moves."""
    count, fell, again, asked = 40, set(), [], []

    def model(x):
        who = (x[:, 1] * count).round().long().tolist()
        asked.extend(who)
        again.extend(set(who) & fell)
        fell.update(sample for sample, value in zip(who, x[:, 0].tolist(), strict=True) if value > 0.5)
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)

    monkeypatch.setattr(Search, "batch", 16)
    x = torch.stack([torch.linspace(0.05, 0.45, count), torch.arange(count) / count], 1)
    threat = ThreatModel(norm="linf", eps=0.3, mask=(True, False))
    y = torch.zeros(count, dtype=torch.long)
    search = Search(model, x, y, threat=threat, rng=torch.Generator().manual_seed(0))
    asked.clear()
    rows = torch.arange(count).repeat(3)

    def move(at):
        return (at.delta - 0.02 * at.grad.sign()).clamp(search.low[at.rows], search.high[at.rows])

    run_rows(search, rows, torch.full_like(rows, ANY), torch.zeros(len(rows), 2), move, steps=20)
    assert {int(i) for i in search.fooled.nonzero()} == fell
    assert set(asked) == set(range(count))
    assert 0 < len(fell) < count
    assert not again


@pytest.mark.parametrize("name", ATTACKS)
def test_weights_are_frozen_while_an_attack_runs_and_open_again_after(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noting = Noting(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    noting.model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in noting.parameters()]
    x = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    y = noting(x).argmax(1)
    noting.open.clear()
    params = {"queries": 60} if name in ("hopskipjump", "square") else {}
    measure(noting, x, y, threat=ThreatModel(eps=0.01), suite=[AttackConfig(name=name, params=params)])
    assert len(noting.open) > 3
    assert not any(any(flags) for flags in noting.open)
    assert [p.requires_grad for p in noting.parameters()] == flags
