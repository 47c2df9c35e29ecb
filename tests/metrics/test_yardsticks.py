"""What a success is measured with: a radius in its own units, the logits that are compared, gradients whoever calls."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import AttackConfig, Suite, ThreatModel
from tasks.attacks.geometry import allowed, distance
from tasks.attacks.search import Search
from tasks.errors import WrongInput
from tasks.metrics import examine, measure, security_curve
from tasks.metrics.budget import violation
from tasks.metrics.cell import judged
from tasks.metrics.escalation import MOST_CLASSES, _through
from tasks.metrics.isolation import Meter


def two_sided(weight: Tensor, offset: float) -> nn.Linear:
    """Two classes: the sign of weight @ x - offset."""
    model = nn.Linear(len(weight), 2)
    model.weight.data, model.bias.data = torch.stack([weight, -weight]), torch.tensor([-offset, offset])
    return model


SCALE = (1e5, 10.0, 1.0, 1.0)  # raw units of a table: what one feature moves by in the thousands, another does by one
WEIGHT = torch.tensor([1e-6, 0.0125, 0.1, 0.1])


def smallest(x: Tensor, norm: str) -> Tensor:
    """How far each x [N, 4] is from the boundary in the scaled norm, the box left aside: at least so far."""
    slopes = WEIGHT * torch.tensor(SCALE)
    dual = {"l2": slopes.norm(), "l1": slopes.abs().amax()}[norm]
    return (x @ WEIGHT - 2.0).abs() / dual


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_radius_in_units_far_smaller_than_the_box_is_kept(norm):
    torch.manual_seed(0)
    model = two_sided(WEIGHT, 2.0)
    x = torch.rand(200, 4) * torch.tensor([1e6, 80.0, 10.0, 10.0])
    threat = ThreatModel(norm=norm, eps=0.01, bounds=(0, 1e6), scale=SCALE)
    found = measure(model, x, model(x).argmax(1), threat=threat)
    assert not (found.fooled & (smallest(x, norm) > 0.0101)).any()
    assert (distance(x, found.x_adv, threat) <= allowed(x, found.x_adv, threat)).all()
    assert found.fooled.sum() < 10


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_leaves_a_small_ball_in_a_wide_box_is_a_violation(norm):
    x = torch.full((2, 4), 0.25)
    threat = ThreatModel(norm=norm, eps=1e-3, bounds=(0, 255))
    inside, outside = x.clone(), x.clone()
    inside[0, 0] += 1e-3
    outside[0, 0] += 1.1e-3
    assert violation(x, inside, threat) is None
    assert "left the ball" in (violation(x, outside, threat) or "")


def test_a_feature_too_many_is_a_violation_however_wide_the_box_is():
    x = torch.full((1, 4), 0.25)
    threat = ThreatModel(norm="l0", eps=1, bounds=(0, 1e6))
    assert violation(x, x + torch.tensor([[5.0, 0.0, 0.0, 0.0]]), threat) is None
    assert "moved 2" in (violation(x, x + torch.tensor([[5.0, 5.0, 0.0, 0.0]]), threat) or "")


def test_rounding_where_features_are_large_is_no_violation():
    x = torch.full((1, 4), 1e6 - 1000.1)
    threat = ThreatModel(norm="linf", eps=0.3, bounds=(0, 1e6))
    assert violation(x, x + 0.3, threat) is None  # the next number that float32 knows is 0.0625 away


class Filled(nn.Module):
    """A class that the model rules out, by a logit far below the others."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.fill = nn.Linear(8, 3), fill

    def forward(self, x: Tensor) -> Tensor:
        """X [B, 8] -> logits [B, 4]."""
        logits = self.inner(x - 0.5)
        return torch.cat([logits, torch.full_like(logits[:, :1], self.fill)], 1)


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min])
def test_a_class_that_is_ruled_out_does_not_hide_how_the_others_fall(fill):
    torch.manual_seed(1)
    x = torch.rand(60, 8)
    plain, filled = Filled(-1e2).eval(), Filled(fill).eval()
    y = plain(x).argmax(1)
    threat = ThreatModel(norm="linf", eps=0.4)
    expected = measure(plain, x, y, threat=threat).fooled
    assert 20 < expected.sum() < 60
    assert torch.equal(measure(filled, x, y, threat=threat).fooled, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_caller_who_asks_for_no_gradients_gets_the_same_number(norm):
    torch.manual_seed(0)
    x, threat = torch.rand(20, 8), ThreatModel(norm=norm, eps=0.2)
    model = Filled(-1.0)
    y = model(x).argmax(1)
    expected = measure(model, x, y, threat=threat, suite="quick")
    with torch.inference_mode():
        given = x.clone(), y.clone()  # tensors that no gradient may pass through
        found = measure(model, *given, threat=threat, suite="quick")
        assert found.backward_samples == expected.backward_samples > 0
        found, curve = security_curve(model, *given, outcomes=found)
        _, _, soundness = examine(model, *given, outcomes=found, curve=curve)
        assert torch.is_inference_mode_enabled()
    assert found.fooled.tolist() == expected.fooled.tolist()
    assert curve
    assert soundness.sound


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16, torch.uint16])
def test_labels_of_any_whole_numbers_are_taken_all_the_way(kind):
    torch.manual_seed(0)
    x, threat, model = torch.rand(20, 8), ThreatModel(norm="linf", eps=0.1), Filled(-1.0)
    y = model(x).argmax(1)
    expected = measure(model, x, y, threat=threat, suite="quick")
    found, curve = security_curve(model, x, y.to(kind), outcomes=measure(model, x, y.to(kind), threat=threat))
    _, _, soundness = examine(model, x, y.to(kind), outcomes=found, curve=curve)
    assert found.fooled.tolist() == expected.fooled.tolist()
    assert soundness.sound
    assert curve


def test_complex_labels_are_refused():
    model, x = Filled(-1.0), torch.rand(4, 8)
    with pytest.raises(WrongInput, match="class numbers"):
        measure(model, x, torch.zeros(4, dtype=torch.complex64), threat=ThreatModel(norm="linf", eps=0.1))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_of_a_model_without_parameters_are_searched_in_full(kind):
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return (x.float() - 0.5) @ self.weight.T

    x = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)).to(kind)
    model = Fixed()
    found = measure(model, x, model(x).argmax(1), threat=ThreatModel(norm="linf", eps=0.1), suite="quick")
    assert found.problems == ()
    assert found.x_adv.dtype == torch.float32
    assert found.fooled.any()


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 3, 0)])
def test_samples_without_features_are_refused(shape):
    with pytest.raises(WrongInput, match="no features"):
        measure(Filled(-1.0), torch.rand(shape), torch.zeros(4, dtype=torch.long), threat=ThreatModel(eps=0.1))


@pytest.mark.parametrize("samples", ["nearest", "drawn"])
def test_a_limit_on_the_whole_holds_for_a_row_that_aims_at_every_class(samples):
    torch.manual_seed(0)
    x, model = torch.rand(40, 8), nn.Linear(8, 10)
    row = AttackConfig(name="classes", params={"steps": 10}, samples=samples, share=1.0)
    suite = Suite(name="near", attacks=(row,)).within(60.0)
    found = measure(model, x, model(x).argmax(1), threat=ThreatModel(eps=0.001), suite=suite)
    assert found.backward_samples > 0
    assert found.passes <= 60 * len(x)


def test_how_far_slopes_hold_is_not_told_from_a_warm_start():
    torch.manual_seed(0)
    x, threat = torch.rand(40, 8), ThreatModel(eps=0.05)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    y = model(x).argmax(1)
    first = measure(model, x, y, threat=threat, suite="quick")
    assert first.straight is not None
    assert measure(model, x, y, threat=threat, suite="quick", warm=first.nearest).straight is None


def test_a_model_that_answers_at_random_is_judged_as_many_at_once_as_fit():
    sizes: list[int] = []

    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x[:, :3]

    logits, answer = judged(Meter(Sized(), draws=2), torch.rand(65, 5000))
    assert logits.shape == (65, 3)
    assert len(answer) == 65
    assert set(sizes) == {64, 1}


def test_the_escalation_aims_at_no_more_classes_of_a_sample_than_its_share():
    torch.manual_seed(0)
    model, x = nn.Linear(8, 40), torch.rand(6, 8)
    search = Search(model, x, model(x).argmax(1), threat=ThreatModel(eps=0.001), rng=torch.Generator())
    _through(search, search.standing())
    assert search.aimed.sum() == MOST_CLASSES * len(x)
