"""redoubt check and redoubt selftest: what they print, and their exit codes."""

import json
import sys

import pytest

from flows.__main__ import main
from tasks.metrics import Sign, Soundness, selftest
from tasks.metrics.selftest import Finding

PARTS = """
import torch
from torch import nn


def even(split):
    \"\"\"x uniform in 0..1, class 1 above a half: the distance to the boundary is |x - 0.5|.\"\"\"
    x = torch.rand(600, 1, generator=torch.Generator().manual_seed(len(split)))
    return x, (x[:, 0] > 0.5).long()


def threshold():
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0]]))
        model.bias.copy_(torch.tensor([0.0, -5.0]))
    return model


class Rounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = threshold()

    def forward(self, x):
        return self.net(torch.tensor(x.detach().numpy().round(1)))


def rounds():
    return Rounds()
"""


@pytest.fixture
def parts(tmp_path, monkeypatch, home):
    (tmp_path / "edge.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("edge", None)


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["redoubt", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("floor", "code", "words"),
    [("0.5", 0, "above the floor of 50%"), ("0.95", 1, "below the floor of 95%"), ("0.8", 2, "undecided")],
)
def test_check_ends_with_the_side_of_the_floor(parts, monkeypatch, capsys, floor, code, words):
    ran = call(monkeypatch, "check", "edge:threshold", "--dataset", "edge:even", "--eps", "0.1", "--floor", floor)
    assert ran == code  # robust accuracy is 0.8
    assert words in capsys.readouterr().out


def test_check_prints_one_object_and_planted_examples_that_noise_finds_prove_nothing(parts, monkeypatch, capsys):
    words = ("--dataset", "edge:even", "--eps", "0.1", "--suite", "quick", "--planted", "8", "--json")
    assert call(monkeypatch, "check", "edge:threshold", *words) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["decision"]["outcome"] == "above the floor"
    assert printed["decision"]["samples"] < 300
    assert printed["verdict"] == "cannot tell"
    assert not printed["planted"]["passed"]
    assert printed["planted"]["by_noise"]["value"] == 1.0  # there is one feature: noise goes both ways


def test_a_model_that_hides_its_slope_does_not_pass_the_check(parts, monkeypatch, capsys):
    ran = call(monkeypatch, "check", "edge:rounds", "--dataset", "edge:even", "--eps", "0.1", "--suite", "quick")
    assert ran == 2
    assert "no gradients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["models:/nobody@champion", "--dataset", "digits", "--eps", "0.1"], "not registered"),
        (["models:/a/b/c", "--dataset", "digits", "--eps", "0.1"], "models:/NAME@champion"),
        (["edge:threshold", "--dataset", "edge:even", "--eps", "15"], "eps='15/255'"),
        (["edge:threshold", "--dataset", "edge:even", "--eps", "0.1", "--norm", "l7"], "norm"),
        (["edge:threshold", "--dataset", "edge:even", "--eps", "0.1", "--floor", "7"], "not in the range 0<=x<=1"),
        (["edge:Rounds.forward", "--dataset", "edge:even", "--eps", "0.1"], "edge"),
        (["edge:even", "--dataset", "edge:even", "--eps", "0.1"], "cannot be built"),
        (["edge:threshold", "--dataset", "edge:even", "--eps", "0.1", "--planted", "-3"], "planted"),
        (["edge:nothing", "--dataset", "edge:even", "--eps", "0.1"], "edge"),
    ],
)
def test_wrong_input_ends_with_3_and_says_what_to_write(parts, monkeypatch, capsys, words, hint):
    assert call(monkeypatch, "check", *words) == 3
    assert hint in capsys.readouterr().err


def found(name: str, *, faulty: bool, right: bool) -> Finding:
    sign = Sign(name="no gradients", kind="failure", state="alarm", first="alarm", says="None.")
    return Finding(name, faulty, right, 0.9, 0.5, 0.1, Soundness(signs=(sign,), passes=1, share=0.1), 1.0)


@pytest.mark.parametrize(("right", "code", "word"), [(True, 0, "caught"), (False, 1, "MISSED")])
def test_selftest_ends_with_1_where_a_fault_goes_unseen(monkeypatch, capsys, right, code, word):
    case = found("quantised input", faulty=True, right=right)
    monkeypatch.setattr(selftest, "selftest", lambda suite, seed: [case])
    assert call(monkeypatch, "selftest") == code
    printed = capsys.readouterr().out
    assert word in printed
    assert "no gradients" in printed


def test_selftest_wants_a_suite_that_exists(monkeypatch, capsys):
    assert call(monkeypatch, "selftest", "--suite", "standart") == 3
    assert "Did you mean 'standard'" in capsys.readouterr().err
