"""The moves against what a certificate proves: nothing in reach does better.

The certificate is `most`: by duality an upper bound on what a linear function can gain inside ball and limits. A
perturbation that is inside and attains the bound is therefore the best one, whatever made it.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import (
    ascend,
    distance,
    farthest,
    inside,
    limits,
    moved,
    project,
    sample,
    to_hyperplane,
    uphill,
)

SHAPE = (2, 3)  # channels and pixels
SCALE, MASK = (0.5, 2.0, 1.0, 1.5, 0.25, 1.0), (True, False, True, True, True, True)
RADII = {"linf": 0.1, "l2": 0.5, "l1": 0.8, "l0": 2, "l0-pixels": 1, "unbounded": 1.0}
PARTS = ({}, {"scale": SCALE}, {"mask": MASK}, {"scale": SCALE, "mask": MASK})
EVERY = [
    ThreatModel(norm=norm, eps=eps, **parts)
    for norm, eps in RADII.items()
    for parts in PARTS
    if norm != "unbounded" or "scale" not in parts
]
OF = {norm: [threat for threat in EVERY if threat.norm == norm] for norm in RADII}
CONVEX = [threat for threat in EVERY if not threat.norm.startswith("l0")]
LONG = OF["l2"] + OF["l1"]
seeds = st.integers(0, 10_000)


def drawn(seed: int, count: int = 4, dtype: torch.dtype = torch.float64):
    """Inputs of which every other batch touches the box, and a generator."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *SHAPE, generator=rng, dtype=dtype)
    return (x.round(decimals=0) if seed % 4 == 1 else x), rng


def normal(rng, count: int = 4, dtype: torch.dtype = torch.float64):
    return torch.randn(count, *SHAPE, generator=rng, dtype=dtype)


def scale_of(threat):
    return torch.tensor(threat.scale or (1.0,) * 6, dtype=torch.float64).view(1, *SHAPE)


def most(slope, threat, within, eps):
    """No d inside limits and ball has slope . d above this: [B], in float64. eps: the radius, or a count, [B]."""
    scale = scale_of(threat)
    low, high = (limit.double() / scale for limit in within)
    gain, room = (slope.double() * scale).abs(), torch.where(slope > 0, high, -low)
    if threat.norm in ("linf", "unbounded"):  # the radius cuts the room, in the scale's unit
        eps = eps.view(-1, 1, 1) if isinstance(eps, torch.Tensor) else eps
        return (gain * (room.clamp_max(eps) if threat.norm == "linf" else room)).flatten(1).sum(1)
    eps = torch.as_tensor(eps, dtype=torch.float64).expand(len(slope))
    if threat.norm.startswith("l0"):
        worth = (gain * room).sum(1) if threat.norm == "l0-pixels" else (gain * room).flatten(1)
        ranked = worth.sort(1, descending=True).values
        return (ranked * (torch.arange(ranked.shape[1]) < eps.unsqueeze(1))).sum(1)
    gain, room = gain.flatten(1), room.flatten(1)
    if threat.norm == "l1":  # of sum max(gain - price, 0) room + price eps the least, over every kink of the price
        price = torch.cat([gain, torch.zeros_like(gain[:, :1])], 1).unsqueeze(2)
        return (
            ((gain.unsqueeze(1) - price).clamp_min(0) * room.unsqueeze(1)).sum(2) + price[..., 0] * eps[:, None]
        ).amin(1)

    def bound(price):
        length = (gain / price.exp()).minimum(room)
        return (gain * length - price.exp() * length.square() / 2).sum(1) + price[:, 0].exp() * eps.square() / 2

    left, right = (torch.full((len(gain), 1), end, dtype=torch.float64) for end in (-30.0, 10.0))
    for _ in range(150):  # convex in the price
        a, b = left + (right - left) / 3, right - (right - left) / 3
        lower = (bound(a) < bound(b)).unsqueeze(1)
        left, right = torch.where(lower, left, a), torch.where(lower, b, right)
    return bound(left)


def dot(a, b):
    return (a * b).flatten(1).sum(1)


def assert_inside(x, delta, threat, slack: float = 1e-5):
    low, high = limits(x, threat)
    assert (delta >= low - slack).all()
    assert (delta <= high + slack).all()
    x_adv = moved(x, delta, threat)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if threat.norm != "unbounded":  # whose limits are all there is
        assert (distance(torch.zeros_like(x), delta, threat) <= threat.eps * (1 + slack)).all()
        assert (distance(x, x_adv, threat) <= threat.eps * (1 + slack)).all()


@given(
    seeds, st.sampled_from(EVERY), st.sampled_from([0.1, 1.0, 100.0]), st.sampled_from([torch.float32, torch.float64])
)
@settings(max_examples=150, deadline=None)
def test_a_projection_is_inside_ball_and_limits_and_stays_where_it_is(seed, threat, stretch, dtype):
    x, rng = drawn(seed, dtype=dtype)
    delta, within = stretch * normal(rng, dtype=dtype), limits(x, threat)
    once = project(delta, threat, within)
    assert once.dtype == dtype
    assert_inside(x, once, threat)
    torch.testing.assert_close(project(once, threat, within), once, rtol=1e-5, atol=1e-6)
    assert_inside(x, inside(x, x + delta, threat) - x, threat)


@given(seeds, st.sampled_from(EVERY))
@settings(max_examples=100, deadline=None)
def test_what_is_inside_is_left_alone(seed, threat):
    x, rng = drawn(seed)
    low, high = limits(x, threat)
    delta = normal(rng).clamp(low, high)
    if threat.norm.startswith("l0"):
        places = torch.rand(4, *(SHAPE[1:] if threat.norm == "l0-pixels" else SHAPE), generator=rng)
        few = places.flatten(1).argsort(1).argsort(1).view_as(places) < threat.eps
        delta = delta * (few.unsqueeze(1) if threat.norm == "l0-pixels" else few)
    else:
        far = distance(torch.zeros_like(x), delta, threat).clamp_min(1e-9)
        delta = delta * (0.999 * threat.eps / far).clamp_max(1.0).view(-1, 1, 1)
    torch.testing.assert_close(project(delta, threat, (low, high)), delta)


@given(seeds, st.sampled_from(CONVEX), st.sampled_from([0.1, 0.5, 5.0]))
@settings(max_examples=150, deadline=None)
def test_a_projection_is_the_nearest_point(seed, threat, stretch):
    x, rng = drawn(seed)
    delta, within = stretch * normal(rng), limits(x, threat)
    found = project(delta, threat, within)
    rest = (delta - found) / scale_of(threat).square()  # nearest: no point inside lies further along what was cut off
    assert (most(rest, threat, within, threat.eps) <= dot(rest, found) + 1e-6 * stretch).all()


@given(seeds, st.sampled_from(OF["l0"] + OF["l0-pixels"]))
@settings(max_examples=80, deadline=None)
def test_a_sparse_projection_is_nearer_than_every_other_choice_of_features(seed, threat):
    x, rng = drawn(seed)
    within = limits(x, threat)
    assert_nearest_of_all_choices(normal(rng).clamp(*within), threat, within)


@pytest.mark.parametrize("threat", [OF["l0"][0], OF["l0-pixels"][0]], ids=str)
def test_a_sparse_projection_from_beyond_the_box_is_the_nearest_too(threat):
    x, rng = drawn(0, count=50)
    assert_nearest_of_all_choices(5 * normal(rng, count=50), threat, limits(x, threat))


def assert_nearest_of_all_choices(delta, threat, within):
    clipped, scale = delta.clamp(*within), scale_of(threat)
    gap = distance_between(project(delta, threat, within), delta, scale)
    places = 3 if threat.norm == "l0-pixels" else 6
    for chosen in itertools.combinations(range(places), int(threat.eps)):
        keep = torch.zeros(places, dtype=torch.bool)
        keep[list(chosen)] = True
        keep = keep.expand(SHAPE) if threat.norm == "l0-pixels" else keep.view(SHAPE)
        assert (gap <= distance_between(clipped * keep, delta, scale) + 1e-9).all()


def distance_between(a, b, scale):
    return ((a - b) / scale).square().flatten(1).sum(1)


@given(seeds, st.sampled_from(EVERY), st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=150, deadline=None)
def test_the_farthest_perturbation_gains_all_that_can_be_gained(seed, threat, steep):
    x, rng = drawn(seed)
    slope, within = normal(rng), limits(x, threat)
    found = farthest(steep * slope, threat, within)
    assert_inside(x, found, threat)
    torch.testing.assert_close(dot(slope, found), most(slope, threat, within, threat.eps), rtol=1e-6, atol=1e-6)


@given(seeds, st.sampled_from([t for t in EVERY if t.norm != "l0-pixels"]), st.floats(0.01, 0.99))
@settings(max_examples=150, deadline=None)
def test_the_way_to_a_hyperplane_ends_on_it_and_none_is_shorter(seed, threat, share):
    x, rng = drawn(seed)
    slope, box = normal(rng), limits(x, threat.model_copy(update={"norm": "unbounded"}))
    drop = share * most(slope.neg(), threat.model_copy(update={"norm": "unbounded", "scale": None}), box, 1.0)
    found = to_hyperplane(slope, drop, threat, box)
    assert (found >= box[0] - 1e-9).all()
    assert (found <= box[1] + 1e-9).all()
    torch.testing.assert_close(dot(slope, found), -drop, rtol=1e-6, atol=1e-6)
    if threat.norm == "unbounded":
        return
    far = distance(torch.zeros_like(found), found, threat)
    shorter = far - 1 if threat.norm == "l0" else 0.999 * far
    assert ((most(-slope, threat, box, shorter) < drop) | (drop == 0)).all()


@given(seeds, st.sampled_from([t for t in EVERY if t.norm != "l0-pixels"]))
@settings(max_examples=50, deadline=None)
def test_a_hyperplane_out_of_reach_is_approached_as_far_as_the_box_allows(seed, threat):
    x, rng = drawn(seed)
    slope, box = normal(rng), limits(x, threat.model_copy(update={"norm": "unbounded"}))
    reach = most(-slope, threat.model_copy(update={"norm": "unbounded", "scale": None}), box, 1.0)
    found = to_hyperplane(slope, 3 * reach + 1, threat, box)
    torch.testing.assert_close(dot(slope, found), -reach)


@pytest.mark.parametrize("threat", EVERY, ids=str)
@pytest.mark.parametrize("drop", [0.0, 1.0, 1e30])
def test_from_level_ground_no_way_leads_to_a_hyperplane(threat, drop):
    x, _ = drawn(0)
    box = limits(x, threat.model_copy(update={"norm": "unbounded"}))
    found = to_hyperplane(torch.zeros_like(x), torch.full((len(x),), drop), threat, box)
    assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.parametrize("threat", [t for t in EVERY if not t.features], ids=str)
@pytest.mark.parametrize("steep", [1e-3, 1e-6])
def test_the_unit_of_the_logits_does_not_matter(threat, steep):
    x, rng = drawn(0, dtype=torch.float32)
    slope, drop, within = normal(rng, dtype=torch.float32), torch.tensor([0.0, 0.01, 0.1, 0.3]), limits(x, threat)
    for move in (
        lambda by: to_hyperplane(by * slope, by * drop, threat, within),
        lambda by: farthest(by * slope, threat, within),
        lambda by: uphill(by * slope, threat),
    ):
        torch.testing.assert_close(move(steep), move(1.0), rtol=1e-4, atol=1e-5)


def test_the_unit_of_the_logits_does_not_matter_where_gradients_all_but_vanish():
    threat, (x, rng) = ThreatModel(norm="l2", eps=0.5), drawn(0, dtype=torch.float32)
    slope, drop, within = normal(rng, dtype=torch.float32), torch.tensor([0.0, 0.01, 0.1, 0.3]), limits(x, threat)
    torch.testing.assert_close(
        to_hyperplane(1e-8 * slope, 1e-8 * drop, threat, within), to_hyperplane(slope, drop, threat, within)
    )
    torch.testing.assert_close(uphill(1e-16 * slope, threat), uphill(slope, threat))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-3.0, 5.0)])
def test_without_a_bound_every_valid_input_is_in_reach(bounds):
    threat, (low, high) = ThreatModel(norm="unbounded", bounds=bounds), bounds
    x = torch.full((1, *SHAPE), low)
    assert (distance(x, torch.full_like(x, high), threat) <= threat.eps).all()


def test_the_way_to_a_hyperplane_changes_the_fewest_pixels():
    threat, x = ThreatModel(norm="l0-pixels", eps=1), torch.full((1, *SHAPE), 0.5)
    slope = torch.tensor([[[0.9, 1.0, 0.0], [0.9, 0.0, 1.0]]])  # the first pixel alone gains 0.9, the others 0.5 each
    found = to_hyperplane(slope, torch.tensor([0.85]), threat, limits(x, threat))
    assert distance(x, x + found, threat).item() == 1


@pytest.mark.parametrize("threat", EVERY, ids=repr)
def test_random_perturbations_are_inside(threat):
    x, rng = drawn(1, count=200)
    assert_inside(x, sample(x, threat, rng), threat)
    assert not torch.equal(sample(x, threat, rng), sample(x, threat, rng))


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_random_perturbations_fill_the_ball_in_any_unit(unit):
    threat, x = ThreatModel(norm="l2", eps=0.1 / unit, scale=(unit,) * 6), torch.full((500, *SHAPE), 0.5)
    far = distance(x, x + sample(x, threat, torch.Generator().manual_seed(0)), threat) / threat.eps
    assert far.quantile(0.5) == pytest.approx(0.5, abs=0.1)
    assert far.max() > 0.95


@given(seeds, st.sampled_from(LONG), st.sampled_from([0.3, 5.0]))
@settings(max_examples=50, deadline=None)
def test_a_radius_for_each_sample_equals_one_sample_at_a_time(seed, threat, stretch):
    x, rng = drawn(seed)
    delta, slope, within = stretch * normal(rng), normal(rng), limits(x, threat)
    eps = (threat.eps * torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=x.dtype)).view(-1, 1, 1)
    start = project(delta, threat, within, eps)
    for together, move in (
        (start, lambda i, part, radius: project(delta[i], threat, part, radius)),
        (farthest(slope, threat, within, eps), lambda i, part, radius: farthest(slope[i], threat, part, radius)),
        (
            ascend(start, slope, threat, within, 0.5, eps),
            lambda i, part, radius: ascend(start[i], slope[i], threat, part, 0.5, radius),
        ),
    ):
        for row in range(len(x)):
            i = slice(row, row + 1)
            apart = move(i, (within[0][i], within[1][i]), eps[row].item())
            torch.testing.assert_close(together[i], apart, rtol=0, atol=1e-6)  # to which a multiplier is searched
            assert distance(torch.zeros_like(apart), apart, threat) <= eps[row].item() * (1 + 1e-6)


@given(seeds, st.sampled_from(EVERY), st.floats(0.01, 1.0))
@settings(max_examples=80, deadline=None)
def test_a_step_up_a_linear_slope_stays_inside_and_never_goes_down(seed, threat, share):
    x, rng = drawn(seed)
    within, slope = limits(x, threat), normal(rng)
    delta = project(normal(rng), threat, within)
    stepped = ascend(delta, slope, threat, within, share)
    assert_inside(x, stepped, threat)
    if threat.norm in ("linf", "unbounded", "l1"):  # in L0 the projection may drop what had been gained; L2 is below
        assert (dot(slope, stepped) >= dot(slope, delta) - 1e-6).all()


def test_a_step_up_a_linear_slope_never_goes_down_in_l2_either():
    for threat in OF["l2"]:
        x, rng = drawn(174, count=400)
        within, slope = limits(x, threat), normal(rng, count=400)
        delta = project(normal(rng, count=400), threat, within)
        for share in (0.1, 1.0):
            assert (dot(slope, ascend(delta, slope, threat, within, share)) >= dot(slope, delta) - 1e-6).all()


@given(seeds, st.sampled_from(OF["l1"]), st.sampled_from([0.125, 0.25, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_steps_in_l1_come_to_the_top_of_a_linear_slope_and_do_not_only_draw_near(seed, threat, share):
    x, rng = drawn(seed)
    within, slope = limits(x, threat), normal(rng)
    delta = farthest(-slope, threat, within)  # all of it in the wrong place
    for _ in range(round(2 / share)):
        delta = ascend(delta, slope, threat, within, share)
    torch.testing.assert_close(dot(slope, delta), most(slope, threat, within, threat.eps))


def test_a_step_in_l1_gives_up_what_is_worth_the_least_and_spends_it_up_the_slope():
    x, threat = torch.zeros(1, 3), ThreatModel(norm="l1", eps=1.0)
    delta, slope = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 0.1, 2.0]])
    within, worth = limits(x, threat), torch.tensor([[0.1, 1.0, 0.0]])
    assert ascend(delta, slope, threat, within, 0.5).tolist() == [[0.5, 0.0, 0.5]]
    assert ascend(delta, slope, threat, within, 0.5, worth=worth).tolist() == [[0.0, 0.5, 0.5]]


@pytest.mark.parametrize("threat", [t for t in OF["linf"] + OF["l2"] if not t.mask], ids=repr)
def test_a_step_uphill_has_length_one(threat):
    step = uphill(normal(torch.Generator().manual_seed(0)), threat)
    torch.testing.assert_close(distance(torch.zeros_like(step), step, threat), torch.ones(4, dtype=step.dtype))


@pytest.mark.parametrize(
    ("norm", "far"), [("linf", 0.4), ("l2", 0.5), ("l1", 0.7), ("l0", 2), ("l0-pixels", 1), ("unbounded", 0.4)]
)
def test_distances_are_what_a_hand_computes(norm, far):
    x_adv = torch.tensor([[[0.3, 0.0, 0.0], [-0.4, 0.0, 0.0]]], dtype=torch.float64)  # both channels of one pixel
    threat = ThreatModel(norm=norm, eps=RADII[norm])
    assert distance(torch.zeros_like(x_adv), x_adv, threat).item() == pytest.approx(far)
    halved = threat.model_copy(update={"scale": (2.0,) * 6})
    assert distance(torch.zeros_like(x_adv), x_adv, halved).item() == pytest.approx(
        far if norm[:2] == "l0" else far / 2
    )
    frozen = threat.model_copy(update={"mask": (False, *[True] * 5)})
    assert distance(torch.zeros_like(x_adv), x_adv, frozen).item() == float("inf")


@pytest.mark.parametrize("budget", [0.5, 8.0, 120.0])
@pytest.mark.parametrize("room", [1.0, 0.05])
def test_a_budget_in_l1_goes_to_the_steepest_features_however_many_it_takes(budget, room):
    """Of 784 features a few take it all, or most of them, or all with some of it left: against a sort in numpy."""
    rng = torch.Generator().manual_seed(0)
    slope, high = torch.randn(3, 1, 28, 28, generator=rng), room * torch.rand(3, 1, 28, 28, generator=rng)
    high[:, :, ::2] = 0.0  # no room there
    threat = ThreatModel(norm="l1", eps=budget)
    found = farthest(slope, threat, (-high, high)).flatten(1).numpy()
    for row, steep, wide in zip(found, slope.flatten(1).numpy(), high.flatten(1).numpy(), strict=True):
        order = np.argsort(-np.abs(steep))
        before = np.cumsum(wide[order]) - wide[order]
        best = np.clip(budget - before, 0.0, wide[order]) * np.abs(steep[order])
        assert row @ steep == pytest.approx(best.sum(), rel=1e-4)
        assert np.abs(row).sum() <= budget * (1 + 1e-5)
