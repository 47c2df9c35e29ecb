"""decide_early() on a model whose robust share is known, on planted faults, and its error rate over many runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.errors import WrongInput
from tasks.metrics import EarlyDecision, decide_early, gate, measure

HERE = __name__
RNG = torch.Generator().manual_seed(0)
X = torch.rand(1000, 1, generator=RNG).sort(0).values  # sorted: the first in line are the easiest
Y = (X[:, 0] > 0.5).long()


def threshold_model() -> nn.Linear:
    """Class 1 where the only feature is above 0.5: a sample stands if |x - 0.5| > eps, so 1 - 2 eps of them do."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0]]))
        model.bias.copy_(torch.tensor([0.0, -5.0]))
    return model


def standing(share: float) -> ThreatModel:
    """The threat under which this share of uniform samples stands."""
    return ThreatModel(norm="linf", eps=(1 - share) / 2)


def raises_near_the_middle(model, x, y, *, threat, rng):
    if ((x - 0.5).abs() < 0.0005).any():
        raise RuntimeError("out of ideas")
    return x


DRAWN: list[float] = []


def notes_its_draw(model, x, y, *, threat, rng):
    DRAWN.append(torch.rand(1, generator=rng).item())
    return x


def raises(model, x, y, *, threat, rng):
    raise RuntimeError("out of ideas")


@pytest.mark.parametrize("suite", [["pgd"], "standard"], ids=str)
@pytest.mark.parametrize(("share", "outcome"), [(0.95, "above the floor"), (0.05, "below the floor")])
def test_a_clear_case_takes_a_tenth_of_the_samples_at_most(share, outcome, suite):
    for seed in range(5):
        found = decide_early(threshold_model(), X, Y, threat=standing(share), floor=0.5, suite=suite, seed=seed)
        assert found.outcome == outcome
        assert found.samples <= 100


@pytest.mark.parametrize(("share", "outcome"), [(0.3, "below the floor"), (0.7, "above the floor")])
def test_the_decision_rests_on_what_stands_among_a_random_part(share, outcome):
    threat = standing(share)
    found = decide_early(threshold_model(), X, Y, threat=threat, floor=0.5, suite=["pgd"], seed=1)
    rows = torch.tensor(found.rows)
    assert found.outcome == outcome
    assert len(set(found.rows)) == len(found.rows) == found.samples == found.robust.n < found.of == 1000
    assert found.robust.value == ((X[rows, 0] - 0.5).abs() > threat.eps).float().mean().item()
    assert found.robust.lo < share < found.robust.hi
    assert found.problems == ()
    assert EarlyDecision.model_validate_json(found.model_dump_json()) == found


def test_what_the_samples_cannot_decide_stays_undecided_after_all_of_them():
    found = decide_early(threshold_model(), X[::10], Y[::10], threat=standing(0.5), floor=0.5, suite=["pgd"])
    assert (found.outcome, found.samples) == ("undecided", 100)
    assert sorted(found.rows) == list(range(100))
    assert found.robust.lo < 0.5 <= found.robust.hi


def test_the_passes_are_those_of_every_block():
    found = decide_early(threshold_model(), X[::10], Y[::10], threat=standing(0.5), floor=0.5, suite=["pgd"])
    passes = 0
    for number, block in enumerate(torch.tensor(found.rows).split([32, 32, 36])):
        part = measure(
            threshold_model(), X[::10][block], Y[::10][block], threat=standing(0.5), suite=["pgd"], seed=number
        )
        passes += part.forward_samples + part.backward_samples
    assert found.passes == passes


def test_every_block_has_random_draws_of_its_own():
    DRAWN.clear()
    suite = [AttackConfig(name=f"{HERE}:notes_its_draw")]
    decide_early(threshold_model(), X[::10], Y[::10], threat=standing(0.5), floor=0.999, suite=suite)
    assert len(DRAWN) == len(set(DRAWN)) == 3


def test_the_same_seed_gives_the_same_decision_and_no_random_state_is_touched():
    model, state = threshold_model(), torch.get_rng_state()
    first, again, other = (
        decide_early(model, X, Y, threat=standing(0.7), floor=0.5, suite=["pgd"], seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first.rows[:32] != other.rows[:32]


@pytest.mark.parametrize("share", [0.95, 0.05])
def test_a_problem_in_the_first_block_leaves_every_case_undecided(share):
    suite = [AttackConfig(name=f"{HERE}:raises"), "pgd"]
    found = decide_early(threshold_model(), X, Y, threat=standing(share), floor=0.5, suite=suite)
    assert (found.outcome, found.samples) == ("undecided", 32)
    assert "RuntimeError: out of ideas" in found.problems[0]


def test_a_problem_in_a_later_block_leaves_it_undecided_and_stops():
    x = torch.cat([torch.full((300, 1), 0.1), torch.tensor([[0.5001]])])
    suite = [AttackConfig(name=f"{HERE}:raises_near_the_middle")]
    found = decide_early(threshold_model(), x, (x[:, 0] > 0.5).long(), threat=standing(0.5), floor=0.999, suite=suite)
    assert 32 < found.samples <= 301
    assert 300 in found.rows
    assert found.outcome == "undecided"
    assert "out of ideas" in found.problems[0]


def test_a_suite_that_tries_nothing_decides_nothing():
    idle = Suite(name="idle", attacks=(AttackConfig(name="margin", samples="spare"),))
    found = decide_early(threshold_model(), X, Y, threat=standing(0.05), floor=0.5, suite=idle)
    assert found.outcome == "undecided"
    assert "no attack tried a sample" in found.problems[0]


def test_a_floor_of_zero_is_reached_at_once_and_a_floor_of_one_never():
    none, every = (
        decide_early(threshold_model(), X[:200], Y[:200], threat=standing(0.99), floor=floor, suite=["pgd"])
        for floor in (0, 1)
    )
    assert (none.outcome, none.samples) == ("above the floor", 32)
    assert every.robust.value == 1.0
    assert (every.outcome, every.samples) == ("undecided", 200)


def outcomes_of(share: float, rng: torch.Generator):
    """A measure() whose samples stand with this chance each, at no cost."""

    def fake(model, x, y, **options):
        fooled, passes = torch.rand(len(x), generator=rng) >= share, {"forward_samples": 0, "backward_samples": 0}
        tried = [SimpleNamespace(tried=torch.ones(1))]
        return SimpleNamespace(fooled=fooled, clean_correct=torch.ones(1), attacks=tried, problems=(), **passes)

    return fake


@pytest.mark.parametrize("floor", [0.3, 0.5, 0.9])
def test_at_a_true_share_equal_to_the_floor_it_is_wrong_as_rarely_as_stated(monkeypatch, floor):
    monkeypatch.setattr(gate, "measure", outcomes_of(floor, torch.Generator().manual_seed(0)))
    x, runs = torch.zeros(1000, 1), 1000
    found = [
        decide_early(threshold_model(), x, x[:, 0].long(), threat=standing(0.5), floor=floor, seed=seed).outcome
        for seed in range(runs)
    ]
    above = found.count("above the floor") / runs
    assert above + found.count("below the floor") / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert found.count("undecided") > 0


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"floor": 1.2}, "floor=1.2 is no robust accuracy"),
        ({"floor": -0.1}, "floor=-0.1 is no robust accuracy"),
        ({"floor": float("nan")}, "floor=nan is no robust accuracy"),
        ({"confidence": 1.0}, "confidence=1 must lie between"),
        ({"block": 0}, "block=0 measures nothing"),
        ({"y": Y[:5]}, "same number of samples"),
        ({"x": X[:0], "y": Y[:0]}, "one at least"),
        ({"x": X * 255}, "bounds"),
        ({"suite": "standrad"}, "standard"),
    ],
)
def test_bad_input_is_refused(change, hint):
    given = {"x": X, "y": Y, "threat": standing(0.5), "floor": 0.5} | change
    with pytest.raises(WrongInput, match=hint):
        decide_early(threshold_model(), **given)
