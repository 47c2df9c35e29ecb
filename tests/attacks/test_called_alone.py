"""An attack that is called as a plain function works as it does under measure(), whatever mode its caller is in."""

import pytest
import torch
from torch import nn

from tasks.attacks import ATTACKS, ThreatModel, apgd_ce, fgsm, pgd
from tasks.errors import WrongInput

FEW = {"hopskipjump": {"queries": 60}, "square": {"queries": 60}}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
THREAT = ThreatModel(norm="linf", eps=0.1)
DIRECT = {"apgd-ce": apgd_ce, "fgsm": fgsm, "pgd": pgd}  # the functions that the package names itself


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


MODEL, X = network(), torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = MODEL(X).argmax(1)


def attacked(attack, x=X, y=Y, **params):
    return attack(MODEL, x, y, threat=THREAT, rng=torch.Generator().manual_seed(1), **params)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_caller_who_asks_for_no_gradients_gets_the_same_examples(name, mode):
    params = FEW.get(name, {})
    expected = attacked(ATTACKS[name], **params)
    with MODES[mode]():
        x, y = X.clone(), Y.clone()  # under inference_mode, tensors that no gradient may pass through
        found = attacked(ATTACKS[name], x, y, **params)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
    assert torch.equal(found, expected)
    assert torch.equal(x, X)
    assert not found.is_inference()


@pytest.mark.parametrize("name", DIRECT)
def test_so_does_one_who_takes_the_function_by_its_own_name(name):
    with torch.no_grad():
        assert torch.equal(attacked(DIRECT[name]), attacked(ATTACKS[name]))
        assert (MODEL(attacked(DIRECT[name])).argmax(1) != Y).any()


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.uint16])
@pytest.mark.parametrize("name", ATTACKS)
def test_labels_may_be_any_whole_numbers(name, kind):
    params, labels = FEW.get(name, {}), Y.to(kind)
    assert torch.equal(attacked(ATTACKS[name], y=labels, **params), attacked(ATTACKS[name], **params))
    assert labels.dtype == kind


@pytest.mark.parametrize("name", ATTACKS)
def test_labels_that_are_no_whole_numbers_are_refused(name):
    for y in (Y.float(), Y.to(torch.complex64)):
        with pytest.raises(WrongInput, match=rf"y is {y.dtype}.*class numbers.*Write y\.long\(\)"):
            attacked(ATTACKS[name], y=y)
