"""Intervals, tests and sample sizes against scipy, brute force and simulation."""

import itertools
import statistics
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from tasks.errors import WrongInput
from tasks.metrics import (
    Spread,
    anytime_interval,
    holm,
    mcnemar,
    paired_loss,
    smallest_paired,
    smallest_sample,
    wilson,
)
from tasks.statistics import binomial_tail

PROPORTIONS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_agrees_with_scipys_exact_binomial_and_with_itself_turned_round(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


@pytest.mark.parametrize(("lost", "gained"), [(4900, 5100), (2400, 2600), (9000, 1000), (0, 6000)])
def test_mcnemar_is_as_exact_for_thousands_of_pairs(lost, gained):
    assert mcnemar(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-8)


def test_mcnemar_refuses_negative_numbers():
    with pytest.raises(ValueError, match="no numbers of pairs"):
        mcnemar(-1, 3)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.0, 0.01, 1 / 9, 0.5, 0.98, 1.0]))
def test_the_binomial_tail_agrees_with_scipy(count, n, chance):
    assert binomial_tail(count, n, chance) == pytest.approx(stats.binom.sf(count - 1, n, chance), rel=1e-9, abs=1e-300)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_what_closed_testing_by_bonferroni_gives(p):
    adjusted = holm(p)
    for i in range(len(p)):
        others = [j for j in range(len(p)) if j != i]
        sets = [(i, *s) for size in range(len(p)) for s in itertools.combinations(others, size)]
        assert adjusted[i] == pytest.approx(max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets))


def test_holm_keeps_the_order_it_was_given():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx((0.06, 0.03, 0.06))


@pytest.mark.parametrize("p", [[0.5, 1.2], [-0.1], [float("nan")]])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="is no p value"):
        holm(p)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("floor", [0.05, 0.3, 0.5, 0.77, 0.9, 0.99])
def test_the_smallest_sample_decides_a_floor_and_one_fewer_does_not(floor, confidence):
    def decides(n: int) -> bool:
        return wilson(n, n, confidence=confidence)[0] >= floor and wilson(0, n, confidence=confidence)[1] < floor

    n = smallest_sample(floor, confidence=confidence)
    assert all(decides(m) for m in range(n, n + 300))
    assert not any(decides(m) for m in range(1, n))


def test_a_floor_of_zero_takes_one_sample():
    assert smallest_sample(0) == 1
    assert wilson(0, 1)[0] >= 0


@pytest.mark.parametrize(
    ("floor", "hint"),
    [
        (1, "never be cleared.*floor=0.99"),
        (1.5, "must lie in 0..1"),
        (-0.1, "must lie in 0..1"),
        (float("nan"), "must lie in 0..1"),
        (1e-9, "more than 10,000,000"),
    ],
)
def test_a_floor_that_no_sample_decides_is_refused(floor, hint):
    with pytest.raises(WrongInput, match=hint):
        smallest_sample(floor)


def test_a_sample_of_a_million_is_found_at_once():
    started = time.process_time()
    assert 900_000 < smallest_sample(4e-6) < 1_000_000
    assert time.process_time() - started < 1


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("tolerance", [0.5, 0.05, 0.03, 0.01, 0.001])
def test_the_smallest_paired_sample_shows_the_tolerance_and_one_fewer_does_not(tolerance, confidence):
    n = smallest_paired(tolerance, confidence=confidence)
    assert paired_loss(0, 0, n, confidence=confidence)[1] <= tolerance
    assert n == 1 or paired_loss(0, 0, n - 1, confidence=confidence)[1] > tolerance


@pytest.mark.parametrize("tolerance", [0, -0.1, 1e-9, float("nan")])
def test_a_tolerance_that_cannot_be_shown_is_refused(tolerance):
    with pytest.raises(WrongInput, match=r"Write e\.g\. 0\.01|more than 10,000,000"):
        smallest_paired(tolerance)


def gain(p: float, count: int, n: int) -> float:
    """The logarithm of the mixture's likelihood over that of p, by scipy."""
    mixture = special.betaln(count + 0.5, n - count + 0.5) - special.betaln(0.5, 0.5)
    return mixture - special.xlogy(count, p) - special.xlog1py(n - count, -p)


@settings(deadline=None)
@given(PROPORTIONS, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_anytime_interval_ends_where_the_bet_reaches_its_stake(proportion, confidence):
    (count, n), stake = proportion, -np.log1p(-confidence)
    lo, hi = anytime_interval(count, n, confidence=confidence)
    at = (0.0, count / n, 1.0)
    expected = [
        optimize.brentq(lambda p: min(gain(p, count, n), 1e3) - stake, a, b, xtol=1e-14) if a != b else a
        for a, b in itertools.pairwise(at)
    ]
    assert (lo, hi) == pytest.approx(tuple(expected), abs=1e-9)


@settings(deadline=None)
@given(PROPORTIONS, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_anytime_interval_holds_the_estimate_and_wilsons_interval(proportion, confidence):
    lo, hi = anytime_interval(*proportion, confidence=confidence)
    narrow = wilson(*proportion, confidence=confidence)
    assert 0 <= lo <= narrow[0] + 1e-12
    assert narrow[1] - 1e-12 <= hi <= 1
    assert lo <= proportion[0] / proportion[1] <= hi


def accepted(p: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """For each n of 1..steps the fewest and the most successes whose interval holds p."""
    few, many, least, most = [], [], 0, 0
    for n in range(1, steps + 1):
        most += 1
        while anytime_interval(least, n)[1] < p:
            least += 1
        while anytime_interval(most, n)[0] > p:
            most -= 1
        few.append(least)
        many.append(most)
    return np.array(few), np.array(many)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.95])
def test_who_looks_at_every_step_misses_the_true_share_no_more_often_than_stated(p):
    few, many = accepted(p, 1000)
    counts = (np.random.default_rng(0).random((2000, 1000)) < p).cumsum(1)
    missed = ((counts < few) | (counts > many)).any(1).mean()
    assert 0 < missed <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_who_looks_at_every_step_with_wilsons_interval_is_misled_far_more_often():
    n = np.arange(1, 1001)
    counts = (np.random.default_rng(0).random((500, 1000)) < 0.5).cumsum(1)
    away = np.abs(counts - n / 2) / np.sqrt(n / 4)  # in standard errors; Wilson's interval is this test turned round
    assert (away > 1.96).any(1).mean() > 0.3


@pytest.mark.parametrize(("count", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 2, 1.0)])
def test_the_anytime_interval_refuses_what_is_no_proportion_or_confidence(count, n, confidence):
    with pytest.raises(ValueError, match=r"no proportion|outside 0\.\.1"):
        anytime_interval(count, n, confidence=confidence)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_spread_says_what_the_standard_library_says(values):
    spread = Spread.of(values)
    assert spread.values == tuple(values)
    assert (spread.worst, spread.best) == (min(values), max(values))
    assert (spread.mean, spread.sd) == pytest.approx((statistics.fmean(values), np.std(values, ddof=1)), abs=1e-12)
    assert Spread.model_validate_json(spread.model_dump_json()) == spread


def test_one_seed_has_no_spread_and_none_is_refused():
    assert Spread.of([0.4]) == Spread(values=(0.4,), mean=0.4, sd=0.0, worst=0.4, best=0.4)
    assert str(Spread.of([0.4, 0.5])) == "0.450, sd 0.071, 0.400 to 0.500 over 2 seeds"
    for values in ([], [0.2, float("nan")], [1.1]):
        with pytest.raises(ValueError, match="not shares"):
            Spread.of(values)
