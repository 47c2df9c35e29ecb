"""StraightThrough: the same answers, with a slope behind every hard operation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import search
from tasks.attacks.straight_through import STEEP, StraightThrough, steepened


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1.0


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.round(x.detach().numpy(), 1))


HARD = {
    "round": lambda x: (x * 4).round() / 4,
    "floor": lambda x: torch.floor(x * 8) / 8,
    "floor division": lambda x: (x // 0.25) * 0.25,
    "sign": lambda x: torch.sign(x - 0.5),
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": under_no_grad,
    "integers": lambda x: (x * 8).long().float() / 8,
    "bytes": lambda x: (x * 255).to(torch.uint8).float() / 255,
    "threshold": lambda x: (x > 0.5).float(),
    "where": lambda x: torch.where(x > 0.5, torch.ones_like(x), torch.zeros_like(x)),
    "buckets": lambda x: torch.bucketize(x, torch.tensor([0.2, 0.4, 0.6])).float() / 3,
    "shut clamp": lambda x: x.clamp(2, 3) - 1.5,
}


class Behind(nn.Module):
    """A linear map of what `hard` makes of x."""

    def __init__(self, hard):
        super().__init__()
        self.hard, self.net = hard, nn.Linear(4, 3)

    def forward(self, x):
        return self.net(self.hard(x))


class ByNumpy(nn.Module):
    def forward(self, x):
        return by_numpy(x)


def slope(model: nn.Module, x: Tensor) -> float:
    leaf = x.clone().requires_grad_()
    return search.slope(model(leaf)[:, 0].sum(), leaf).abs().sum().item()


X = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_a_hard_operation_gets_a_slope_and_keeps_its_answers(hard):
    torch.manual_seed(0)
    model = Behind(hard)
    assert slope(model, X) == 0
    assert slope(StraightThrough(model), X) > 0.1
    leaf = X.clone().requires_grad_()
    assert torch.allclose(StraightThrough(model)(leaf), model(X), atol=1e-6)


def test_the_stand_in_is_the_identity():
    torch.manual_seed(0)
    model = Behind(lambda x: (x * 4).round() / 4)
    assert slope(StraightThrough(model), X) == pytest.approx(20 * model.net.weight[0].abs().sum().item(), rel=1e-5)


def test_a_module_that_leaves_torch_gets_a_slope_and_a_function_that_does_stays_shut():
    torch.manual_seed(0)
    assert slope(StraightThrough(nn.Sequential(ByNumpy(), nn.Linear(4, 3))), X) > 0.1
    assert slope(StraightThrough(Behind(by_numpy)), X) == 0


def test_shut_rectifiers_open_only_when_asked():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    assert slope(StraightThrough(model), X) == 0
    assert slope(StraightThrough(model, leak=True), X) > 0


def test_an_honest_model_keeps_its_own_slope():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert slope(StraightThrough(model), X) == pytest.approx(slope(model, X))
    assert all(not module._forward_hooks for module in model.modules())


def test_masks_that_must_be_truth_values_still_work():
    model = Behind(lambda x: x.masked_fill(x < 0.3, 0.0))
    leaf = X.clone().requires_grad_()
    assert torch.allclose(StraightThrough(model)(leaf), model(X))


CHOICES = {
    "times": lambda x, t: x * (x >= t),
    "cast": lambda x, t: (x > t).to(x) * x,
    "where": lambda x, t: torch.where(x >= t, x, torch.zeros_like(x)),
    "the other way round": lambda x, t: torch.where(t > x, 0.0, x),
    "masked": lambda x, t: x.masked_fill(x < t, 0.0),
    "not": lambda x, t: x * ~(x < t),
    "called": lambda x, t: torch.ge(x, t) * x,
}


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_a_comparison_gets_a_sigmoid_s_slope_where_it_is_nearly_a_tie(choose):
    """Choosing x where x > t adds the step from 0 to x times the sigmoid's slope, and takes as much from t."""
    torch.manual_seed(0)
    x, t = torch.rand(20, 50), torch.rand(20, 1)
    near = (x - t).abs().mean(1, keepdim=True) * STEEP
    soft = torch.sigmoid((x - t) / near)
    expected = (x > t) + x * soft * (1 - soft) / near
    leaf = x.clone().requires_grad_()
    view = StraightThrough(Choose(choose, t), steep=True)
    answers = view(leaf)
    assert torch.equal(answers, choose(x, t))
    assert torch.allclose(search.slope(answers.sum(), leaf), expected, atol=1e-4)
    assert expected.max() > 2
    assert view.compared


class Choose(nn.Module):
    def __init__(self, choose, t):
        super().__init__()
        self.choose, self.t = choose, t

    def forward(self, x):
        return self.choose(x, self.t)


class Gate(nn.Module):
    """Lets the largest 5 of 20 values through, by their size or by their magnitude, and compares nothing."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        size = x.abs() if self.how == "magnitude" else x
        if self.how == "sorted":
            order = x.detach().argsort(1, descending=True)
            kept = torch.cat([x.gather(1, order[:, :5]), torch.zeros(len(x), 15)], 1)
            return kept.gather(1, order.argsort(1))
        best = size.topk(5, dim=1).indices
        return torch.zeros_like(x).scatter(1, best, x.gather(1, best))


@pytest.mark.parametrize("how", ["size", "magnitude", "sorted"])
def test_a_gate_gets_a_slope_where_a_value_is_about_to_enter_however_it_chooses(how):
    """Midway between the least value that passes and the largest that does not, a sigmoid takes the step's place."""
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    size = x.abs() if how == "magnitude" else x
    ranked = size.sort(1, descending=True).values
    gap = size - (ranked[:, 4:5] + ranked[:, 5:6]) / 2
    near = gap.abs().mean(1, keepdim=True) * STEEP
    soft = torch.sigmoid(gap / near)
    expected = (gap > 0) + x * soft * (1 - soft) / near * (x.sign() if how == "magnitude" else 1)
    model, leaf = nn.Sequential(nn.Identity(), Gate(how)), x.clone().requires_grad_()
    view = steepened(model, x)
    answers = view(leaf)
    assert torch.equal(answers, model(x))
    assert torch.allclose(search.slope(answers.sum(), leaf), expected, atol=1e-4)
    assert expected.abs().max() > 2
    assert all(not module._forward_hooks for module in model.modules())


SMOOTH = {
    "rectifier": nn.ReLU(),
    "leaky rectifier": nn.LeakyReLU(),
    "all of it": nn.Dropout().eval(),
    "none of it": Choose(lambda x, _: x * 0, None),
    "not the largest": Choose(lambda x, _: torch.cat([x[:, :2], x[:, 2:] * 0], 1), None),
    "soft threshold": nn.Softshrink(0.3),
    "another shape": nn.Linear(4, 3),
}


@pytest.mark.parametrize("module", SMOOTH.values(), ids=SMOOTH)
def test_no_gate_where_nothing_jumps_or_it_is_not_the_largest_that_pass(module):
    x = torch.tensor([[-1.0, 0.2, 0.5, -0.1], [0.3, 0.4, 0.1, 2.0], [-1.0, -0.5, -0.2, -3.0]])
    assert steepened(module, x) is None
    assert steepened(nn.Hardshrink(0.3), x) is not None
    assert steepened(nn.Hardshrink(0.3), x[:, :1, None]) is not None


def test_a_gate_that_shuts_a_sample_out_or_lets_all_of_it_pass_has_finite_slopes():
    x = torch.tensor([[0.1, -0.2], [1.0, -2.0], [0.1, 3.0]])
    leaf = x.clone().requires_grad_()
    answers = StraightThrough(nn.Hardshrink(0.3), steep=True)(leaf)
    assert torch.equal(answers, torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 3.0]]))
    (grad,) = torch.autograd.grad(answers.sum(), leaf)
    assert grad.isfinite().all()


def test_where_a_model_compares_its_gates_are_not_opened_twice():
    """The comparison has its slope already."""
    x = torch.rand(10, 20, generator=torch.Generator().manual_seed(0))

    class Compares(nn.Module):
        def forward(self, x):
            return x * (x >= 0.5)

    alone, leaf = Choose(lambda x, _: x * (x >= 0.5), None), x.clone().requires_grad_()
    within = nn.Sequential(Compares())
    slopes = [search.slope(StraightThrough(m, steep=True)(leaf).sum(), leaf) for m in (alone, within)]
    assert torch.equal(*slopes)
    near = (x - 0.5).abs().mean(1, keepdim=True) * STEEP
    soft = torch.sigmoid((x - 0.5) / near)
    assert torch.allclose(slopes[0], (x >= 0.5) + x * soft * (1 - soft) / near, atol=1e-4)


def test_a_choice_among_what_is_not_finite_keeps_its_answers():
    model = Choose(lambda x, t: torch.where(x > t, x.log(), x - 1), torch.tensor(0.0))
    x = torch.tensor([[0.0, 0.5], [-1.0, 2.0]])
    leaf = x.clone().requires_grad_()
    answers = StraightThrough(model, steep=True)(leaf)
    assert torch.equal(answers, model(x))
    assert search.slope(answers.sum(), leaf).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.relu().round() / 4,  # no comparison that could have a slope
        lambda x: x * (torch.arange(4.0) > 1),  # one of what does not depend on the input
        lambda x: 2 * x * (x.detach() > 0.5),
        lambda x: torch.stack([row[row > 0.5].sum() for row in x]).unsqueeze(1),  # a truth value is needed
    ],
    ids=["none", "of constants", "detached", "an index"],
)
def test_no_view_where_there_is_nothing_to_compare_or_a_truth_value_is_needed(make):
    assert steepened(Choose(lambda x, _: make(x), None), X) is None
    assert steepened(Choose(CHOICES["times"], torch.tensor(0.5)), X) is not None
    assert steepened(Choose(CHOICES["times"], torch.tensor(0.5)), X[:0]) is None
