"""Slopes that do not hold as far as the radius: what the first step tells of them, and what is drawn then."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.attacks.arms import margin
from tasks.attacks.config import ARMS
from tasks.attacks.search import Search
from tasks.metrics import measure, merged
from tasks.metrics.cell import BLOCK
from tasks.metrics.drawing import Drawing
from tasks.metrics.engine import Engine
from tasks.metrics.isolation import Coarse, Meter
from tasks.metrics.store import CellStore

EPS = 0.2
HOLDS, TURNS = 1.0, 0.6  # how far the slope leads, in eps


class Bent(nn.Module):
    """Two classes on one feature. The margin falls from the middle of the box until it turns, and rises from there."""

    def __init__(self, turn: float, least: float = 1.0) -> None:
        super().__init__()
        self.turn, self.least = 0.5 + turn * EPS, least
        self.asked, self.followed = [], []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach()[:1].flatten())
        self.followed.append(x.requires_grad)
        margin = self.least + (x.flatten(1) - self.turn).abs()
        return torch.cat([margin / 2, -margin / 2], dim=1)


def amid(count: int) -> tuple[Tensor, Tensor]:
    return torch.full((count, 1), 0.5), torch.zeros(count, dtype=torch.long)


def searched(turn: float, norm: str, least: float = 1.0) -> Search:
    threat = ThreatModel(norm=norm, eps=EPS)
    return Search(Bent(turn, least), *amid(20), threat=threat, rng=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turn", [HOLDS, 0.75, TURNS])
def test_what_the_first_step_brought_is_told_as_a_share_of_what_the_descent_did(turn):
    search = searched(turn, "linf")
    margin(search, torch.arange(20), steps=12)
    assert search.straight == pytest.approx((2 * turn - 1) / turn, abs=0.03)  # out to eps, of the way to the turn


class Steep(Bent):
    """Below 0.3 the margin leads straight down, across the boundary."""

    def forward(self, x: Tensor) -> Tensor:
        margin = 10 * (x.flatten(1) - 0.25)
        return torch.where(x.flatten(1) < 0.3, torch.cat([margin / 2, -margin / 2], dim=1), super().forward(x))


def test_what_falls_at_the_first_step_counts_as_brought_by_it():
    x, y = amid(20)
    x[:10] = 0.28  # margin 0.3, all of it gone at the first step
    search = Search(Steep(TURNS), x, y, threat=ThreatModel(eps=EPS), rng=torch.Generator().manual_seed(0))
    margin(search, torch.arange(20), steps=12)
    assert search.fooled.tolist() == [True] * 10 + [False] * 10
    assert search.straight == pytest.approx((0.3 + 0.04) / (0.3 + 0.12), abs=0.02)


def test_later_descents_do_not_change_what_the_first_one_told():
    search = searched(TURNS, "linf")
    margin(search, torch.arange(20), steps=12)
    told = search.straight
    margin(search, torch.arange(20), steps=20)  # so long a one begins with a shorter step
    assert search.straight == told


def test_where_slopes_promise_too_much_every_sample_goes_on_and_later_promises_are_not_believed():
    search = searched(TURNS, "linf", least=0.05)  # its slope leads below zero within eps, the model does not
    rows, followed = torch.arange(20), search.model.followed
    for expected in ([True, False, *11 * [True], False], [*12 * [True], False]):
        followed.clear()
        margin(search, rows, steps=12)
        assert followed == expected
    assert search.margin.max().item() == pytest.approx(0.05, abs=0.01)
    assert search.straight == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_nothing_is_told_where_the_ball_is_larger_at_first(norm):
    search = searched(TURNS, norm)
    margin(search, torch.arange(20), steps=12)
    assert search.straight is None


def test_nothing_is_told_where_a_descent_gains_nothing():
    search = searched(0.0, "linf")
    margin(search, torch.arange(20), steps=12)
    assert search.straight is None


ROWS = (
    AttackConfig(name="margin", params={"steps": 6}),
    AttackConfig(name="classes", params={"steps": 4}, samples="drawn"),
    AttackConfig(name="restarts", params={"steps": 5}, samples="drawn"),
    AttackConfig(name="square", params={"queries": 10, "burst": 10}, samples="drawn"),
    AttackConfig(name="restarts", params={"steps": 7}, samples="spare"),
    AttackConfig(name="restarts", params={"steps": 9}, samples="winding"),
)


@pytest.mark.parametrize(("turn", "drawn"), [(HOLDS, {4, 5}), (TURNS, {9})])
def test_where_slopes_wind_the_rows_made_for_that_take_the_place_of_those_that_follow_slopes(turn, drawn, monkeypatch):
    met = set()
    for name in ("classes", "restarts"):

        def noted(search, rows, *, steps, arm=ARMS[name], how={"starts": "noise"} if name == "restarts" else {}):
            met.add(steps)
            arm(search, rows, steps=steps, **how)

        monkeypatch.setitem(ARMS, name, noted)
    found = measure(Bent(turn), *amid(20), threat=ThreatModel(eps=EPS), suite=Suite(name="lengths", attacks=ROWS))
    assert not found.fooled.any()  # so no late turn has called for the spare row
    assert met == drawn
    assert {attack.name for attack in found.attacks} == {"margin", "classes", "restarts", "square"}
    (scores,) = [attack for attack in found.attacks if attack.name == "square"]
    assert scores.tried.any()  # slopes may as well be false


def engine_of(search: Search, **how) -> Engine:
    suite = Suite(name="lengths", attacks=ROWS, **how)
    return Engine(search, suite, Meter(search.model), seed=0, cell=0, begun=0)


def test_a_suite_without_such_rows_and_a_model_whose_slopes_are_lent_are_searched_as_ever():
    search = searched(TURNS, "linf")
    search.straight = 0.5
    engine = engine_of(search)
    *rest, winding = engine.players[1:]

    def parted(group):
        how = {"search": search, "suite": engine.suite, "views": engine.views}
        drawing = Drawing(group, **how, spent=lambda: 0.0, left=lambda: 1.0)
        return drawing.first, drawing.spare

    assert parted([*rest, winding]) == ([winding, rest[2]], [])
    assert parted(rest) == (rest[:3], rest[3:])
    engine.views.lent = True
    assert parted([*rest, winding]) == (rest[:3], rest[3:])


@pytest.mark.parametrize(
    ("straight", "until", "ends"),
    [
        (0.5, 0, 300),
        (0.5, 200, 400),
        (0.5, 450, 600),
        (0.5, 1000, 600),
        (0.8, 0, 200),
        (0.8, 150, 300),
        (0.8, 1000, 400),
    ],
)
def test_where_slopes_wind_the_drawing_goes_on_for_as_long_again_between_its_limits(straight, until, ends, monkeypatch):
    """Effort is passes per sample that stands: a twentieth of the samples in a turn, 50 passes each, is 2.5."""
    spent = 0.0

    def arm(search, rows, **_):
        nonlocal spent
        for _ in range(50):
            search.look(rows, search.x[rows])
        search.fooled[rows[0]] |= spent < until  # one at each turn, as long as it lasts
        spent += 50 * len(rows) / float((~search.fooled).sum())

    monkeypatch.setitem(ARMS, "restarts", arm)
    meter, rng = Meter(Bent(TURNS)), torch.Generator().manual_seed(0)
    search = Search(meter, *amid(2000), threat=ThreatModel(eps=EPS), rng=rng, straight=straight)
    row = ROWS[-1].model_copy(update={"share": 0.05, "growth": 1.0})
    engine = Engine(search, Suite(name="w", attacks=(row,), again=0.1), meter, seed=0, cell=0, begun=0)
    engine.run()
    assert spent == pytest.approx(ends, abs=6)
    assert not engine.capped  # it has ended by itself


def test_where_slopes_wind_and_few_stand_each_of_them_is_tried_for_longer(monkeypatch):
    meter, x, y = Meter(Bent(TURNS)), *amid(200)
    search = Search(meter, x, y, threat=ThreatModel(eps=EPS), rng=torch.Generator().manual_seed(0), straight=0.5)
    search.fooled[:190] = True
    monkeypatch.setitem(ARMS, "restarts", lambda search, rows, **_: search.look(rows, search.x[rows]))
    Engine(search, Suite(name="w", attacks=ROWS[-1:]), meter, seed=0, cell=0, begun=0).run()
    assert meter.passes / 200 == pytest.approx(50, abs=1)  # where ten of 200 stand, an effort of 300 would be 15


def test_rows_made_for_winding_slopes_follow_them_in_full_precision(monkeypatch):
    search, met = searched(TURNS, "linf"), []
    search.straight, search.model = 0.5, Coarse(search.model, channels_last=False)
    monkeypatch.setitem(ARMS, "restarts", lambda search, rows, **_: met.append(search.model))
    engine = engine_of(search, passes=1)
    assert engine.views.now.searched is search.model
    engine.run()
    assert met
    assert all(model is engine.views.now.model is engine.meter for model in met)


class Mixed(nn.Module):
    """As one bent model or another, by the second feature."""

    def __init__(self) -> None:
        super().__init__()
        self.far, self.near = Bent(HOLDS), Bent(TURNS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 1:] > 0.5, self.far(x[:, :1]), self.near(x[:, :1]))


def test_the_outcome_keeps_the_least_that_any_cell_was_told_and_so_does_the_store(tmp_path):
    x = torch.full((2 * BLOCK, 2), 0.5)
    x[:BLOCK, 1] = 0.9
    y, threat = torch.zeros(len(x), dtype=torch.long), ThreatModel(eps=EPS, mask=(True, False))
    for stored in (False, True):
        model = Mixed()
        found = measure(model, x, y, threat=threat, suite=["margin"], store=CellStore(tmp_path), weights="w")
        assert found.straight == pytest.approx(1 / 3, abs=0.05)
        assert any(model.near.followed) != stored  # the second time nobody follows its slopes
    first = measure(Mixed(), x[:BLOCK], y[:BLOCK], threat=threat, suite=["margin"])
    assert first.straight == pytest.approx(1.0, abs=0.05)
    last = measure(Mixed(), x[BLOCK:], y[BLOCK:], threat=threat, suite=["margin"])
    assert merged([first, last]).straight == merged([last, first]).straight == last.straight
    nothing = measure(Mixed(), x, y, threat=threat, suite=["noise"])
    assert nothing.straight is None
    assert merged([nothing, nothing]).straight is None


@pytest.mark.parametrize(
    ("straight", "steps", "moves"),
    [(0.5, 40, (1.0, -2 * 0.025 ** (1 / 39))), (0.5, 20, (0.7, -0.609)), (0.9, 40, (0.7, -0.654))],
)
def test_where_slopes_wind_the_longest_descents_go_from_side_to_side_at_first(straight, steps, moves):
    search = searched(TURNS, "linf")
    search.straight = straight
    search.model.asked.clear()
    margin(search, torch.arange(20), steps=steps)
    there = torch.cat(search.model.asked[:3])
    assert (there.diff() / EPS).tolist() == pytest.approx(moves, abs=0.002)
