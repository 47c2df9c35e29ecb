"""Results by class and by pair of classes against hand counts, scipy, and effects that were planted or absent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from tasks.attacks import ThreatModel, as_suite
from tasks.errors import WrongInput
from tasks.metrics import Outcomes, by_class, by_pair, wilson
from tasks.metrics.groups import fisher

CLASSES, EACH, RUNS = 6, 40, 400
SLACK = 3 * (0.05 * 0.95 / RUNS) ** 0.5  # three standard errors of a rate of 0.05
LABELS = torch.arange(CLASSES).repeat_interleave(EACH)


def outcomes(clean_correct: Tensor, fooled: Tensor, prediction: Tensor) -> Outcomes:
    x = torch.zeros(len(fooled), 1)
    return Outcomes(
        threat=ThreatModel(norm="linf", eps=0.1),
        suite=as_suite("quick"),
        seed=0,
        clean_correct=clean_correct,
        fooled=fooled,
        x_adv=x,
        prediction=prediction,
        nearest=x,
        margin=x[:, 0],
        attacks=(),
    )


def alike(rng: torch.Generator, fall: Tensor | float = 0.4) -> Outcomes:
    """Every sample is fooled with this chance, into any other class as readily as into the next."""
    n = len(LABELS)
    fooled = torch.rand(n, generator=rng) < fall
    shift = torch.randint(1, CLASSES, (n,), generator=rng)
    prediction = torch.where(fooled, (LABELS + shift) % CLASSES, LABELS)
    return outcomes(torch.ones(n, dtype=torch.bool), fooled, prediction)


Y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
RIGHT = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 1, 1]).bool()
FELL = torch.tensor([1, 1, 1, 0, 1, 0, 1, 0, 0, 0]).bool()
ANSWER = torch.tensor([2, 2, 1, 0, 2, 1, 0, 2, 2, 2])


def test_rows_by_class_match_a_hand_count():
    rows = by_class(outcomes(RIGHT, FELL, ANSWER), Y)
    assert [row.cls for row in rows] == [0, 1, 2]
    assert [(row.robust.value, row.robust.n) for row in rows] == [(0.25, 4), (pytest.approx(1 / 3), 3), (1.0, 3)]
    assert [row.clean.value for row in rows] == [1.0, pytest.approx(2 / 3), 1.0]
    assert (rows[1].robust.lo, rows[1].robust.hi) == wilson(1, 3)
    alone = [
        stats.fisher_exact([[1, 3], [4, 2]], "less").pvalue,
        stats.fisher_exact([[1, 2], [4, 3]], "less").pvalue,
        1.0,
    ]
    assert [row.p for row in rows] == pytest.approx([min(1, 3 * alone[0]), 1.0, 1.0])
    assert not any(row.worse for row in rows)


def test_rows_by_pair_match_a_hand_count_and_leave_out_what_was_wrong_from_the_start():
    rows = by_pair(outcomes(RIGHT, FELL, ANSWER), Y, 3)
    assert [(row.source, row.target, row.count, row.of) for row in rows] == [(0, 2, 2, 4), (1, 2, 1, 2), (0, 1, 1, 4)]
    assert [row.share.value for row in rows] == [0.5, 0.5, 0.25]
    # of 3 fooled at 1/2: two or more 1/2, one or more 7/8; of 1 fooled 1/2; two sources of two targets: four tests
    assert [row.p for row in rows] == pytest.approx([1.0, 1.0, 1.0])


def test_a_pairs_p_is_the_binomial_tail_times_the_number_of_pairs_that_could_occur():
    y = torch.tensor([0] * 12 + [3] * 5)
    fell, answer = torch.tensor([True] * 12 + [False] * 5), torch.tensor([2] * 12 + [3] * 5)
    (row,) = by_pair(outcomes(torch.ones(17, dtype=torch.bool), fell, answer), y, 4)
    assert row.p == pytest.approx(3 * (1 / 3) ** 12)  # only class 0 has fooled samples, and they have three targets
    assert row.frequent


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_fishers_test_agrees_with_scipy(held, n, others_held, others):
    held, others_held = min(held, n), min(others_held, others)
    expected = stats.fisher_exact([[held, n - held], [others_held, others - others_held]], "less").pvalue
    assert fisher(held, n, others_held, others) == pytest.approx(expected, rel=1e-8)


def test_fishers_test_is_as_exact_for_ten_thousand_samples():
    expected = stats.fisher_exact([[450, 550], [4700, 4300]], "less").pvalue
    assert fisher(450, 1000, 4700, 9000) == pytest.approx(expected, rel=1e-7)


def test_a_planted_weak_class_is_found_and_no_other():
    fall = torch.full((len(LABELS),), 0.3)
    fall[LABELS == 4] = 0.8
    rows = by_class(alike(torch.Generator().manual_seed(0), fall), LABELS)
    assert [row.cls for row in rows if row.worse] == [4]


def test_a_strong_class_is_not_called_worse():
    fall = torch.full((len(LABELS),), 0.5)
    fall[LABELS == 4] = 0.0
    rows = by_class(alike(torch.Generator().manual_seed(0), fall), LABELS)
    assert not rows[4].worse
    assert rows[4].p == 1.0


def test_a_planted_pair_is_found_and_no_other():
    found = alike(torch.Generator().manual_seed(1))
    drawn = (LABELS == 2) & found.fooled & (torch.arange(len(LABELS)) % 4 != 0)
    found.prediction[drawn] = 5
    rows = by_pair(found, LABELS, CLASSES)
    assert [(row.source, row.target) for row in rows if row.frequent] == [(2, 5)]
    assert rows[0].frequent
    assert [row.count for row in rows] == sorted((row.count for row in rows), reverse=True)


def test_where_all_are_alike_a_false_alarm_anywhere_is_as_rare_as_stated():
    rng, of_classes, of_pairs = torch.Generator().manual_seed(2), 0, 0
    for _ in range(RUNS):
        found = alike(rng)
        of_classes += any(row.worse for row in by_class(found, LABELS))
        of_pairs += any(row.frequent for row in by_pair(found, LABELS, CLASSES))
    assert 0 < of_classes / RUNS <= 0.05 + SLACK
    assert 0 < of_pairs / RUNS <= 0.05 + SLACK


def test_a_class_alone_is_never_worse_and_two_classes_have_no_frequent_pair():
    ones, y = torch.ones(30, dtype=torch.bool), torch.zeros(30, dtype=torch.long)
    (row,) = by_class(outcomes(ones, ones, y + 1), y)
    assert (row.p, row.worse) == (1.0, False)
    (pair,) = by_pair(outcomes(ones, ones, y + 1), y, 2)
    assert (pair.count, pair.p, pair.frequent) == (30, 1.0, False)


def test_nothing_fooled_gives_no_pairs():
    ones, y = torch.ones(4, dtype=torch.bool), torch.tensor([0, 1, 2, 0])
    assert by_pair(outcomes(ones, ~ones, y), y, 3) == ()
    assert [row.robust.value for row in by_class(outcomes(ones, ~ones, y), y)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("y", [Y[:4], Y.float(), Y - 1, Y[:, None]])
def test_labels_that_do_not_fit_the_outcomes_are_refused(y):
    with pytest.raises(WrongInput, match="a class number for each of the 10"):
        by_class(outcomes(RIGHT, FELL, ANSWER), y)


@pytest.mark.parametrize("classes", [1, 2])
def test_fewer_classes_than_the_outcomes_hold_are_refused(classes):
    with pytest.raises(WrongInput, match="hold class 2"):
        by_pair(outcomes(RIGHT, FELL, ANSWER), Y, classes)
