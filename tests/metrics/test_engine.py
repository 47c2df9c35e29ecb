"""The engine behind measure() against a reference and closed forms, and against arms that lie."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.config import ARMS
from tasks.data import digits
from tasks.defences import plain
from tasks.metrics import measure
from tasks.metrics.cell import BLOCK, attack_cell
from tasks.metrics.isolation import untouched
from tasks.models import TrainingConfig, fit
from tasks.models.networks import mlp
from tests.metrics.nets import (
    FEATURES,
    L1,
    L2,
    LINF,
    SMALL,
    WON,
    Through,
    amid,
    assert_honest,
    boundary_distance,
    few,
    linear,
    shown,
)


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


def test_where_only_winners_pass_standard_leaves_no_more_standing_than_autoattack(winners, reference):
    x, y = shown(40)
    oracle = reference(winners, x, y, WON)
    assert 5 < oracle < 35
    for seed in range(3):
        found = measure(winners, x, y, threat=WON, seed=seed)
        assert_honest(winners, x, y, found)
        assert (~found.fooled).sum() <= oracle, f"seed {seed}"


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
