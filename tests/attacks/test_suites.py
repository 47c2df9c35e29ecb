"""Attacks and suites by name: what their digest follows, and what a wrong name is told."""

from functools import partial
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import ATTACKS, SUITES, AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.threat import Norm
from tasks.errors import UnknownPart, WrongInput


def sticker(model, x, y, *, threat, rng, size: int = 2):
    return x.clone()


class Sticker:
    """What an instance holds is in no digest."""

    def __init__(self, size: int = 2) -> None:
        self.size = size

    def __call__(self, model, x, y, *, threat, rng):
        return x.clone()


an_object, a_number, large = Sticker(), 3, partial(sticker, size=9)


@pytest.mark.parametrize("name", ["an_object", "a_number", "Sticker"])
def test_what_is_no_function_is_refused_before_anything_runs(name):
    with pytest.raises(WrongInput, match=rf"attack '{__name__}:{name}' is a .* and no function.*functools\.partial"):
        as_suite([f"{__name__}:{name}"])


def test_a_function_with_parameters_bound_is_an_attack():
    config = AttackConfig(name=f"{__name__}:large")
    assert as_suite([config]).attacks == (config,)
    assert config.resolved()["params"] == {"size": 9}


def test_a_suite_s_digest_follows_parameters_and_order_but_not_the_name():
    a, b = AttackConfig(name="pgd", params={"steps": 3}), AttackConfig(name="fgsm")
    digest = Suite(name="x", attacks=(a, b)).digest
    assert Suite(name="y", attacks=(a, b)).digest == digest
    assert Suite(name="x", attacks=(b, a)).digest != digest
    assert Suite(name="x", attacks=(AttackConfig(name="pgd", params={"steps": 4}), b)).digest != digest
    assert as_suite(["pgd"]).digest == as_suite([AttackConfig(name="pgd", params={"steps": 40})]).digest
    assert "source" in AttackConfig(name=f"{__name__}:sticker").resolved()


def test_a_parameter_that_came_later_counts_only_where_it_is_used():
    assert AttackConfig(name="margin").resolved()["params"] == {"steps": 8, "cut": 0}
    assert AttackConfig(name="margin", params={"soft": 16}).resolved()["params"] == {"steps": 8, "cut": 0, "soft": 16}


@pytest.mark.parametrize(
    ("suite", "hint"),
    [
        ("standrad", "Did you mean 'standard'"),
        (["pdg"], "Did you mean 'pgd'"),
        ([AttackConfig(name="pgd", params={"step": 3})], "Did you mean 'steps'"),
        (["nowhere_at_all:x"], "no module"),
        ([f"{__name__}:stiker"], "Did you mean 'sticker'"),
    ],
)
def test_an_unknown_part_names_the_nearest(suite, hint):
    with pytest.raises(UnknownPart, match=hint):
        as_suite(suite)


def test_an_empty_suite_is_refused():
    with pytest.raises(WrongInput, match="measures nothing"):
        as_suite([])


@pytest.mark.parametrize(
    "change",
    [{"again": 2.0}, {"passes": 10.0}, {"effort": 10.0}, {"whole": 10.0}, {"ends": {"l1": {"again": 2.0}}}],
    ids=str,
)
def test_a_suite_s_digest_follows_how_long_it_goes_on(change):
    plain = Suite(name="x", attacks=(AttackConfig(name="square", samples="drawn"),))
    other = Suite(**plain.model_dump() | change)
    assert other.digest != plain.digest
    assert Suite(**plain.model_dump() | change).digest == other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"samples": "drawn"},
        {"samples": "spare"},
        {"samples": "nearest"},
        {"share": 0.5},
        {"near": 0.5},
        {"fewest": 2},
        {"norms": ("l2",)},
    ],
    ids=str,
)
def test_a_suite_s_digest_follows_who_is_given_which_samples(change):
    row = AttackConfig(name="square")
    other = Suite(name="x", attacks=(row.model_copy(update=change),))
    assert other.digest != Suite(name="x", attacks=(row,)).digest


def test_every_shipped_suite_is_told_apart_and_runs_under_every_norm():
    assert len({suite.digest for suite in SUITES.values()}) == len(SUITES)
    for suite in SUITES.values():
        for norm in get_args(Norm):
            eps = {} if norm == "unbounded" else {"eps": 1 if norm.startswith("l0") else 0.1}
            rows = as_suite(suite).under(ThreatModel(norm=norm, **eps))
            assert all(row.norms is None or norm in row.norms for row in rows)


def test_a_suite_without_an_attack_for_the_norm_is_refused():
    suite = Suite(name="mine", attacks=(AttackConfig(name="sigma-zero", norms=("l0",)),))
    with pytest.raises(WrongInput, match="suite 'mine' holds no attack for L2"):
        suite.under(ThreatModel(norm="l2", eps=0.1))


@pytest.mark.parametrize(
    "fields",
    [
        {"again": 0},
        {"again": None},
        {"passes": 0},
        {"effort": 0},
        {"whole": 0},
        {"attacks": ()},
        {"agian": 1},
        {"ends": {"l3": {}}},
        {"ends": {"l1": {"passes": 0}}},
    ],
    ids=["again", "no end", "passes", "effort", "whole", "attacks", "unknown", "unknown norm", "another end"],
)
def test_a_suite_that_could_not_run_is_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Suite(**{"name": "x", "attacks": (AttackConfig(name="pgd"),)} | fields)


def test_a_limit_holds_under_every_norm():
    suite = SUITES["warm"].within(9.5)
    ends = {suite.end(ThreatModel(norm=norm, eps=0.1)).whole for norm in ("linf", "l2", "l1")}
    assert ends == {9.5}
    assert suite.end(ThreatModel(norm="l2", eps=1)).effort == SUITES["warm"].ends["l2"].effort


@pytest.mark.parametrize("passes", [0, -1.0, float("nan")])
def test_a_limit_that_leaves_nothing_is_refused(passes):
    with pytest.raises(WrongInput, match="leaves nothing to spend"):
        SUITES["warm"].within(passes)


@pytest.mark.parametrize("starts", ["", " ", "towards", "nearest towards", "noise,nearest"])
def test_an_unknown_start_says_which_there_are_before_anything_runs(starts):
    hint = (
        r"must name some of nearest, thinned, toward, borrowed, blocks, stripes, noise\. Write e\.g\. 'toward nearest'"
    )
    with pytest.raises(WrongInput, match=hint):
        as_suite([AttackConfig(name="restarts", params={"starts": starts})])
    model, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(WrongInput, match=hint):
        ATTACKS["restarts"](model, x, y, threat=ThreatModel(eps=0.1), rng=torch.Generator(), starts=starts)
