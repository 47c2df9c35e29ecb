import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.attacks import ThreatModel
from tasks.metrics import EvaluationConfig, RobustnessReport, Share, evaluate
from tasks.verdicts import Policy, judge


@pytest.fixture(scope="module")
def report() -> RobustnessReport:
    """Clean 1.0, robust near 0.8: a threshold at 0.5 on uniform data, eps 0.1."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0]]))
        model.bias.copy_(torch.tensor([0.0, -5.0]))
    x = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    config = EvaluationConfig(threats=(ThreatModel(norm="linf", eps=0.1),), suite="quick")
    return evaluate(model, x, (x[:, 0] > 0.5).long(), config)[0]


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (Policy(floor=0.7), "pass"),
        (Policy(floor=0.9), "fail"),
        (Policy(floor=0.8), "cannot tell"),
        (Policy(floor=0.7, clean_floor=1.0), "cannot tell"),
        (Policy(floor=0.7, min_samples=501), "cannot tell"),
        (Policy(floor=0.9, floors={"linf_0.1": 0.7}), "pass"),
        (Policy(floor=0.7, floors={"l2_9": 0.7}), "cannot tell"),
    ],
)
def test_a_floor_is_held_against_the_interval(report, policy, outcome):
    verdict = judge(report, policy)
    assert verdict.outcome == outcome
    assert verdict.reasons


def standing(report: RobustnessReport, held) -> RobustnessReport:
    import base64

    import numpy as np

    (threat,) = report.threats
    packed = base64.b64encode(np.packbits(held).tobytes()).decode()
    robust = Share.of(int(held.sum()), len(held))
    return report.model_copy(update={"threats": (threat.model_copy(update={"standing": packed, "robust": robust}),)})


def test_a_model_worse_than_the_champion_does_not_pass(report):
    held = report.threats[0].held()
    better = held.copy()
    better[(~held).nonzero()[0][:60]] = True  # the champion held 60 samples more, 12 points
    policy = Policy(floor=0.5, tolerance=0.03)
    assert judge(report, policy, report).outcome == "pass"
    assert judge(report, policy, standing(report, better)).outcome == "fail"
    assert judge(standing(report, better), policy, report).outcome == "pass"


@pytest.mark.parametrize("change", [{"data_digest": "x"}, {"seed": 9}, {"split": "select"}])
def test_a_champion_measured_otherwise_is_not_compared(report, change):
    verdict = judge(report, Policy(floor=0.5), report.model_copy(update=change))
    assert verdict.outcome == "cannot tell"
    assert "measure it again" in verdict.reasons[0]


FAULTS = st.sets(st.sampled_from(["nan", "problem", "few", "suite", "no attack"]), min_size=1)


@given(FAULTS, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_no_fault_ever_yields_a_pass(report, faults, floor, clean_floor):
    (threat,) = report.threats
    champion, policy = None, Policy(floor=floor, clean_floor=clean_floor)
    if "nan" in faults:
        nan = Share.model_construct(value=math.nan, lo=math.nan, hi=math.nan, n=500)
        threat = threat.model_copy(update={"robust": nan})
    if "problem" in faults:
        threat = threat.model_copy(update={"problems": ("pgd: raised",)})
    if "no attack" in faults:
        threat = threat.model_copy(update={"attacks": ()})
    if "few" in faults:
        policy = policy.model_copy(update={"min_samples": 1000})
    if "suite" in faults:
        champion = report.model_copy(update={"threats": (threat.model_copy(update={"suite_digest": "other"}),)})
    assert judge(report.model_copy(update={"threats": (threat,)}), policy, champion).outcome != "pass"
