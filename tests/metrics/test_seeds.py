from dataclasses import replace

import pytest
import torch
from torch import nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.metrics import AttackOutcome, EvaluationConfig, Outcomes, ThreatReport, evaluate, merged

LINF = ThreatModel(norm="linf", eps=0.1)
SUITE = Suite(name="two", attacks=[{"name": "pgd"}, {"name": "fgsm"}])
CLEAN = torch.tensor([True, True, True, True, False])


def outcomes(seed: int, margin: list[float], by: dict[str, list[int]], **more) -> Outcomes:
    """What a seed found on five samples, the last of them wrong as it is. Its inputs hold seed + 1 everywhere."""
    rows = {name: torch.isin(torch.arange(5), torch.tensor(places)) for name, places in by.items()}
    fooled = torch.stack([~CLEAN, *rows.values()]).any(0)
    attacks = [
        AttackOutcome(name=name, tried=CLEAN, fooled=fell, forward_samples=10, backward_samples=5, seconds=1.0)
        for name, fell in rows.items()
    ]
    return Outcomes(
        threat=LINF,
        suite=SUITE,
        seed=seed,
        clean_correct=CLEAN,
        fooled=fooled,
        x_adv=torch.full((5, 2), seed + 1.0),
        prediction=torch.full((5,), seed + 1),
        nearest=torch.full((5, 2), seed + 1.0),
        margin=torch.tensor(margin),
        attacks=tuple(attacks),
        late=fooled,
        forward_samples=30,
        backward_samples=15,
        seconds=3.0,
        **more,
    )


@pytest.fixture
def both() -> Outcomes:
    first = outcomes(0, [-1, 0.5, 0.2, -1, -2], {"pgd": [0], "fgsm": [3]})
    return merged([first, outcomes(1, [-9, -1, 0.1, 0.4, -2], {"pgd": [0, 1]}, problems=("pgd: raised",))])


def test_a_sample_is_fooled_if_any_seed_fooled_it_and_the_first_that_did_counts(both):
    assert both.fooled.tolist() == [True, True, False, True, True]
    assert both.prediction.tolist() == [1, 2, 2, 1, 1]  # seed + 1; where nothing fooled, the nearer seed's
    assert both.x_adv[:, 0].tolist() == both.nearest[:, 0].tolist() == [1, 2, 2, 1, 1]
    assert both.margin.tolist() == pytest.approx([-1, -1, 0.1, -1, -2])
    assert both.late.tolist() == [True, True, False, True, True]


def test_the_attacks_rows_add_up_to_the_whole(both):
    assert {a.name: a.fooled.nonzero().flatten().tolist() for a in both.attacks} == {"pgd": [0, 1], "fgsm": [3]}
    assert [(a.forward_samples, a.seconds) for a in both.attacks] == [(20, 2.0), (10, 1.0)]
    assert (both.forward_samples, both.backward_samples, both.seconds) == (60, 30, 6.0)
    assert both.problems == ("pgd: raised",)
    report = ThreatReport.of(both)
    assert report.attacks[-1].robust == report.robust
    assert report.robust.value == 0.2


def test_a_clean_error_with_one_seed_is_no_clean_sample():
    right, fewer = outcomes(0, [1, 1, 1, 1, -2], {"pgd": []}), torch.tensor([True, True, True, False, False])
    assert merged([right, replace(right, clean_correct=fewer)]).clean_correct.tolist() == fewer.tolist()


def test_one_seed_is_what_it_was():
    found = outcomes(0, [1, 1, 1, 1, -2], {"pgd": []})
    assert merged([found]) is found


NEEDLE = 0.5625  # the one value of the first feature at which the model errs


class Needle(nn.Module):
    """Class 0 everywhere but at one value, which no slope leads to."""

    def forward(self, x):
        hit = (x[:, :1] == NEEDLE).float()
        return torch.cat([1 - hit, hit], 1) + 0 * x.sum(1, keepdim=True)


def lucky(model, x, y, *, threat, rng):
    """Knows the needle, and uses it on half of the samples."""
    return torch.where(torch.rand(len(x), 1, generator=rng) < 0.5, torch.full_like(x, NEEDLE), x)


def test_the_headline_is_the_worst_case_over_the_seeds_and_their_spread_is_kept():
    x, y = torch.full((200, 2), 0.5), torch.zeros(200, dtype=torch.long)
    attacks = (AttackConfig(name=f"{__name__}:lucky"),)
    one = EvaluationConfig(threats=(LINF,), suite="quick", attacks=attacks)
    report, (found,) = evaluate(Needle(), x, y, one.model_copy(update={"seeds": 3}))
    (threat,) = report.threats
    assert report.seeds == 3
    assert all(0.35 < value < 0.65 for value in threat.spread.values)
    assert len(set(threat.spread.values)) > 1
    assert 0.05 < threat.robust.value < 0.2  # one in eight escapes three times
    assert report.metrics()["robust_accuracy/linf_0.1/seed_sd"] == threat.spread.sd
    assert threat.attacks[-1].robust == threat.robust
    assert int((~found.fooled).sum()) == threat.held().sum()
    single, _ = evaluate(Needle(), x, y, one)
    assert single.threats[0].spread is None
    assert "robust_accuracy/linf_0.1/seed_sd" not in single.metrics()
    assert report.comparable_with(single) == "number of seeds"
