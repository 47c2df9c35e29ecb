"""Slopes of another view of the model: behind comparisons, labels and choices."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tasks.attacks import SUITES, ThreatModel
from tasks.defences import plain
from tasks.metrics import drawing, engine, isolation, measure, views
from tests.metrics.nets import L2, LINF, WON, Through, assert_honest, shown, trained


class Levels(nn.Module):
    """Rounded in the middle, to five levels; trained as if it were not."""

    def forward(self, x):
        smooth = torch.tanh(x)
        level = (smooth * 2).round() / 2
        return smooth + (level - smooth).detach() if self.training else level


@pytest.mark.parametrize("threat", [WON, L2], ids=str)
@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_slopes_behind_comparisons_fell_what_the_model_s_own_do_not(winners, threat, suite, monkeypatch):
    x, y = shown(100)
    found = measure(winners, x, y, threat=threat, suite=suite)
    assert_honest(winners, x, y, found)
    monkeypatch.setattr(views, "decided", lambda *_: (None, False))
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


def test_behind_comparisons_turns_go_on_for_longer_and_up_to_a_limit(winners, monkeypatch):
    x, y = shown(100)
    found = measure(winners, x, y, threat=WON)
    monkeypatch.setattr(drawing, "MANY", 40.0)
    limited = measure(winners, x, y, threat=WON)
    assert 40 * len(x) < limited.passes < 0.8 * found.passes
    assert limited.capped
    monkeypatch.setattr(drawing, "MANY", 1000.0)
    long = measure(winners, x, y, threat=WON)
    for name in ("BOTH", "STEEP"):
        monkeypatch.setattr(drawing, name, 0.0)
    brief = measure(winners, x, y, threat=WON)
    assert brief.passes < 0.8 * long.passes
    assert (~long.fooled).sum() <= (~brief.fooled).sum()


def test_behind_comparisons_an_attack_that_nobody_follows_descends_on_every_sample(winners, monkeypatch):
    x, y = shown(200)
    found = measure(winners, x, y, threat=WON, suite=["margin"])
    monkeypatch.setattr(views, "decided", lambda *_: (None, False))
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
    monkeypatch.setattr(views, "decided", lambda *_: pytest.fail("the values behind the labels are known"))
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


def test_what_slopes_call_for_late_follows_the_view_too_where_the_search_is_coarse(winners, monkeypatch):
    followed, attack = [], engine.Engine._attack

    def noted(at_work, tally, rows):
        if tally.config.samples in ("spare", "winding"):
            followed.append((at_work.search.model, at_work.views.now.model, at_work.meter))
        attack(at_work, tally, rows)

    monkeypatch.setattr(engine.Engine, "_attack", noted)
    x, y = shown(100)
    found = measure(winners, x, y, threat=WON, precision="bf16")
    assert_honest(winners, x, y, found)
    assert any(view is not meter for _, view, meter in followed)
    assert all(model is view for model, view, _ in followed)


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


def test_ways_and_the_model_s_own_slopes_are_followed_by_turns(sent, monkeypatch):
    x, y = shown(200)
    followed, turn = [], engine.Engine._turn

    def noted(at_work, player):
        gained = turn(at_work, player)
        followed.append(at_work.views.now.model is at_work.meter)
        return gained

    monkeypatch.setattr(engine.Engine, "_turn", noted)
    found = measure(sent, x, y, threat=SENT)
    assert_honest(sent, x, y, found)
    ways = 1 + len(sent.ways)
    assert followed == [number % ways == 0 for number in range(len(followed))]
    assert len(followed) > 10
    monkeypatch.setattr(views, "decided", lambda *_: (None, False))
    own = measure(sent, x, y, threat=SENT)
    assert (~found.fooled).sum() < 0.5 * (~own.fooled).sum()


def test_a_way_is_followed_on_every_sample_that_does_not_go_it_where_nobody_takes_turns(sent, monkeypatch):
    x, y = shown(200)
    found = measure(sent, x, y, threat=SENT, suite=["margin"])
    monkeypatch.setattr(views, "decided", lambda *_: (None, False))
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
    tried, steepen = [], engine.Engine._look_behind

    def noted(at_work, player):
        own, passes = at_work.views.now, at_work.meter.passes
        steepen(at_work, player)
        tried.append((at_work.meter.passes - passes, own))
        assert at_work.views.now is own
        assert at_work.search.slopes is own.slopes

    monkeypatch.setattr(engine.Engine, "_look_behind", noted)
    found, plainly = (measure(model, x, y, threat=LINF) for model in (same, hardened))
    (with_choices, _), (without, own) = tried
    assert without == 2 * views.GLANCE
    assert own.slopes is not None
    assert with_choices > 4 * isolation.PROBE
    assert abs(int(found.fooled.sum()) - int(plainly.fooled.sum())) <= 1


BEHIND_LEVELS: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {
    "descents bring nothing more": (
        lambda: [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), Levels(), nn.Flatten()],
        80,
        130,
    ),
    "until a limit": (lambda: [nn.Flatten(), nn.Linear(64, 512), Levels()], 590, 640),
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


class Beside(nn.Module):
    """Features that pass no slope on, once it is trained, and a path beside them that does."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.last, self.beside = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        features = self.features(x)
        return self.last(features if self.training else features.detach()) + 0.3 * self.beside(x.flatten(1))


class Shaken(nn.Module):
    """A wave on the input that is too fine to change an answer: slopes that tell nothing, and nothing opens."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.002 * torch.sin(5e3 * x))


def test_slopes_that_do_not_fit_the_answers_give_way_to_some_that_do(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = trained(Beside(), plain, eps=0.1, epochs=12)
    x, y = shown(100)
    found = measure(model.eval(), x, y, threat=WON)
    assert_honest(model, x, y, found)

    class Open(Beside):
        def forward(self, x):
            return self.last(self.features(x)) + 0.3 * self.beside(x.flatten(1))

    opened = Open()
    opened.load_state_dict(model.state_dict())
    assert abs(int(found.fooled.sum()) - int(measure(opened, x, y, threat=WON).fooled.sum())) <= 1
    monkeypatch.setattr(views.Views, "doubt", lambda *_: False)
    assert (~measure(model, x, y, threat=WON).fooled).sum() > 10 + (~found.fooled).sum()


def test_where_no_slopes_fit_the_answers_attacks_without_any_go_on(reference, hardened, monkeypatch):
    model, (x, y) = Shaken(hardened), shown(40)
    threat = ThreatModel(norm="linf", eps=0.2)
    found = measure(model, x, y, threat=threat)
    assert_honest(model, x, y, found)
    assert (~found.fooled).sum() <= reference(model, x, y, threat)
    monkeypatch.setattr(views.Views, "doubt", lambda *_: False)
    believed = measure(model, x, y, threat=threat)
    spent, before = (
        sum(a.forward_samples for a in outcomes.attacks if a.name == "square") for outcomes in (found, believed)
    )
    assert spent > 4 * before
    assert (~found.fooled).sum() < (~believed.fooled).sum()
