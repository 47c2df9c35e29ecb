"""How a descent goes: from a ball that is larger at first into the budget, exact where it is linear, and cut short."""

import math

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel, arms
from tasks.attacks.arms import classes, margin, restarts
from tasks.attacks.geometry import distance
from tasks.attacks.rows import At
from tasks.attacks.search import ANY, Search, sloped, soft_margins

FEATURES, COUNT = 30, 90
EPS = {"linf": 0.003, "l2": 0.0135, "l1": 0.032}  # at which about half of the samples fall
WIDER = {"l2": (3.0, 2.0), "l1": (6.0, 12.0, 3.0)}  # the balls in which a sample's descents begin, in eps
BEFORE = {"l1": 0.8}  # how far of its first step the model is asked
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class Heard(nn.Module):
    """Two classes, linear, the boundary through the middle of the box; keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.randn(FEATURES, generator=torch.Generator().manual_seed(0))
        self.asked: list[Tensor] = []
        self.followed: list[bool] = []  # whether its slope was asked for as well

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        self.followed.append(x.requires_grad)
        lead = (x - 0.5) @ self.slope
        return torch.stack([-lead, lead], dim=1)


def searched(norm: str, share: float = 1.0) -> tuple[Search, Tensor]:
    """A search over samples far from the box, eps being so much of EPS, and how far each is from the boundary: [N]."""
    model, threat = Heard(), ThreatModel(norm=norm, eps=share * EPS[norm])
    x = 0.5 + 0.02 * torch.randn(COUNT, FEATURES, generator=torch.Generator().manual_seed(1))
    away = ((x - 0.5) @ model.slope).abs() / model.slope.norm(p=DUAL[norm])
    search = Search(model, x, model(x).argmax(1), threat=threat, rng=torch.Generator().manual_seed(3))
    model.asked.clear()
    model.followed.clear()
    return search, away


@pytest.mark.parametrize("arm", [margin, classes])
@pytest.mark.parametrize("norm", EPS)
def test_a_single_step_ends_within_the_budget_and_is_exact_on_a_linear_model(norm, arm):
    search, away = searched(norm)
    eps = search.threat.eps
    assert 20 < (away < eps).sum() < 70
    arm(search, torch.arange(COUNT), steps=1)
    assert search.fooled[away < 0.999 * eps].all()
    assert not search.fooled[away > 1.001 * eps].any()


@pytest.mark.parametrize("norm", EPS)
def test_the_ball_is_larger_at_first_in_l2_and_l1_and_soon_is_eps(norm):
    search, away = searched(norm, share=0.01)
    rows = (away > 10 * search.threat.eps).nonzero().flatten()  # whom no step fells
    assert len(rows) > 40
    margin(search, rows, steps=12)
    assert len(search.model.asked) == 13
    far = torch.stack([distance(search.x[rows], x, search.threat) for x in search.model.asked]) / search.threat.eps
    assert far[1].amax() == pytest.approx(BEFORE.get(norm, 1.0) * WIDER.get(norm, (1.0,))[0], rel=0.01)
    assert far[5:].amax() <= 1.001
    assert far[-1].amin() == pytest.approx(1.0, rel=0.01)
    assert not search.fooled.any()


@pytest.mark.parametrize("norm", EPS)
def test_a_sample_s_restarts_take_turns_among_balls(norm):
    search, away = searched(norm, share=0.01)
    rows = (away > 20 * search.threat.eps).nonzero().flatten()
    assert len(rows) > 30
    for ball in (3 * WIDER.get(norm, (1.0,)))[:3]:
        search.model.asked.clear()
        restarts(search, rows, starts="nearest", steps=12)
        begun, went = (
            distance(search.x[rows], x, search.threat).amax().item() / search.threat.eps for x in search.model.asked[:2]
        )
        asked = BEFORE.get(norm, 1.0)
        assert went == pytest.approx(asked * ball + (1 - asked) * begun, rel=0.01)


@pytest.mark.parametrize("arm", [margin, restarts, classes])
def test_after_the_cut_the_better_third_goes_on(arm):
    search, away = searched("linf", share=0.01)
    rows = (away > 2 * search.threat.eps).nonzero().flatten()
    how = {"starts": "nearest"} if arm is restarts else {}
    arm(search, rows, steps=10, cut=6, **how)
    counts = [len(x) for x in search.model.asked]
    assert counts[:7] == [len(rows)] * 7
    third = round(len(rows) / 3)
    assert all(abs(count - third) <= 1 for count in counts[7:])
    assert len(counts) == 11
    nearest = search.x[rows[away[rows].argsort()[: counts[-1]]]]
    gone_on = search.model.asked[-1]
    assert torch.cdist(gone_on, nearest).amin(1).amax() < 0.01  # those that were the nearest to falling


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_the_slopes_at_the_inputs_are_known_nothing_is_asked_there_and_all_else_is_as_before(norm):
    asked = []
    for known in (False, True):
        search, _ = searched(norm, share=0.5)
        if known:
            search.slopes = sloped(search.model, search.x, search.y)[1]
            search.model.asked.clear()
        margin(search, torch.arange(COUNT), steps=8)
        asked.append(search.model.asked)
    before, after = asked
    assert torch.equal(before[0], search.x)
    assert len(before) == len(after) + 1
    assert all(torch.equal(a, b) for a, b in zip(before[1:], after, strict=True))


def test_a_sample_that_its_slope_foretells_to_fall_is_only_looked_at():
    search, away = searched("linf")
    margin(search, torch.arange(COUNT), steps=8)
    falls = away < search.threat.eps
    counts, followed = [len(x) for x in search.model.asked], search.model.followed
    assert counts[:3] == [COUNT, falls.sum(), COUNT - falls.sum()]
    assert followed[:3] == [True, False, True]
    assert torch.equal(search.fooled, falls)


class Spent(Heard):
    """Two classes. Two features help until they have risen by 0.2 and then no more, the others always help a little."""

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        lead = (x[:, :2] - 0.7).clamp_max(0.2).sum(1) + 0.2 * x[:, 2:].sum(1) - 0.39
        return torch.stack([-lead, lead], dim=1)


def test_in_l1_a_feature_that_has_done_its_work_is_not_given_up_at_once_for_one_that_does_less(monkeypatch):
    monkeypatch.setattr(arms, "BEHIND", 0.0)  # so that the model is asked where each step has led
    x = torch.cat([torch.full((1, 2), 0.7), torch.zeros(1, 14)], dim=1)
    threat = ThreatModel(norm="l1", eps=0.45)  # the two together reach the boundary, nothing else does
    search = Search(Spent(), x, torch.tensor([0]), threat=threat, rng=torch.Generator().manual_seed(0))
    margin(search, torch.arange(1), steps=20)
    _, _, first, second, *_ = (x[0, :2] - 0.7 for x in search.model.asked)
    assert first.tolist() == pytest.approx([0.3, 0.3])  # both are used up: neither shows a slope
    assert second.amax().item() == pytest.approx(0.3)
    assert search.fooled.all()


def test_a_soft_margin_is_a_smooth_one_whatever_the_logits_are_multiplied_with():
    y, anyone = torch.tensor([0]), torch.tensor([ANY])
    logits = torch.tensor([[5.0, 3.0, 1.0, 1.0]])  # the others' highest, less their mean, is 4 / 3
    smooth = 3.0 + math.log1p(2 * math.exp(-2.0 * 6.0 * 3 / 4)) / 6.0 * 4 / 3
    for factor in (1e-3, 1.0, 1e3):
        found = soft_margins(factor * logits, y, anyone, soft=6.0)
        assert found.item() == pytest.approx(factor * (5.0 - smooth), rel=1e-5)
    assert soft_margins(logits, y, torch.tensor([2]), soft=6.0).item() == 4.0  # a named class: no other counts
    assert soft_margins(logits[:, :2], y, anyone, soft=6.0).item() == 2.0
    assert soft_margins(torch.tensor([[2.0, 1.0, 1.0]]), y, anyone, soft=6.0).item() == pytest.approx(1.0)
    leaf = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(soft_margins(leaf, y, anyone, soft=6.0).sum(), leaf)
    others = torch.softmax(logits[:, 1:] * 6.0 * 3 / 4, dim=1)
    torch.testing.assert_close(slope, torch.cat([torch.ones(1, 1), -others], dim=1))


@pytest.mark.parametrize(("steps", "first"), [(8, 1.0), (14, 1.0), (15, 0.7), (40, 0.7)])
def test_a_long_descent_in_l_inf_begins_with_less_than_the_whole_radius(steps, first):
    asked = []

    class Noting(nn.Module):
        def forward(self, x):
            asked.append(x.detach().clone())
            return torch.stack([x.sum(1) + 9, -x.sum(1)], 1)  # nothing within reach fools it

    x, threat = torch.full((1, 6), 0.5), ThreatModel(norm="linf", eps=0.1)
    search = Search(Noting(), x, torch.tensor([0]), threat=threat, rng=torch.Generator())
    asked.clear()
    margin(search, torch.tensor([0]), steps=steps)
    torch.testing.assert_close((asked[1] - asked[0]).abs().amax(), torch.tensor(0.1 * first))


@pytest.mark.parametrize("arm", [margin, restarts])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_row_may_follow_a_soft_margin(arm, norm):
    """Of two classes that are nearly as far only one is the nearest; the soft margin's slope leads between the two."""

    class Four(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * 0, x[:, 1] - 2, x[:, 2] - 2 - 1e-3, x[:, 0] * 0 - 10], 1)

    x, y = torch.full((1, 3), 0.5), torch.tensor([0])
    reached = []
    for soft in (0.0, 4.0):
        first = sloped(Four(), x, y)[1]
        how = {"threat": ThreatModel(norm=norm, eps=0.1), "rng": torch.Generator().manual_seed(0)}
        search = Search(Four(), x, y, slopes=first, **how)
        starts = {} if arm is margin else {"starts": "nearest"}
        arm(search, torch.arange(1), steps=1, soft=soft, **starts)
        reached.append((search.nearest - x)[0])
    assert reached[0][2] == 0
    assert reached[1][2] > 0.05
    assert reached[0][1] == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("straight", "own", "steady"), [(0.95, True, True), (0.8, True, False), (None, True, False), (0.95, False, False)]
)
def test_small_steps_follow_a_mean_of_slopes_where_the_model_s_own_hold_far(straight, own, steady):
    search, _ = searched("linf")
    search.straight, search.slopes = straight, torch.ones_like(search.x) if own else None
    one, here = torch.zeros(1, dtype=torch.long), torch.zeros(1, FEATURES)
    move, moved = arms._climb(search, here, 8, wide=1.0), []
    for step, slope in enumerate((1.0, -0.3, 1.0, 1.0, 1.0, -0.3, -0.3)):
        grad = torch.cat([torch.tensor([[slope]]), torch.ones(1, FEATURES - 1)], 1)
        moved.append(move(At(one, one, here, grad, torch.ones(1), torch.full((1,), step)))[0, 0].sign().item())
    early, late = [-1.0, 1.0, -1.0, -1.0, -1.0], [-1.0, 1.0] if steady else [1.0, 1.0]
    assert moved == early + late  # one step against the others is not followed, the next one is
