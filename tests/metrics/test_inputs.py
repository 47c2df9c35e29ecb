"""What measure() refuses before any attack runs, and what it tells to write instead."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks import AttackConfig, ThreatModel
from tasks.errors import ModelRejected, WrongInput
from tasks.metrics import measure

LINF = ThreatModel(norm="linf", eps=0.1)
X, Y = torch.rand(600, 3, generator=torch.Generator().manual_seed(0)), torch.arange(600) % 2
ASKED = []


def attack(model, x, y, *, threat, rng):
    ASKED.append(len(x))
    return x.clone()


class Returning(nn.Module):
    """A linear model whose logits are returned as `how` makes them."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(3, 2), how

    def forward(self, x):
        return self.how(self.linear(x))


def refused(error, hint, **change):
    given = {"model": nn.Linear(3, 2), "x": X, "y": Y, "threat": LINF, "suite": [f"{__name__}:attack"]} | change
    with pytest.raises(error, match=hint) as caught:
        measure(**given)
    assert type(caught.value) is error
    assert not ASKED


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"precision": "fp16"}, "precision='fp16' is unknown. Write 'auto', 'fp32' or 'bf16'"),
        ({"precision": None}, "precision=None is unknown"),
        ({"draws": 0}, "draws=0 is no number of passes"),
        ({"draws": -2}, "draws=-2"),
        ({"draws": 2.0}, "draws=2.0"),
        ({"draws": True}, "draws=True"),
        ({"block": -1}, "block=-1 does not exist: 600 samples make 2 of 512. Write a number from 0 to 1"),
        ({"block": 2}, "block=2"),
        ({"block": 0.0}, r"block=0\.0"),
        ({"seed": 1.0}, r"seed=1\.0 is no whole number"),
        ({"seed": "1"}, "seed='1'"),
        ({"seed": None}, "seed=None"),
        ({"seed": True}, "seed=True"),
        ({"seed": np.int64(1)}, r"seed=.*write e\.g\. seed=0, or seed=int"),
        ({"seed": 2**64}, "at most 64 bits"),
        ({"attack_seconds": 0}, "attack_seconds=0 is no limit for an attack. Write a finite number above 0"),
        ({"attack_seconds": -1.5}, "attack_seconds=-1.5"),
        ({"attack_seconds": float("nan")}, "attack_seconds=nan"),
        ({"attack_seconds": float("inf")}, "attack_seconds=inf"),
        ({"attack_seconds": "long"}, "attack_seconds='long'"),
    ],
    ids=str,
)
def test_an_option_that_means_nothing(change, hint):
    refused(WrongInput, f"(?i){hint}", **change)


@pytest.mark.parametrize(
    ("suite", "hint"),
    [
        (123, r"suite is a int\. Write suite='standard', a Suite, or a list, e\.g\. suite=\['pgd'\]"),
        (None, "suite is a NoneType"),
        (b"standard", "suite is a bytes"),
        ({"name": "pgd"}, "suite is a dict"),
        (attack, "suite is a function"),
        (AttackConfig(name="pgd"), r"suite is a AttackConfig.*suite=\['pgd'\]"),
        ([123], r"the suite holds 123, a int\. Write an attack's name.*'package\.module:function'"),
        (["pgd", attack], r"the suite holds <function.*a function\. Write an attack's name"),
        ([None], "the suite holds None"),
        ([], "empty list of attacks"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_suite(suite, hint):
    refused(WrongInput, hint, suite=suite)


@pytest.mark.parametrize("suite", [("fgsm",), ({"name": "fgsm"},), {"fgsm": 1}.keys()], ids=str)
def test_any_row_of_attacks_is_a_suite(suite):
    assert [a.name for a in measure(nn.Linear(3, 2), X, Y, threat=LINF, suite=suite).attacks] == ["fgsm"]


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"x": X.tolist()}, r"x is a list, not a tensor\. Write torch\.as_tensor\(x\)"),
        ({"x": X.numpy()}, r"x is a numpy\.ndarray.*as_tensor\(x\)"),
        ({"y": Y.tolist()}, r"as_tensor\(y\)"),
        ({"y": Y.numpy()}, r"y is a numpy\.ndarray"),
        ({"x": None}, "x is a NoneType"),
        ({"x": X[0, 0]}, "x is a single number"),
        ({"y": Y[0]}, "y is a single number"),
        ({"y": nn.functional.one_hot(Y)}, r"y is \[600, 2\], but must be \[N\].*Write y\.argmax\(1\)"),
        ({"y": nn.functional.one_hot(Y).float()}, r"y\.argmax\(1\)"),
        ({"y": Y[:, None]}, r"Write y\.squeeze\(1\)"),
        ({"y": Y[:, None, None]}, "must hold the same number"),
        ({"threat": "linf"}, r"threat is a str\. Write threat=ThreatModel\(norm='linf', eps='8/255'\)"),
        ({"threat": {"norm": "linf", "eps": 0.1}}, "threat is a dict"),
        ({"warm": X.tolist()}, r"warm is a list.*torch\.as_tensor\(warm\)"),
        ({"warm": X.numpy()}, r"warm is a numpy\.ndarray"),
        ({"warm": X[:3]}, "one input to begin with per sample"),
        (
            {"warm": X.index_fill(0, torch.tensor([7, 599]), float("nan"))},
            r"warm holds .* rows \[7, 599\].*its row of x",
        ),
        ({"warm": X.index_fill(0, torch.tensor([1]), float("inf"))}, "not finite"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_data_of_another_kind(change, hint):
    refused(WrongInput, hint, **change)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (lambda x: x, r"the model is a function, not a torch\.nn\.Module.*Wrap it in a module whose forward"),
        (nn.Linear(3, 2).state_dict(), r"collections\.OrderedDict, not"),
        (nn.Linear, "the class Linear. Give an instance"),
        (None, "NoneType"),
        (Returning(lambda z: (z, z)), r"returned a tuple; .*return the logits alone.*self\.model\(x\)\[0\]"),
        (Returning(lambda z: (z, z)).half(), "returned a tuple"),
        (Returning(lambda z: {"logits": z}), r"returned a dict; .*return the logits alone.*\['logits'\]"),
        (Returning(lambda z: None), "returned a NoneType"),
        (Returning(lambda z: z.mean(0, keepdim=True)), "returned 1 rows for a batch of 2.*one row for each sample"),
        (Returning(lambda z: torch.cat([z, z])), "returned 4 rows for a batch of 2"),
        (Returning(lambda z: z[:, 0]), r"returned \[2\] for a batch of 2"),
        (Returning(lambda z: z[:, :1]), "knows 1 classes"),
        (nn.Linear(4, 2), r"fails on x \[2, 3\]: RuntimeError"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_no_model_of_logits(model, hint):
    refused(ModelRejected, hint, model=model)


@pytest.mark.parametrize(
    "change",
    [
        *({"precision": kind} for kind in ("auto", "fp32", "bf16")),
        *({"draws": 1}, {"block": 1}, {"seed": -1}, {"seed": 2**64 - 1}, {"attack_seconds": 1}, {"warm": X}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_means_something_is_measured(change):
    found = measure(nn.Linear(3, 2), X, Y, threat=LINF, suite=["fgsm"], **change)
    assert found.problems == ()
    assert len(found.fooled) == (88 if "block" in change else 600)
