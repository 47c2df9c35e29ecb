"""The curve over all radii, from a search of its own, against closed forms and the suite."""

import pytest
import torch

from tasks.attacks import AttackConfig, ThreatModel
from tasks.attacks.fmn import minimum_norm
from tasks.attacks.search import margins
from tasks.metrics import EvaluationConfig, evaluate, measure
from tasks.metrics.curve import security_curve
from tasks.models.planted import Quantised
from tests.metrics.nets import FEATURES, L1, L2, LINF, amid, assert_honest, boundary_distance, linear, shown


@pytest.mark.parametrize("threat", [L2, L1], ids=str)
def test_the_curve_of_a_rounded_input_agrees_with_the_suite_at_every_radius(hardened, threat):
    x, y = shown(200)
    model = Quantised(hardened)
    _, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat))
    between = [point for point in curve if 0.2 < point.eps / threat.eps < 0.9]
    assert len(between) == 3
    for point in between:
        fixed = measure(model, x, y, threat=threat.model_copy(update={"eps": point.eps}), suite="quick")
        assert point.robust.value <= fixed.robust_accuracy + 0.04
    assert between[-1].robust.value < between[0].robust.value - 0.2


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_smallest_perturbation_of_a_linear_model_has_the_dual_norm_s_length(norm):
    """Two classes: among three, the one whose logit is nearest need not be the nearest."""
    model, threat = linear(2), ThreatModel(norm=norm, eps=0.05)
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    found, x_adv = minimum_norm(model, x, y, threat=threat)
    near = away < 0.25  # else the box is in the way
    assert near.sum() > 100
    torch.testing.assert_close(found[near], away[near], rtol=0.02, atol=1e-6)
    assert (found >= away * (1 - 1e-4)).all()
    assert (model(x_adv).argmax(1) != y)[near].all()


@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel(norm="linf", eps=0.02),
        ThreatModel(norm="l2", eps=0.03),
        ThreatModel(norm="l1", eps=0.05),
        ThreatModel(norm="linf", eps=0.02, mask=(True, False, True, True, False, True)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("classes", "above"), [(2, 0.0), (3, 0.03)])
def test_the_curve_of_a_linear_model_is_the_share_beyond_each_radius(classes, above, threat):
    """Among three classes, some distances are to another one than the nearest, and so somewhat too large."""
    model = linear(classes)
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    _, points = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat, suite="quick"))
    assert points[0].robust.value == 1
    for point in points[1:]:
        if point.eps < 0.25:  # else the box is in the way
            least, most = ((away > point.eps * by).float().mean().item() for by in (1.02, 0.98))
            assert least - 1e-6 <= point.robust.value <= most + above + 1e-6, point


def test_the_curve_in_l0_counts_features():
    model = linear(2)
    x = torch.rand(200, FEATURES, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    slope = model.weight[1 - y] - model.weight[y]
    gains = (slope * torch.where(slope > 0, 1 - x, -x)).sort(1, descending=True).values.cumsum(1)
    away = 1 + (gains < (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None]))).sum(1)
    threat = ThreatModel(norm="l0", eps=2)
    _, points = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat))
    assert all(point.eps == int(point.eps) for point in points)
    for point in points:
        assert point.robust.value == pytest.approx((away > point.eps).float().mean().item(), abs=0.02)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_the_curve_meets_the_suite_at_eps_and_comes_near_it_elsewhere(hardened, threat):
    x, y = shown(200)
    report, (found,) = evaluate(hardened, x, y, EvaluationConfig(threats=(threat,)))
    (of_threat,) = report.threats
    curve = {point.eps / threat.eps: point.robust for point in of_threat.curve}
    assert curve[1.0] == of_threat.robust
    assert found.robust_accuracy == pytest.approx(of_threat.robust.value)
    for by in (0.5, 1.5):
        fixed = measure(hardened, x, y, threat=threat.model_copy(update={"eps": by * threat.eps}))
        assert curve[by].value == pytest.approx(fixed.robust_accuracy, abs=0.03)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_only_the_curve_s_search_fools_counts_as_fooled(norm):
    model, threat = linear(2), ThreatModel(norm=norm, eps=0.05)
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    weak = measure(model, x, y, threat=threat, suite=[AttackConfig(name="noise", params={"draws": 1})])
    merged, points = security_curve(model, x, y, outcomes=weak)
    assert_honest(model, x, y, merged)
    assert weak.robust_accuracy > merged.robust_accuracy + 0.05
    assert merged.fooled[away < 0.98 * threat.eps].all()
    assert torch.equal(merged.attacks[-1].fooled, merged.fooled & ~weak.fooled)
    assert merged.attacks[:-1] == weak.attacks
    torch.testing.assert_close(merged.margin, margins(model(merged.nearest), y), atol=1e-5, rtol=1e-4)
    (meeting,) = [point for point in points if point.eps == threat.eps]
    assert meeting.robust.value == pytest.approx(merged.robust_accuracy)
