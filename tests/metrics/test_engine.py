"""The engine behind measure() against a reference, closed forms, and models that are hard to attack fairly."""

import copy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import SUITES, AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.config import ARMS
from tasks.attacks.fmn import minimum_norm
from tasks.attacks.geometry import distance, inside
from tasks.attacks.search import sloped
from tasks.data import digits
from tasks.defences import adversarial, plain
from tasks.metrics import EvaluationConfig, Outcomes, cell, drawing, engine, evaluate, isolation, measure, views
from tasks.metrics.cell import BLOCK, attack_cell
from tasks.metrics.curve import security_curve
from tasks.metrics.isolation import untouched
from tasks.models import TrainingConfig, fit
from tasks.models.networks import digits_cnn, mlp
from tasks.models.planted import Quantised

LINF, L2, L1 = (  # where about half of the digits stand
    ThreatModel(norm=norm, eps=eps) for norm, eps in (("linf", 0.15), ("l2", 0.6), ("l1", 1.6))
)
FEATURES = 6
SMALL = ThreatModel(norm="linf", eps=0.05)  # for the linear models


class Through(nn.Module):
    """A model behind a function of its input, before one of its logits."""

    def __init__(self, model: nn.Module, before: Callable = lambda x: x, after: Callable = lambda z: z) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def trained(model: nn.Module, defence, *, eps: float, epochs: int) -> nn.Module:
    threat = ThreatModel(norm="linf", eps=eps)
    config = TrainingConfig(model="its", threat=threat, epochs=epochs, lr=5e-3, device="cpu", precision="fp32")
    fit(model, digits("train"), digits("select"), defence, config)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def hardened() -> nn.Module:
    """About 0.85 clean and 0.44 under LINF."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(mlp(64, 10), partial(adversarial, steps=5), eps=0.15, epochs=12)


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    """Plainly trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(digits_cnn(), plain, eps=0.1, epochs=5)


@pytest.fixture(scope="module")
def cold(hardened) -> Outcomes:
    return measure(hardened, *shown(200), threat=LINF)


def shown(count: int) -> tuple[Tensor, Tensor]:
    x, y = digits("test")
    return x[:count], y[:count]


def few(split: str, classes: int) -> tuple[Tensor, Tensor]:
    """The digits below that number."""
    x, y = digits(split)
    return x[y < classes], y[y < classes]


def linear(classes: int, features: int = FEATURES) -> nn.Linear:
    """Every boundary meets in the middle of the box."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(features, classes).requires_grad_(False)
    model.bias.copy_(-0.5 * model.weight.sum(1))
    return model


def amid(model: nn.Module, count: int = 200) -> tuple[Tensor, Tensor]:
    """Rows 0.3..0.7, so far from the box that no ball here meets it, and their classes."""
    x = 0.5 + 0.1 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    return x, model(x).argmax(1)


def boundary_distance(model: nn.Linear, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The smallest perturbation that changes the class, [B]: the gap over the slope's dual norm."""
    slope = (model.weight - model.weight[y].unsqueeze(1)) * torch.tensor(threat.mask or (True,) * FEATURES)
    logits = model(x)
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[threat.norm]
    away = (logits.gather(1, y.unsqueeze(1)) - logits) / slope.norm(p=dual, dim=2).clamp_min(1e-12)
    return away.scatter(1, y.unsqueeze(1), float("inf")).amin(1)


def passes(found: Outcomes) -> int:
    return found.forward_samples + found.backward_samples


def assert_honest(model: nn.Module, x: Tensor, y: Tensor, found: Outcomes) -> None:
    """What counts as fooled is misclassified, inside ball and box; what stands is as it was."""
    threat, (low, high) = found.threat, found.threat.bounds
    assert found.problems == ()
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.fooled)
    assert distance(x, found.x_adv, threat).max() <= threat.eps * (1 + 1e-4)
    assert low <= found.x_adv.min() <= found.x_adv.max() <= high
    assert torch.equal(found.x_adv[~found.fooled], x[~found.fooled])


# The reference


@pytest.fixture(scope="module")
def reference() -> Callable[..., int]:
    """How many samples AutoAttack, standard, leaves standing: (model, x, y, threat) -> count. As in infra/bench."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "infra" / "bench"))
    try:
        from reference import _run
    finally:
        del sys.path[0]
    return lambda model, x, y, threat: sum(_run(model, x, y, threat, 0).standing)


@pytest.mark.parametrize("threat", [LINF, L2, pytest.param(L1, marks=pytest.mark.nightly)], ids=str)
def test_standard_leaves_no_more_standing_than_autoattack(hardened, reference, threat):
    """Of 500 samples, the first 150 of which are the reference's too."""
    x, y = shown(500)
    oracle = reference(hardened, x[:150], y[:150], threat)
    assert 50 < oracle < 80  # the question was not trivial
    for seed in range(3):
        found = measure(hardened, x, y, threat=threat, seed=seed)
        assert_honest(hardened, x, y, found)
        assert (~found.fooled[:150]).sum() <= oracle, f"seed {seed}"
        roughly = measure(hardened, x[:150], y[:150], threat=threat, seed=seed, suite="quick")
        assert (~roughly.fooled).sum() <= oracle + 0.01 * 150, f"quick, seed {seed}"


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_with_few_classes_standard_leaves_no_more_standing_than_autoattack(reference, classes, threat):
    (x, y), (xs, ys), (xt, yt) = (few(split, classes) for split in ("train", "select", "test"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp(64, classes)
    config = TrainingConfig(model="its", threat=LINF, epochs=12, lr=5e-3, device="cpu", precision="fp32")
    fit(model, (x, y), (xs, ys), plain, config)
    x, y = xt[:80], yt[:80]
    threat = threat.model_copy(update={"eps": 1.2 * threat.eps})
    oracle = reference(model.requires_grad_(False), x, y, threat)
    assert 5 < oracle < 75
    for seed in range(3):
        found = measure(model, x, y, threat=threat, seed=seed)
        assert_honest(model, x, y, found)
        assert (~found.fooled).sum() <= oracle, f"seed {seed}"


@pytest.mark.parametrize(
    "masked",
    [lambda m: Through(m, after=lambda z: 2000 * z), lambda m: Through(m, before=lambda x: (4 * x).round() / 4)],
    ids=["saturated", "quantised"],
)
def test_masked_gradients_deceive_standard_no_more_than_autoattack(hardened, reference, masked):
    model, (x, y) = masked(hardened), shown(40)
    oracle = reference(model, x, y, LINF)
    assert 5 < oracle < 35
    for seed in range(3):
        found = measure(model, x, y, threat=LINF, seed=seed)
        assert_honest(model, x, y, found)
        assert (~found.fooled).sum() <= oracle, f"seed {seed}"


class Winners(nn.Module):
    """Only the highest tenth of the features pass (k-WTA: Xiao et al., 2020, https://arxiv.org/abs/1905.10510)."""

    def forward(self, x):
        return x * (x >= x.topk(x.shape[1] // 10, dim=1).values[:, -1:])


class Levels(nn.Module):
    """Rounded in the middle, to five levels; trained as if it were not."""

    def forward(self, x):
        smooth = torch.tanh(x)
        level = (smooth * 2).round() / 2
        return smooth + (level - smooth).detach() if self.training else level


@pytest.fixture(scope="module")
def winners() -> nn.Module:
    """Slopes that do not tell which features are about to pass: 0.94 clean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Linear(64, 256), Winners(), nn.Linear(256, 256), Winners()]
        return trained(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10)), plain, eps=0.1, epochs=15)


WON = ThreatModel(norm="linf", eps=0.1)


def test_where_only_winners_pass_standard_leaves_no_more_standing_than_autoattack(winners, reference):
    x, y = shown(40)
    oracle = reference(winners, x, y, WON)
    assert 5 < oracle < 35
    for seed in range(3):
        found = measure(winners, x, y, threat=WON, seed=seed)
        assert_honest(winners, x, y, found)
        assert (~found.fooled).sum() <= oracle, f"seed {seed}"


@pytest.mark.parametrize("threat", [WON, L2], ids=str)
@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_slopes_behind_comparisons_fell_what_the_model_s_own_do_not(winners, threat, suite, monkeypatch):
    x, y = shown(100)
    found = measure(winners, x, y, threat=threat, suite=suite)
    assert_honest(winners, x, y, found)
    monkeypatch.setattr(views, "steepened", lambda *_: None)
    own = measure(winners, x, y, threat=threat, suite=suite)
    assert (~found.fooled).sum() < 0.6 * (~own.fooled).sum()
    assert suite != "quick" or found.passes <= SUITES["quick"].whole * len(x)


def test_behind_comparisons_each_attack_has_a_turn_before_any_has_two_and_quick_spends_all_it_may(winners, monkeypatch):
    turns, turn = [], engine.Engine._turn

    def noted(at_work, player):
        turns.append(player)
        return turn(at_work, player)

    monkeypatch.setattr(engine.Engine, "_turn", noted)
    x, y = shown(100)
    found = measure(winners, x, y, threat=WON, suite=SUITES["quick"].model_copy(update={"passes": 5.0}))
    drawn = [attack for attack in SUITES["quick"].under(WON) if attack.samples == "drawn"]
    assert {id(p) for p in turns[: len(drawn)]} == {id(p) for p in turns if p.config.samples == "drawn"}
    assert len({id(tally) for tally in turns[: len(drawn)]}) == len(drawn) > 2
    assert found.passes > 0.97 * SUITES["quick"].whole * len(x)


def test_behind_comparisons_an_attack_that_nobody_follows_descends_on_every_sample(winners, monkeypatch):
    x, y = shown(200)
    found = measure(winners, x, y, threat=WON, suite=["margin"])
    monkeypatch.setattr(views, "steepened", lambda *_: None)
    own = measure(winners, x, y, threat=WON, suite=["margin"])
    left = int((~own.fooled).sum())
    assert left > 3 * isolation.PROBE
    assert found.passes - own.passes > 8 * left


class Labels(nn.Module):
    """Answers with the label alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return nn.functional.one_hot(self.model(x).argmax(1), 10).float()


@pytest.mark.parametrize("suite", ["quick", "standard"])
@pytest.mark.parametrize("threat", [LINF, L2, ThreatModel(norm="l0", eps=1)], ids=str)
def test_a_model_that_answers_with_labels_stands_as_seldom_as_without(threat, suite, hardened, monkeypatch):
    x, y = shown(100)
    soft = measure(hardened, x, y, threat=threat, suite=suite)
    monkeypatch.setattr(views, "steepened", lambda *_: pytest.fail("the values behind the labels are known"))
    found = measure(Labels(hardened), x, y, threat=threat, suite=suite)
    assert_honest(Labels(hardened), x, y, found)
    assert abs(int(found.fooled.sum()) - int(soft.fooled.sum())) <= 1
    assert 20 < soft.fooled.sum() < 80
    assert found.passes < 3 * soft.passes
    assert suite != "quick" or found.passes <= SUITES["quick"].whole * len(x)


def test_behind_labels_slopes_are_lent_where_what_is_ranked_has_none_either(hardened, monkeypatch):
    lent, lend = [], views.Views.lend

    def noted(at_work, left):
        found = lend(at_work, left)
        lent.append((at_work.lent, found))
        return found

    monkeypatch.setattr(views.Views, "lend", noted)
    (x, y), rounded = shown(100), Through(hardened, before=lambda x: (3 * x).round() / 3)
    found = measure(Labels(rounded), x, y, threat=LINF)
    assert lent == [(True, True)]  # asked once
    assert abs(int(found.fooled.sum()) - int(measure(rounded, x, y, threat=LINF).fooled.sum())) <= 2


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_where_labels_alone_are_met_a_warm_start_loses_nothing(threat, hardened):
    x, y = shown(100)
    cold = measure(Labels(hardened), x, y, threat=threat)
    warm = measure(Labels(hardened), x, y, threat=threat, suite="warm", warm=cold.nearest)
    assert_honest(Labels(hardened), x, y, warm)
    assert cold.fooled.sum() > 20
    assert warm.fooled[cold.fooled].all()


class Counted(Labels):
    """The same by way of numpy, which takes no value that has a slope."""

    def forward(self, x):
        with torch.no_grad():
            return nn.functional.one_hot(torch.from_numpy(self.model(x).numpy().argmax(1)), 10).float()


@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_where_nothing_is_known_behind_labels_the_search_goes_on_without(suite, hardened):
    x, y = shown(50)
    found = measure(Counted(hardened), x, y, threat=LINF, suite=suite)
    assert_honest(Counted(hardened), x, y, found)
    assert {attack.name: attack.error for attack in found.attacks if attack.name == "square"} == {"square": None}


def test_values_behind_labels_are_judged_by_themselves_where_the_search_is_coarse(hardened):
    x, y = shown(100)
    soft = measure(hardened, x, y, threat=LINF, precision="bf16")
    found = measure(Labels(hardened), x, y, threat=LINF, precision="bf16")
    assert_honest(Labels(hardened), x, y, found)
    assert found.precision == soft.precision == "bf16"
    assert abs(int(found.fooled.sum()) - int(soft.fooled.sum())) <= 1
    assert found.passes < 2 * soft.passes


class Sent(nn.Module):
    """A gate sends each sample to one of two nets."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in range(2))
        self.gate = nn.Linear(64, 2)

    def forward(self, x):
        x = x.flatten(1)
        answers, gate = torch.stack([way(x) for way in self.ways], 1), 5 * self.gate(x)
        if self.training:
            return (answers * gate.softmax(1)[:, :, None]).sum(1)
        return answers[torch.arange(len(x), device=x.device), gate.argmax(1)]


@pytest.fixture(scope="module")
def sent() -> nn.Module:
    """Trained with both nets at once, and then asked one of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(Sent(), plain, eps=0.15, epochs=12)


SENT = ThreatModel(norm="linf", eps=0.15)


def test_slopes_through_a_choice_and_the_model_s_own_are_followed_by_turns(sent, monkeypatch):
    x, y = shown(200)
    followed, turn = [], engine.Engine._turn

    def noted(at_work, player):
        gained = turn(at_work, player)
        followed.append(at_work.views.now.model is at_work.meter)
        return gained

    monkeypatch.setattr(engine.Engine, "_turn", noted)
    found = measure(sent, x, y, threat=SENT)
    assert_honest(sent, x, y, found)
    assert followed == [number % 2 == 1 for number in range(len(followed))]
    assert len(followed) > 10
    monkeypatch.setattr(views, "steepened", lambda *_: None)
    own = measure(sent, x, y, threat=SENT)
    assert (~found.fooled).sum() < 0.5 * (~own.fooled).sum()


def test_slopes_through_a_choice_are_followed_on_every_sample_where_nobody_takes_turns(sent, monkeypatch):
    x, y = shown(200)
    found = measure(sent, x, y, threat=SENT, suite=["margin"])
    monkeypatch.setattr(views, "steepened", lambda *_: None)
    own = measure(sent, x, y, threat=SENT, suite=["margin"])
    assert (~own.fooled).sum() > isolation.PROBE
    assert (~found.fooled).sum() < 0.6 * (~own.fooled).sum()


def test_where_turns_follow_two_views_each_attack_has_two_and_the_drawing_goes_on_for_longer(sent, monkeypatch):
    x, y = shown(200)
    drawn = [row for row in SUITES["standard"].under(WON) if row.samples == "drawn"]
    rows = [row for row in drawn if "reach" not in row.params]  # which has nothing to try behind a choice
    turns, turn = [], engine.Engine._turn

    def noted(at_work, player):
        turns.append(player.config)
        return turn(at_work, player)

    monkeypatch.setattr(engine.Engine, "_turn", noted)
    monkeypatch.setattr(drawing, "BOTH", 0)
    brief = measure(sent, x, y, threat=WON)
    assert min(turns.count(row) for row in rows) >= 2
    monkeypatch.setattr(drawing, "BOTH", 600)
    assert measure(sent, x, y, threat=WON).passes > 1.1 * brief.passes


class TwoWays(nn.Module):
    """A rectifier written as a choice: slopes behind its comparison lead no further than its own."""

    def forward(self, x):
        return torch.where(x > 0, x, torch.zeros_like(x))


def test_where_slopes_behind_comparisons_lead_no_further_the_model_s_own_are_followed(hardened, monkeypatch):
    same, (x, y) = copy.deepcopy(hardened), shown(100)
    for number, module in enumerate(same):
        same[number] = TwoWays() if isinstance(module, nn.ReLU) else module
    tried, steepen = [], engine.Engine._steepen

    def noted(at_work, player):
        own, passes = at_work.views.now, at_work.meter.passes
        steepen(at_work, player)
        tried.append((at_work.meter.passes - passes, own))
        assert at_work.views.now is own
        assert at_work.search.slopes is own.slopes

    monkeypatch.setattr(engine.Engine, "_steepen", noted)
    found, plainly = (measure(model, x, y, threat=LINF) for model in (same, hardened))
    (with_choices, _), (without, own) = tried
    assert without == views.GLANCE
    assert own.slopes is not None
    assert with_choices > 4 * isolation.PROBE
    assert abs(int(found.fooled.sum()) - int(plainly.fooled.sum())) <= 1


BEHIND_LEVELS: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {
    "descents bring nothing more": (
        lambda: [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), Levels(), nn.Flatten()],
        80,
        130,
    ),
    "until a limit": (lambda: [nn.Flatten(), nn.Linear(64, 512), Levels()], 290, 330),
}


@pytest.mark.parametrize(("layers", "least", "most"), BEHIND_LEVELS.values(), ids=BEHIND_LEVELS)
def test_where_slopes_are_lent_attacks_without_any_have_the_larger_share(reference, layers, least, most):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*layers(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
        model = trained(net, plain, eps=0.1, epochs=15).eval()
    x, y = shown(100)
    found = measure(model, x, y, threat=WON)
    assert (~found.fooled[:40]).sum() <= reference(model, x[:40], y[:40], WON)
    spent = {attack.name: attack.forward_samples + attack.backward_samples for attack in found.attacks}
    assert spent["square"] > 0.5 * found.passes
    assert least * len(x) < found.passes < most * len(x)


# Cells


def one_cell(model: nn.Module, x: np.ndarray, y: np.ndarray, number: int) -> tuple[np.ndarray, ...]:
    """What a process of its own makes of one cell."""
    part = slice(number * BLOCK, (number + 1) * BLOCK)
    with untouched(model) as meter:
        of = {"threat": LINF, "suite": as_suite("standard"), "seed": 5, "number": number}
        cell = attack_cell(meter, torch.from_numpy(x)[part], torch.from_numpy(y)[part], **of)
    return cell.fooled.numpy(), cell.x_adv.numpy(), cell.nearest.numpy(), cell.margin.numpy(), cell.prediction.numpy()


def test_cells_in_any_order_and_process_come_to_the_same_bits(hardened):
    x, y = (part[:1030] for part in digits("train"))
    whole = measure(hardened, x, y, threat=LINF, seed=5)
    expected = [getattr(whole, what).numpy() for what in ("fooled", "x_adv", "nearest", "margin", "prediction")]
    ask = partial(one_cell, hardened, x.numpy(), y.numpy())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        elsewhere = pool.map(ask, range(2, -1, -1))  # last first, beside this process
        here = [ask(number) for number in (2, 1, 0)]
        for cells in (here, list(elsewhere)):
            for of_cells, of_whole in zip(zip(*reversed(cells), strict=True), expected, strict=True):
                assert np.array_equal(np.concatenate(of_cells), of_whole)


# Precision and shapes


def wide(apart: float = 1.0) -> nn.Module:
    """Four million weights. What the two classes weigh is nearly the same where they are little apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.Linear(2048, 2)
        layers = [nn.Flatten(), nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), last]
        model = nn.Sequential(*layers).requires_grad_(False)
        last.weight[1] = last.weight[0] + apart * 0.02 * torch.randn(2048)
        last.bias.zero_()
    return model


@pytest.mark.parametrize(
    ("model", "dtype", "fast", "pays"),
    [
        (lambda: wide(), torch.float32, True, True),
        (lambda: wide(), torch.float32, False, False),  # hardware that is slow at it
        (lambda: wide(), torch.float64, True, False),
        (lambda: digits_cnn(), torch.float32, True, False),  # too small to be bound by arithmetic
        (lambda: wide(apart=1e-4), torch.float32, True, False),  # its answers become others
    ],
    ids=["wide", "slow", "double", "small", "other answers"],
)
def test_the_search_is_in_bf16_where_arithmetic_counts_and_answers_stay(monkeypatch, model, dtype, fast, pays):
    monkeypatch.setattr(isolation, "_fast_bf16", lambda device: fast)
    net, x = model().to(dtype).eval(), shown(64)[0].to(dtype)
    with untouched(net) as meter:
        assert isolation.pays_in_bf16(meter, x) is pays


COUNTED = """
import sys, torch
from torch import nn
from tasks.attacks import ThreatModel
from tasks.metrics import measure
from tasks.metrics.isolation import Arithmetic
from tasks.models.networks import digits_cnn, mlp

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(64, 10)

    def forward(self, x):
        z = x.flatten(2).squeeze(1).view(-1, 8, 8)
        return self.out(self.mix(z, z, z, need_weights=False)[0].flatten(1))

x = torch.rand(40, 1, 8, 8)
models = [digits_cnn().eval(), mlp(64, 10).eval(), Attention().eval()]
found = []
with torch.no_grad():
    for model in models:
        with Arithmetic() as counter:
            model(x)
        found.append(counter.flops)
measure(models[0], x, models[0](x).argmax(1), threat=ThreatModel(eps=0.1), suite=["margin"])
assert not {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules), "the compiler was imported"

from torch.utils.flop_counter import FlopCounterMode
with torch.no_grad():
    for model, flops in zip(models, found, strict=True):
        with FlopCounterMode(display=False) as counter:
            model(x)
        assert flops == counter.get_total_flops() > 0, (flops, counter.get_total_flops())
"""


def test_arithmetic_is_counted_as_torch_counts_it_and_without_its_compiler():
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("network", ["hardened", "cnn"])
def test_a_search_in_bf16_finds_as_much_and_each_success_is_one_in_float32(network, threat, request):
    model, (x, y) = request.getfixturevalue(network), shown(200)
    coarse, fine = (measure(model, x, y, threat=threat, precision=kind) for kind in ("bf16", "fp32"))
    assert (coarse.precision, fine.precision) == ("bf16", "fp32")
    assert_honest(model, x, y, coarse)
    assert coarse.robust_accuracy == pytest.approx(fine.robust_accuracy, abs=0.01)


@pytest.mark.parametrize("threat", [SMALL, ThreatModel(norm="l2", eps=0.1), ThreatModel(norm="l1", eps=0.15)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_linear_model_in_any_precision_falls_where_it_must(dtype, threat):
    model = linear(3).to(dtype).float()
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    report, (found,) = evaluate(copy.deepcopy(model).to(dtype), x.to(dtype), y, EvaluationConfig(threats=(threat,)))
    assert report.threats[0].problems == ()
    assert found.fooled[away < 0.85 * threat.eps].all()
    assert not found.fooled[(away > 1.15 * threat.eps) & found.clean_correct].any()
    assert 20 < (found.fooled & found.clean_correct).sum() < 190


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], dim=1)[:, 1],
    ],
    ids=["channels-last", "transposed", "strided"],
)
def test_how_the_input_lies_in_memory_does_not_matter(cnn, laid_out):
    x, y = shown(60)
    same = laid_out(x.expand(-1, 3, -1, -1).contiguous())
    assert not same.is_contiguous()
    model = Through(cnn, before=lambda x: x.mean(1, keepdim=True))
    plainly, found = (measure(model, part, y, threat=LINF) for part in (same.contiguous(), same))
    assert_honest(model, same, y, found)
    assert torch.equal(found.fooled, plainly.fooled)


def test_a_batch_of_one_and_one_without_a_correct_sample_are_measured(hardened):
    x, y = shown(40)
    wrong = (hardened(x).argmax(1) + 1) % 10
    found = measure(hardened, x, wrong, threat=LINF)
    assert (found.clean_accuracy, found.robust_accuracy) == (0, 0)
    assert torch.equal(found.x_adv, x)
    assert not any(row.tried.any() for row in found.attacks)
    for row in range(3):
        part = slice(row, row + 1)
        assert_honest(hardened, x[part], y[part], measure(hardened, x[part], y[part], threat=LINF))


# Awkward models


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_and_logits_of_any_size_fall_where_they_must_and_nowhere_else(classes, factor):
    model = linear(classes)
    x, y = amid(model)
    away = boundary_distance(model, x, y, SMALL)
    found = measure(Through(model, after=lambda z: factor * z), x, y, threat=SMALL)
    assert_honest(model, x, y, found)
    assert found.fooled[away < 0.99 * SMALL.eps].all()
    assert not found.fooled[away > 1.01 * SMALL.eps].any()
    assert 20 < found.fooled.sum() < 190


def step_of_eight(x: Tensor) -> Tensor:
    return (64 * x).floor() / 64


@pytest.mark.parametrize(
    "blind",
    [
        lambda m: Through(m, before=lambda x: x.detach()),
        lambda m: Through(m, before=step_of_eight),
        lambda m: Through(m, after=lambda z: z.detach() + 0 * z),
    ],
    ids=["detached", "steps", "zero"],
)
@pytest.mark.parametrize("numpy", [False, True])
def test_a_model_without_a_gradient_falls_to_a_lent_one_or_to_what_needs_none(blind, numpy):
    model = linear(2)
    x, y = amid(model)
    away, blinded = boundary_distance(model, x, y, SMALL), blind(model)
    blinded = Through(blinded, after=lambda z: torch.from_numpy(z.detach().numpy().copy())) if numpy else blinded
    found = measure(blinded, x, y, threat=SMALL)
    assert_honest(blinded, x, y, found)
    near = (away < 0.7 * SMALL.eps) & found.clean_correct
    assert found.fooled[near].float().mean() > 0.95
    (square,) = [row for row in found.attacks if row.name == "square"]
    if numpy:  # torch sees nothing of it: no slope can be lent
        assert square.fooled.any()
    else:
        assert found.attacks[0].fooled[near].float().mean() > 0.95
    assert all(row.error is None for row in found.attacks)


def test_a_model_that_answers_at_random_is_judged_by_majority_and_the_same_each_time():
    model = linear(3)
    x, y = amid(model, count=100)
    noisy = Through(model, before=lambda x: x + 0.1 * torch.randn_like(x))
    found, again = (measure(noisy, x, y, threat=SMALL, suite="quick", seed=2) for _ in range(2))
    assert found.draws > 1
    assert found.problems == ()
    assert torch.equal(found.x_adv, again.x_adv)
    assert torch.equal(found.fooled, again.fooled)
    rows = (found.fooled & found.clean_correct).nonzero().flatten()
    assert 20 < len(rows) < 90
    with torch.random.fork_rng():
        torch.manual_seed(99)
        share = torch.stack([noisy(found.x_adv[rows]).argmax(1) != y[rows] for _ in range(500)]).float().mean(0)
    assert (share > 0.5).float().mean() > 0.9
    assert share.min() > 0.35  # the vote was of 30 draws


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_of_a_model_that_answers_at_random_one_answer_is_one_pass_in_a_limit(hardened, threat):
    """The judge's 30 draws count as three, before the search and after it."""
    x, y = shown(60)
    noisy = Through(hardened, before=lambda x: x + 0.1 * torch.randn_like(x))
    found = measure(noisy, x, y, threat=threat.model_copy(update={"eps": 0.7 * threat.eps}), suite="quick")
    assert found.draws == 10
    limit = SUITES["quick"].whole * found.draws * len(x)
    assert 0.7 * limit < passes(found) <= limit


class Rarely(nn.Module):
    """Right four times of five, and then so wrong that the mean of its logits is wrong."""

    def forward(self, x):
        lead = 1.0 - 100.0 * (torch.rand(len(x)) < 0.2) + 0.1 * x.sum(1)
        return torch.stack([lead, -lead], 1)


def test_a_model_that_answers_at_random_is_not_judged_by_its_mean_logits():
    x = torch.rand(60, FEATURES, generator=torch.Generator().manual_seed(0))
    found = measure(Rarely(), x, torch.zeros(60, dtype=torch.long), threat=SMALL, suite="quick")
    assert found.draws > 1
    assert (found.margin < 0).any()  # so the search took some for fooled
    assert (found.clean_accuracy, found.robust_accuracy) == (1, 1)


class Busy(nn.Module):
    """Convolution, batch statistics, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(144, 10)

    def forward(self, x):
        return self.head(self.body(x))


def test_standard_leaves_a_model_in_training_as_it_was():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Busy().train()
    model.body[3].eval()
    model.head.bias.requires_grad_(False)
    x, y = shown(60)
    model(x).sum().backward()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    measure(model, x, y, threat=LINF, suite="standard")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    for kept, now in zip(before.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(kept, now)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)


# Models without slopes


class Stairs(nn.Module):
    """Two layers that answer in steps: no slope anywhere, of which a search by score alone still finds the foot."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.finite = model, True

    def forward(self, x):
        self.finite &= bool(x.isfinite().all())
        return (self.model(x) * 4).floor() / 4


class Elsewhere(Stairs):
    """The same, computed where torch does not see it: no slope can be lent to it."""

    def forward(self, x):
        return torch.from_numpy(super().forward(x).detach().numpy().copy())


@pytest.mark.parametrize("threat", [LINF, L2, L1, ThreatModel(norm="l0", eps=4)], ids=str)
def test_a_model_without_slopes_is_shown_numbers_only_and_falls_to_scores(hardened, threat):
    x, y = shown(60)
    stairs = Stairs(hardened)
    found = measure(stairs, x, y, threat=threat, suite="standard")
    assert stairs.finite
    assert not [each.error for each in found.attacks if each.error]
    assert found.problems == ()
    smooth = measure(hardened, x, y, threat=threat, suite="standard")
    assert found.robust_accuracy <= smooth.robust_accuracy + 0.2


def test_a_quick_look_where_no_slope_can_be_lent_goes_on_to_its_limit_of_passes(hardened):
    x, y = shown(200)
    found = measure(Elsewhere(hardened), x, y, threat=LINF, suite="quick")
    slopes = measure(hardened, x, y, threat=LINF, suite="quick")
    limit = SUITES["quick"].whole
    assert 0.9 * limit * len(x) < found.passes <= limit * len(x)
    assert slopes.passes < 0.7 * limit * len(x)
    assert {attack.name: attack.fooled.any() for attack in found.attacks}["square"]


@pytest.mark.parametrize("suite", ["quick", "standard", "deep"])
def test_slopes_are_lent_to_a_model_that_has_none(hardened, suite):
    x, y = shown(100)
    stairs = measure(Stairs(hardened), x, y, threat=LINF, suite=suite)
    smooth = measure(hardened, x, y, threat=LINF, suite=suite)
    kept = Stairs(hardened)(x).argmax(1) == y  # stairs tie, and an answer may differ
    assert (stairs.clean_correct == kept).all()
    assert stairs.robust_accuracy <= smooth.robust_accuracy + 0.01
    assert (Stairs(hardened)(stairs.x_adv).argmax(1) != y)[stairs.fooled].all()
    assert suite != "deep" or {attack.name: attack.fooled.any() for attack in stairs.attacks}["apgd-ce"]


@pytest.mark.parametrize("threat", [LINF, L2, L1, ThreatModel(norm="l0", eps=4)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_asked_for_a_lent_slope_counts_within_the_limit_of_a_quick_look(hardened, threat, count):
    model, eps = (
        Stairs(hardened),
        1 if threat.norm == "l0" else 0.02 * threat.eps,
    )  # so small that most stand to the end
    for start in range(0, 20, count):
        x = shown(60)[0][start : start + count]
        small = threat.model_copy(update={"eps": eps})
        found = measure(model, x, model(x).argmax(1), threat=small, suite="quick")
        assert found.passes <= SUITES["quick"].whole * count


@pytest.mark.parametrize(
    ("threat", "suite"), [(L2, "quick"), (L2, "standard"), (L1, "quick"), (L1, "standard")], ids=str
)
def test_a_rounded_input_does_not_hide_from_budgets_that_are_sums(hardened, threat, suite):
    x, y = shown(150)
    rows = tuple(row for row in SUITES[suite].attacks if row.name not in ("crossings", "square"))
    others = SUITES[suite].model_copy(update={"attacks": rows})
    without, found = (measure(Quantised(hardened), x, y, threat=threat, suite=each) for each in (others, suite))
    assert_honest(Quantised(hardened), x, y, found)
    assert found.robust_accuracy < without.robust_accuracy - 0.05
    assert found.passes < without.passes or found.passes <= (SUITES[suite].whole or 0) * len(x)


@pytest.mark.parametrize("threat", [L2, L1], ids=str)
def test_the_curve_of_a_rounded_input_agrees_with_the_suite_at_every_radius(hardened, threat):
    x, y = shown(200)
    model = Quantised(hardened)
    _, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat))
    between = [point for point in curve if 0.2 < point.eps / threat.eps < 0.9]
    assert len(between) == 3
    for point in between:
        fixed = measure(model, x, y, threat=threat.model_copy(update={"eps": point.eps}), suite="quick")
        assert point.robust.value <= fixed.robust_accuracy + 0.04
    assert between[-1].robust.value < between[0].robust.value - 0.2


def test_another_round_of_crossings_goes_on_from_the_nearest_points(hardened):
    x, y = shown(300)
    threat, model = ThreatModel(norm="l2", eps=0.3), Quantised(hardened, levels=2)
    once, again = (
        measure(model, x, y, threat=threat, suite=[AttackConfig(name="crossings", params={"tries": tries})])
        for tries in (1, 4)
    )
    assert again.fooled[once.fooled].all()
    assert again.fooled.sum() > once.fooled.sum()


@pytest.mark.parametrize("threat", [L2, L1], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_the_thresholds_of_a_rounded_input_take_counts_within_the_limit_too(hardened, threat, count):
    model, small = Quantised(hardened), threat.model_copy(update={"eps": 0.3 * threat.eps})  # most stand to the end
    for start in range(0, 20, count):
        x = shown(60)[0][start : start + count]
        found = measure(model, x, model(x).argmax(1), threat=small, suite="quick")
        assert found.passes <= SUITES["quick"].whole * count


class Looked(nn.Module):
    """Rounds to whole numbers and looks them up: a slope lent to these would make them no index any more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(torch.linspace(0, 1, 9)[(x * 8).round().long()] + 0 * x.detach())


def test_where_a_lent_slope_would_break_the_model_another_or_none_is_lent(hardened):
    x, y = shown(100)
    found = measure(Looked(hardened), x, y, threat=LINF, suite="quick")
    assert found.problems == ()
    assert [attack.error for attack in found.attacks] == [None] * len(found.attacks)
    assert found.fooled.sum() > 40


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_the_least_norm_from_level_ground_is_none_and_the_point_is_a_number(threat):
    x, y = shown(8)
    level = Through(mlp(64, 10), after=lambda z: 0 * z + torch.eye(10)[y])
    far, x_adv = minimum_norm(level, x, y, threat=threat, steps=30, start=torch.rand_like(x))
    assert far.isinf().all()
    assert x_adv.isfinite().all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_row_without_a_slope_takes_a_pass_and_a_last_look(threat):
    x, y = shown(16)
    level = Through(mlp(64, 10), after=lambda z: 0 * z + torch.eye(10)[0])
    row = AttackConfig(name="restarts", params={"starts": "noise", "steps": 50})
    found = measure(level, x, torch.zeros_like(y), threat=threat, suite=[row])
    (noise,) = found.attacks
    assert (noise.forward_samples, noise.backward_samples) == (2 * len(x), len(x))


@pytest.mark.parametrize(("label", "fooled"), [(0, False), (1, True), (2, True)])
def test_highest_logits_that_tie_are_judged_by_the_answer(label, fooled):
    """All saturate at 1 within reach: the answer is class 0 then, and whoever asks is told so."""
    x = torch.full((4, 1), 0.5)
    x_adv_reach = ThreatModel(norm="linf", eps=0.2)

    def scores(x):
        return torch.cat([(1 if k == label else 20 * (x - 0.6) + 1) + 0 * x for k in range(3)], 1).clamp_max(1)

    model = Through(nn.Identity(), after=scores)
    y = torch.full((4,), label)
    assert (model(x).argmax(1) == y).all()
    found = measure(model, x, y, threat=x_adv_reach, suite="quick")
    assert found.fooled.all() if fooled else not found.fooled.any()
    assert not found.dropped.any()


# What it costs


@pytest.mark.parametrize("threat", [LINF, L2, L1, ThreatModel(norm="l0-pixels", eps=3)], ids=str)
@pytest.mark.parametrize("network", ["hardened", "cnn"])
def test_quick_spends_at_most_forty_passes_a_sample(network, threat, request):
    model, (x, y) = request.getfixturevalue(network), shown(200)
    found = measure(model, x, y, threat=threat, suite="quick")
    assert_honest(model, x, y, found)
    assert passes(found) <= 40 * len(x)
    for few in (1, 2, 3, 5, 8, 16):
        assert passes(measure(model, x[:few], y[:few], threat=threat, suite="quick")) <= 40 * few


def test_an_attack_on_the_nearest_whose_cost_nobody_knows_runs_within_a_limit_too(hardened):
    x, y = shown(40)
    row = AttackConfig(name="noise", samples="nearest", share=0.5)
    found = measure(hardened, x, y, threat=LINF, suite=Suite(name="its", attacks=(row,), whole=30))
    assert [attack.error for attack in found.attacks] == [None]
    assert found.attacks[0].tried.sum() == 20


def test_samples_that_were_wrong_from_the_start_hold_nothing_back_for_a_last_look(hardened):
    x, y = shown(200)
    y = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 10)
    found = measure(hardened, x, y, threat=L2, suite=SUITES["quick"].within(11))
    assert found.clean_accuracy < 0.6
    assert 11 * len(x) - 50 < passes(found) <= 11 * len(x)


def test_what_is_asked_before_the_first_cell_takes_nothing_from_a_small_last_one(hardened):
    x, y = shown(200)
    stands = ~measure(hardened, x, y, threat=L2, suite="quick").fooled
    few = [part[stands][:2] for part in (x, y)]
    x, y = (
        torch.cat([part[stands].repeat(8, *[1] * (part.ndim - 1))[:BLOCK], two])
        for part, two in zip((x, y), few, strict=True)
    )
    assert len(x) == BLOCK + 2
    last, alone = (
        measure(hardened, x, y, threat=L2, suite="quick", block=1),
        measure(hardened, *few, threat=L2, suite="quick"),
    )
    assert passes(alone) <= 40 * 2
    assert passes(last) > passes(alone) + 40  # what both asked before, and then as much as two samples may take


ASKED_BEFORE = 2 + 2 * isolation.PROBE  # what shape the model's answers have, and whether it answers at random
GLANCE = views.GLANCE  # and, after the first descent, whether it compares numbers


def test_where_a_first_look_tells_slopes_a_descent_asks_once_less_and_the_foretold_are_only_looked_at():
    model = linear(2)
    x, y = amid(model)
    suite = [AttackConfig(name="margin", params={"steps": 3})]
    found = measure(model, x, y, threat=SMALL, suite=suite)
    fell = int(found.fooled.sum())
    assert 20 < fell < 180
    stood = len(x) - fell
    assert found.backward_samples == len(x) + 2 * stood
    assert (
        found.forward_samples == ASKED_BEFORE + len(x) + fell + 3 * stood + GLANCE + fell
    )  # those that fell are judged again


def test_what_falls_at_its_warm_start_is_asked_once():
    model = linear(2)
    x, y = amid(model)
    first = measure(model, x, y, threat=SMALL, suite=["margin"])
    one = AttackConfig(name="margin", params={"steps": 1}, samples="nearest", share=0.001, fewest=1)
    again = measure(model, x, y, threat=SMALL, suite=[one], warm=first.nearest)
    assert torch.equal(again.fooled, first.fooled)
    assert_honest(model, x, y, again)
    assert torch.equal(again.prediction, model(again.x_adv).argmax(1))
    assert (
        again.forward_samples == ASKED_BEFORE + len(x) + len(x) + 2 + 1
    )  # and the one that stands tells if it compares
    assert again.backward_samples == 1


def test_what_has_fallen_at_its_warm_start_holds_nothing_back_for_a_last_look():
    model = linear(2)
    x, y = amid(model)
    first = measure(model, x, y, threat=SMALL, suite=["margin"])
    assert first.fooled.sum() > 100
    row = AttackConfig(name="margin", params={"steps": 1}, samples="nearest", share=1.0)
    suite = Suite(name="near", attacks=(row,)).within(3.0)
    again = measure(model, x, y, threat=SMALL, suite=suite, warm=first.nearest)
    left = 3 * len(x) - ASKED_BEFORE - 2 * len(x)
    assert again.backward_samples == left // 3  # there, the slope, and where it leads


@pytest.mark.parametrize(
    ("threat", "soft", "asks"), [(LINF, 0, True), (L2, 0, True), (L2, 16, False), (L1, 0, False)], ids=str
)
def test_no_slope_is_asked_for_at_the_inputs_where_descents_follow_another(hardened, threat, soft, asks, monkeypatch):
    asked = []
    monkeypatch.setattr(cell, "sloped", lambda *of: asked.append(of) or sloped(*of))
    suite = [AttackConfig(name="margin", params={"soft": soft})]
    measure(hardened, *shown(20), threat=threat, suite=suite)
    assert bool(asked) == asks


def test_what_goes_on_in_bursts_is_given_what_one_burst_takes(hardened):
    x, y = shown(40)
    found = measure(hardened, x, y, threat=LINF, suite=SUITES["standard"].within(60.0))
    (scores,) = [attack for attack in found.attacks if attack.name == "square"]  # 5000 queries, 50 of them in a turn
    assert 0 < scores.forward_samples < 5000
    assert found.passes <= 60 * len(x)


def test_a_model_that_answers_and_cannot_be_followed_has_its_clean_accuracy_and_attacks_that_failed():
    model = linear(2)
    x, y = amid(model)

    def only_asked(points):
        if points.requires_grad:
            raise RuntimeError("this layer knows no way back")
        return points

    found = measure(Through(model, before=only_asked), x, y, threat=SMALL, suite=["margin"])
    assert found.clean_accuracy == 1.0
    (problem,) = found.problems
    assert "this layer knows no way back" in problem


@pytest.mark.parametrize(("near", "least", "most"), [(None, 1.0, 1.2), (0.1, 4.0, 11.0)])
def test_a_row_says_how_much_more_often_the_nearest_to_falling_are_tried(near, least, most, monkeypatch):
    tried, margin = torch.zeros(100, dtype=torch.long), ARMS["margin"]

    def once_and_then_looks(search, rows):
        if not tried.any():
            margin(search, search.standing())
        tried[rows] += 1
        search.look(rows, search.x[rows], inside=True)

    monkeypatch.setitem(ARMS, "margin", once_and_then_looks)
    model = linear(2)
    x, y = amid(model, 100)
    row = AttackConfig(name="margin", samples="drawn", share=0.08, near=near)
    found = measure(model, x, y, threat=SMALL, suite=Suite(name="looks", attacks=(row,), again=1e9, passes=40))
    standing = (~found.fooled).nonzero().flatten()
    ranked = standing[found.margin[standing].argsort()]
    assert least <= tried[ranked[0]] / tried[ranked[len(ranked) // 2]] <= most


def test_a_row_may_be_given_the_nearest_to_falling_only(monkeypatch):
    given, margin = [], ARMS["margin"]

    def noted(search, rows):
        given.append(rows)
        margin(search, rows)

    monkeypatch.setitem(ARMS, "margin", noted)
    model = linear(2)
    x, y = amid(model, 100)
    rows = (AttackConfig(name="classes"), AttackConfig(name="margin", samples="nearest", share=0.2))
    first, found = (measure(model, x, y, threat=SMALL, suite=Suite(name="looks", attacks=rows[:n])) for n in (1, 2))
    standing = (~first.fooled).nonzero().flatten()
    (nearest,) = given
    assert torch.equal(nearest, standing[first.margin[standing].argsort(stable=True)[:20]])
    (_, row) = found.attacks
    assert torch.equal(row.tried.nonzero().flatten(), nearest.sort().values)


@pytest.mark.parametrize(("limit", "of"), [({"passes": 30}, 100), ({"effort": 30}, None)], ids=["passes", "effort"])
def test_a_drawing_without_an_end_of_its_own_goes_on_to_its_limit(limit, of):
    model = linear(2)
    x, y = amid(model, 100)
    row = AttackConfig(name="restarts", params={"starts": "noise", "steps": 4}, samples="drawn", share=0.1)
    found = measure(model, x, y, threat=SMALL, suite=Suite(name="on", attacks=(row,), again=None, **limit))
    (drawn,) = found.attacks
    spent = (drawn.forward_samples + drawn.backward_samples) / (of or int((~found.fooled).sum()))
    assert 0.9 * 30 <= spent <= (1.1 if of else 2) * 30  # samples that fell had their share of the effort as well
    assert found.capped


@pytest.mark.parametrize("suite", ["standard", "warm"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_suite_within_a_limit_ends_there_and_not_far_below(hardened, norm, suite):
    """Not far beyond: a turn is as small as what is left asks."""
    x, y = shown(200)
    threat = ThreatModel(norm=norm, eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    begin = x if suite == "warm" else None
    most, open_ = SUITES[suite].within(30.0), SUITES[suite]
    found, free = (measure(hardened, x, y, threat=threat, suite=s, warm=begin) for s in (most, open_))
    assert found.passes / len(x) <= 30 + 3  # the probe, the confirmation, the last turn
    assert found.passes <= free.passes + 3 * len(x)
    if free.passes / len(x) > 33:
        assert found.capped
        assert found.passes / len(x) >= 27
    assert most.digest != open_.digest


def test_a_warm_start_finds_all_of_it_again_for_a_fifth(hardened, cold):
    x, y = shown(200)
    suite = SUITES["warm"].within(0.195 * passes(cold) / len(x))
    again = measure(hardened, x, y, threat=LINF, suite=suite, warm=cold.nearest)
    assert_honest(hardened, x, y, again)
    assert again.fooled[cold.fooled].all()
    assert passes(again) < passes(cold) / 5


@pytest.mark.parametrize("seed", range(3))
def test_a_warm_start_on_a_slightly_changed_model_is_as_strong_as_a_cold_one_for_a_fifth(hardened, cold, seed):
    x, y = shown(200)
    changed, rng = copy.deepcopy(hardened), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in changed.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=rng)
    afresh = measure(changed, x, y, threat=LINF, seed=seed)
    suite = SUITES["warm"].within(0.195 * passes(afresh) / len(x))
    warm = measure(changed, x, y, threat=LINF, seed=seed, suite=suite, warm=cold.nearest)
    assert_honest(changed, x, y, warm)
    before = inside(x, cold.nearest, LINF)
    assert (warm.fooled | (changed(before).argmax(1) == y)).all()  # what still fools is kept
    assert (changed(before).argmax(1) != hardened(before).argmax(1)).any()
    assert warm.robust_accuracy <= afresh.robust_accuracy
    assert passes(warm) < passes(afresh) / 5


# The curve


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_smallest_perturbation_of_a_linear_model_has_the_dual_norm_s_length(norm):
    """Two classes: among three, the one whose logit is nearest need not be the nearest."""
    model, threat = linear(2), ThreatModel(norm=norm, eps=0.05)
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    found, x_adv = minimum_norm(model, x, y, threat=threat)
    near = away < 0.25  # else the box is in the way
    assert near.sum() > 100
    torch.testing.assert_close(found[near], away[near], rtol=0.02, atol=1e-6)
    assert (found >= away * (1 - 1e-4)).all()
    assert (model(x_adv).argmax(1) != y)[near].all()


@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel(norm="linf", eps=0.02),
        ThreatModel(norm="l2", eps=0.03),
        ThreatModel(norm="l1", eps=0.05),
        ThreatModel(norm="linf", eps=0.02, mask=(True, False, True, True, False, True)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("classes", "above"), [(2, 0.0), (3, 0.03)])
def test_the_curve_of_a_linear_model_is_the_share_beyond_each_radius(classes, above, threat):
    """Among three classes, some distances are to another one than the nearest, and so somewhat too large."""
    model = linear(classes)
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    _, points = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat, suite="quick"))
    assert points[0].robust.value == 1
    for point in points[1:]:
        if point.eps < 0.25:  # else the box is in the way
            least, most = ((away > point.eps * by).float().mean().item() for by in (1.02, 0.98))
            assert least - 1e-6 <= point.robust.value <= most + above + 1e-6, point


def test_the_curve_in_l0_counts_features():
    model = linear(2)
    x = torch.rand(200, FEATURES, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    slope = model.weight[1 - y] - model.weight[y]
    gains = (slope * torch.where(slope > 0, 1 - x, -x)).sort(1, descending=True).values.cumsum(1)
    away = 1 + (gains < (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None]))).sum(1)
    threat = ThreatModel(norm="l0", eps=2)
    _, points = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat))
    assert all(point.eps == int(point.eps) for point in points)
    for point in points:
        assert point.robust.value == pytest.approx((away > point.eps).float().mean().item(), abs=0.02)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_the_curve_meets_the_suite_at_eps_and_comes_near_it_elsewhere(hardened, threat):
    x, y = shown(200)
    report, (found,) = evaluate(hardened, x, y, EvaluationConfig(threats=(threat,)))
    (of_threat,) = report.threats
    curve = {point.eps / threat.eps: point.robust for point in of_threat.curve}
    assert curve[1.0] == of_threat.robust
    assert found.robust_accuracy == pytest.approx(of_threat.robust.value)
    for by in (0.5, 1.5):
        fixed = measure(hardened, x, y, threat=threat.model_copy(update={"eps": by * threat.eps}))
        assert curve[by].value == pytest.approx(fixed.robust_accuracy, abs=0.03)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_only_the_curve_s_search_fools_counts_as_fooled(norm):
    model, threat = linear(2), ThreatModel(norm=norm, eps=0.05)
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    weak = measure(model, x, y, threat=threat, suite=[AttackConfig(name="noise", params={"draws": 1})])
    merged, points = security_curve(model, x, y, outcomes=weak)
    assert_honest(model, x, y, merged)
    assert weak.robust_accuracy > merged.robust_accuracy + 0.05
    assert merged.fooled[away < 0.98 * threat.eps].all()
    assert torch.equal(merged.attacks[-1].fooled, merged.fooled & ~weak.fooled)
    assert merged.attacks[:-1] == weak.attacks
    (meeting,) = [point for point in points if point.eps == threat.eps]
    assert meeting.robust.value == pytest.approx(merged.robust_accuracy)


# An arm that lies


def promises(search, rows, *, steps=8):
    search.look(rows, 1 - search.x[rows], inside=True)


def writes(search, rows, *, steps=8):
    search.nearest[rows] = 1 - search.x[rows]
    search.fooled[rows] = True


@pytest.mark.parametrize("arm", [promises, writes])
def test_an_arm_that_counts_what_is_out_of_reach_voids_the_number(arm, monkeypatch):
    model = linear(2)
    x, y = amid(model)
    assert measure(model, x, y, threat=SMALL, suite=["margin"]).problems == ()
    monkeypatch.setitem(ARMS, "margin", arm)
    found = measure(model, x, y, threat=SMALL, suite=["margin"])
    assert any("left the ball" in problem for problem in found.problems)
