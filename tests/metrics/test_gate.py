"""decide_early() on a model whose robust share is known, on planted faults, and its error rate over many runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.errors import WrongInput
from tasks.metrics import EarlyDecision, Sign, Soundness, decide_early, gate
from tasks.models.planted import Quantised, Steps
from tests.metrics.test_soundness import ByNumpy

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


W = torch.tensor([1.0, -1.0]).repeat(32)[torch.randperm(64, generator=RNG)] / 64


def along(centre: float = 0.5) -> nn.Linear:
    """The feature s = centre + W (x - 0.5) of x [N, 64]. An L-inf radius moves it by as much: W's L1 norm is 1."""
    feature = nn.Linear(64, 1)
    with torch.no_grad():
        feature.weight.copy_(W[None])
        feature.bias.fill_(centre - 0.5 * W.sum())
    return feature


def spread(s: torch.Tensor) -> torch.Tensor:
    """Inputs [N, 64] whose feature is near s [N]. Chance hardly moves it: it takes all 64 places at once."""
    noise = torch.rand(len(s), 64, generator=RNG) - 0.5
    return (0.5 + 64 * W * (s - 0.5)[:, None] + 0.3 * noise).clamp(0, 1)


def corner(x: torch.Tensor, eps: float, up: torch.Tensor) -> torch.Tensor:
    """The inputs within eps of x [N, 64] whose feature is largest where `up` [N], else smallest; rounded ones too."""
    return (x + eps * torch.where(up[:, None], 1.0, -1.0) * W.sign()).clamp(0, 1)


WIDE = spread(0.5 + (0.02 + 0.1 * torch.rand(400, generator=RNG)) * (torch.rand(400, generator=RNG) - 0.5).sign())


def standing(share: float) -> ThreatModel:
    """The threat under which this share of uniform samples stands."""
    return ThreatModel(norm="linf", eps=(1 - share) / 2)


def raises_near_the_middle(model, x, y, *, threat, rng):
    if ((x - 0.5).abs() < 0.0005).any():
        raise RuntimeError("out of ideas")
    return x


DRAWN: list[Path] = []  # the file that is noted in: the attack runs in a process of its own


def notes_its_draw(model, x, y, *, threat, rng):
    with DRAWN[-1].open("a") as file:
        file.write(f"{torch.rand(1, generator=rng).item()}\n")
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


class Counting(nn.Module):
    """Counts the samples that pass forward through the model, and backward out of it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x):
        self.count(x)
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, passed):
        self.passes += len(passed)


def test_the_passes_are_those_of_every_block_and_of_its_signs():
    model = Counting(threshold_model())
    found = decide_early(model, X[::10], Y[::10], threat=standing(0.5), floor=0.5, suite=["pgd"])
    assert found.samples == 100  # three blocks
    assert found.passes == model.passes


def test_every_block_has_random_draws_of_its_own(tmp_path):
    DRAWN.append(tmp_path / "drawn")
    suite = [AttackConfig(name=f"{HERE}:notes_its_draw")]
    nothing_falls = ThreatModel(norm="linf", eps=1e-5)  # to the signs either, so that no block decides
    found = decide_early(threshold_model(), X[::10], Y[::10], threat=nothing_falls, floor=0.999, suite=suite)
    assert (found.samples, found.robust.value) == (100, 1.0)
    drawn = DRAWN[-1].read_text().split()
    assert len(drawn) == len(set(drawn)) == 3


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


@pytest.mark.parametrize(("share", "floor"), [(0.95, 0.9), (0.05, 0.5)])
def test_a_suite_that_tries_nothing_decides_nothing(share, floor):
    idle = Suite(name="idle", attacks=(AttackConfig(name="margin", samples="spare"),))
    for seed in range(5):  # with some of them the signs fool a sample, which is no attack of the suite
        found = decide_early(threshold_model(), X, Y, threat=standing(share), floor=floor, suite=idle, seed=seed)
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
        fooled, attacks = torch.rand(len(x), generator=rng) >= share, [SimpleNamespace(name="a", tried=torch.ones(1))]
        ledger = {"suite": SimpleNamespace(attacks=attacks), "attacks": attacks, "problems": (), "passes": 0}
        clean = torch.ones(len(x), dtype=torch.bool)
        return SimpleNamespace(fooled=fooled, clean_correct=clean, prediction=y, **ledger)

    return fake


def sign(kind="masking", state="ok"):
    return Sign(name=f"a sign of {kind}", kind=kind, state=state, first=state, says="It was asked.")


def finds(*signs):
    """An examine() that finds no more than these signs, one for each block in turn, then quiet ones."""
    following = iter([Soundness(signs=(each,), passes=0, share=0.0) for each in signs])
    quiet = Soundness(signs=(sign(),), passes=0, share=0.0)

    def fake(model, x, y, *, outcomes, **options):
        return outcomes, (), next(following, quiet)

    return fake


@pytest.mark.parametrize(
    ("kind", "share", "outcome"),
    [
        *(("measurement", share, "undecided") for share in (0.05, 0.4, 0.6, 0.95)),
        *((kind, share, "undecided") for kind in ("masking", "failure", "convergence") for share in (0.65, 0.95)),
        *((kind, share, "below the floor") for kind in ("masking", "failure", "convergence") for share in (0.35, 0.05)),
    ],
)
def test_an_alarm_voids_what_it_speaks_against_in_later_blocks_too(monkeypatch, kind, share, outcome):
    x = torch.zeros(1000, 1)
    monkeypatch.setattr(gate, "measure", outcomes_of(share, torch.Generator().manual_seed(0)))
    monkeypatch.setattr(gate, "examine", finds())
    quiet = decide_early(threshold_model(), x, x[:, 0].long(), threat=standing(0.5), floor=0.5)
    monkeypatch.setattr(gate, "measure", outcomes_of(share, torch.Generator().manual_seed(0)))
    monkeypatch.setattr(gate, "examine", finds(sign(kind, "alarm")))
    found = decide_early(threshold_model(), x, x[:, 0].long(), threat=standing(0.5), floor=0.5)
    assert quiet.outcome == ("above the floor" if share > 0.5 else "below the floor")
    assert (quiet.samples > 32) == (0.3 < share < 0.7)  # decided by a later block than the one that raised the alarm
    assert (found.outcome, quiet.problems) == (outcome, ())
    assert found.problems == ((f"a sign of {kind}: It was asked.",) if outcome == "undecided" else ())
    assert found.samples == (32 if kind == "measurement" else quiet.samples)


def test_labels_that_do_not_fit_decide_nothing_though_no_sample_stands():
    found = decide_early(threshold_model(), X, 1 - Y, threat=standing(0.95), floor=0.5, suite=["pgd"])
    assert (found.outcome, found.samples, found.robust.value) == ("undecided", 32, 0.0)
    assert [problem.split(":")[0] for problem in found.problems] == ["labels do not fit"]


MASKED = {
    "steps, below in truth": (nn.Sequential(along(0.0), Steps(1e4), threshold_model()), 0.1),
    "numpy, above in truth": (ByNumpy(nn.Sequential(along(), threshold_model())), 0.05),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", MASKED)
def test_what_stands_behind_a_mask_is_not_above_the_floor(monkeypatch, case, seed):
    model, eps = MASKED[case]
    y = model(WIDE).argmax(1)
    given = {"threat": ThreatModel(norm="linf", eps=eps), "floor": 0.5, "suite": ["pgd"], "seed": seed}
    found = decide_early(model, WIDE, y, **given)
    monkeypatch.setattr(gate, "examine", finds())
    unexamined = decide_early(model, WIDE, y, **given)
    truth = (model(corner(WIDE, eps, y == 0)).argmax(1) == y).float().mean().item()
    assert ("below" if truth < 0.4 else "above" if truth > 0.6 else "close") in case
    assert (unexamined.outcome, unexamined.problems) == ("above the floor", ())
    assert found.outcome == "undecided"
    assert found.robust.lo >= 0.5  # it was the alarm that forbade the answer
    assert "no gradients" in [problem.split(":")[0] for problem in found.problems]


@pytest.mark.parametrize("seed", range(2))
def test_where_the_escalation_answers_the_alarm_its_number_decides(monkeypatch, seed):
    between = 0.5 + 1 / 512  # of rounded inputs the features lie 1 / 256 apart: none is at the threshold
    model = Quantised(nn.Sequential(along(between), threshold_model()))
    y = model(WIDE).argmax(1)
    given = {"threat": ThreatModel(norm="linf", eps=0.1), "floor": 0.5, "suite": ["pgd"], "seed": seed}
    found = decide_early(model, WIDE, y, **given)
    monkeypatch.setattr(gate, "examine", finds())
    assert decide_early(model, WIDE, y, **given).outcome == "above the floor"
    rows = torch.tensor(found.rows)
    truth = model(corner(WIDE, 0.1, y == 0)).argmax(1) == y
    assert (found.outcome, found.problems) == ("below the floor", ())
    assert found.robust.value == truth[rows].float().mean().item() > 0


@pytest.mark.parametrize("floor", [0.3, 0.5, 0.9])
def test_at_a_true_share_equal_to_the_floor_it_is_wrong_as_rarely_as_stated(monkeypatch, floor):
    monkeypatch.setattr(gate, "measure", outcomes_of(floor, torch.Generator().manual_seed(0)))
    monkeypatch.setattr(gate, "examine", finds())
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


@pytest.mark.parametrize("rare", [0.05, 0.002])
def test_one_answer_is_never_above_the_floor_however_rare_the_others_are(rare):
    x = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
    y = (torch.arange(1000) >= 1000 * rare).long()
    model = threshold_model()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([-50.0, 50.0]))  # class 1 everywhere
    threat = ThreatModel(norm="linf", eps=0.05, mask=(True,))  # under a mask no unbounded attack is asked
    found = decide_early(model, x, y, threat=threat, floor=0.5, suite="quick")
    assert (found.outcome, found.samples) == ("undecided", 1000)
    assert [problem.split(":")[0] for problem in found.problems] == ["one answer to everything"]


def test_a_block_in_which_a_rare_class_is_missed_does_not_end_the_check():
    y = (torch.arange(1000) >= 30).long()
    x = torch.where(y == 1, 0.9, 0.1)[:, None]
    x[:15] = 0.9  # of the rare class half is missed
    found = decide_early(threshold_model(), x, y, threat=standing(0.9), floor=0.5, suite="quick")
    assert (found.outcome, found.problems) == ("above the floor", ())
    assert found.samples < 200
