"""What an attack's parameters may be: a wrong one is refused before anything runs, wherever it was written."""

import inspect
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flows.config import parse_evaluation
from tasks.attacks import ATTACKS, SUITES, AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks.config import LEAST
from tasks.errors import UnknownPart, WrongInput
from tasks.metrics import measure

THREAT = ThreatModel(norm="linf", eps=0.1)
X, Y = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
RAN = []

WRONG = [
    ("pgd", {"steps": 2.5}, r"steps=2\.5 is a number\. Write a whole number, e\.g\. steps=40"),
    ("pgd", {"steps": 10.0}, "Write a whole number"),
    ("pgd", {"steps": "ten"}, "steps='ten' is text"),
    ("pgd", {"steps": True}, "steps=True is true or false"),
    ("pgd", {"steps": 0}, "nothing to try: any model would look robust. Write 1 or more"),
    ("pgd", {"steps": -3}, "Write 1 or more"),
    ("noise", {"draws": 0}, "draws=0"),
    ("square", {"queries": 0}, "queries=0"),
    ("square", {"queries": 1}, "Write 2 or more"),
    ("square", {"burst": 0}, "burst=0"),
    ("square", {"horizon": 0}, "horizon=0"),
    ("square", {"p": "half"}, "Write a number, e.g. p=0.8"),
    ("square", {"p": 1.5}, "Write from 0 to 1"),
    ("square", {"p": math.nan}, "p=nan is out of range"),
    ("hopskipjump", {"queries": 0}, "queries=0"),
    ("greedy", {"width": 0}, "width=0"),
    ("sweep", {"points": 0}, "points=0"),
    ("margin", {"soft": -1.0}, "soft=-1.0 is out of range. Write 0 or more"),
    ("classes", {"cut": -1}, "cut=-1 is out of range. Write 0 or more"),
    ("classes", {"pairs": -0.5}, "pairs=-0.5"),
    ("classes", {"pairs": math.inf}, "pairs=inf"),
    ("fab", {"count": -1}, "count=-1"),
    ("restarts", {"starts": 3}, "starts=3 is a whole number. Write text"),
    ("transfer", {"surrogate": 3}, "surrogate=3 is a whole number. Write text"),
]
RIGHT = [
    ("square", {"p": 1, "queries": 2}),
    ("classes", {"cut": 0, "pairs": 0}),
    ("classes", {"pairs": 2}),
    ("fab", {"count": 0}),
    ("hopskipjump", {"queries": 1}),
]


def mine(
    model,
    x,
    y,
    *,
    threat,
    rng,
    size: int = 2,
    rate: float = 1,
    mode="near",
    hard=False,
    any_=None,
    old=3,
    box: tuple[int, int] = (0, 1),
):
    RAN.append(size)
    return x.clone()


def unchecked(name: str, params: dict[str, Any]) -> AttackConfig:
    """A row whose parameters nobody has looked at yet."""
    return AttackConfig(name=name).model_copy(update={"params": params})


@pytest.mark.parametrize(("name", "params", "hint"), WRONG, ids=str)
def test_a_wrong_value_is_refused_in_a_suite_in_a_list_and_in_a_config(name, params, hint):
    row = unchecked(name, params)
    for suite in (
        [row],
        Suite(name="mine", attacks=(AttackConfig(name="fgsm"),)).model_copy(update={"attacks": (row,)}),
    ):
        with pytest.raises(WrongInput, match=hint):
            measure(nn.Linear(3, 2), X, Y, threat=THREAT, suite=suite)
    with pytest.raises(ValidationError, match=hint):
        AttackConfig(name=name, params=params)
    attacks = [{"name": name, "params": params}]
    evaluation = {"threats": [{"norm": "linf", "eps": 0.1}], "attacks": attacks}
    with pytest.raises(WrongInput, match=rf"attacks\.0\.params: .*{hint}"):
        parse_evaluation({"name": "a", "model": "models:/a/1", "dataset": "digits", "evaluation": evaluation})


@pytest.mark.parametrize(("name", "params"), RIGHT, ids=str)
def test_a_value_that_has_a_meaning_is_kept(name, params):
    assert as_suite([AttackConfig(name=name, params=params)]).attacks[0].params == params


def test_every_number_that_an_attack_takes_has_a_least_value():
    for name, attack in ATTACKS.items():
        for key, parameter in inspect.signature(attack).parameters.items():
            if isinstance(parameter.default, int | float):
                least = LEAST.get(f"{name} {key}", LEAST.get(key))
                assert least is not None, f"{name}: {key}"
                assert parameter.default >= least


def test_what_the_shipped_suites_say_is_fit():
    for suite in SUITES.values():
        assert as_suite(Suite.model_validate_json(suite.model_dump_json())) == suite


@pytest.mark.parametrize(
    ("params", "hint"),
    [
        ({"size": 2.5}, "size=2.5 is a number. Write a whole number, e.g. size=2"),
        ({"size": True}, "true or false"),
        ({"rate": "fast"}, "Write a whole number or a number, e.g. rate=1"),
        ({"mode": 3}, "Write text, e.g. mode='near'"),
        ({"hard": 1}, "Write true or false, e.g. hard=False"),
        ({"old": "three"}, "old='three' is text"),
    ],
    ids=str,
)
def test_a_parameter_of_one_s_own_attack_must_be_of_its_default_s_type(params, hint):
    row = AttackConfig(name=f"{__name__}:mine", params=params)
    with pytest.raises(WrongInput, match=hint):
        measure(nn.Linear(3, 2), X, Y, threat=THREAT, suite=[row])
    assert not RAN


@pytest.mark.parametrize(
    "params", [{"size": -1}, {"rate": 0.5}, {"rate": math.inf}, {"any_": "x"}, {"any_": 1}, {"box": "wide"}], ids=str
)
def test_what_one_s_own_attack_s_numbers_mean_is_its_own_affair(params):
    assert as_suite([AttackConfig(name=f"{__name__}:mine", params=params)])


def test_an_attack_of_one_s_own_is_not_imported_when_its_row_is_only_read():
    assert AttackConfig(name="nowhere_at_all:x", params={"steps": 0}).params == {"steps": 0}


# --- a threat model that knows no radius ---


@pytest.mark.parametrize("eps", [0.1, "8/255", 2.0])
def test_unbounded_takes_no_eps(eps):
    with pytest.raises(ValidationError, match=r"unbounded takes no eps.*Leave eps out, or write norm='linf'"):
        ThreatModel(norm="unbounded", eps=eps)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.5), (0, 255), (0.1, 0.7)])
def test_unbounded_may_name_its_whole_range_or_infinity_and_is_read_back(bounds):
    plain = ThreatModel(norm="unbounded", bounds=bounds)
    assert ThreatModel(norm="unbounded", eps=bounds[1] - bounds[0], bounds=bounds) == plain
    assert ThreatModel(norm="unbounded", eps=math.inf, bounds=bounds) == plain
    assert ThreatModel.model_validate(plain.model_dump(mode="json")) == plain
    assert ThreatModel.model_validate_json(plain.model_dump_json()) == plain


def test_evidence_that_was_stored_with_such_an_eps_is_read_as_it_was_written():
    stored = '{"norm":"unbounded","eps":0.3,"bounds":[0.0,1.0],"scale":null,"mask":null}'
    assert ThreatModel.model_validate_json(stored).model_dump_json() == stored


# --- transfer ---


class Saying(nn.Module):
    """Returns what it was given at first, whatever it is asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


def breaks():
    raise RuntimeError("no weights here")


def builds_text():
    return "a model"


def transfer(surrogate, model=None, x=X):
    rng = torch.Generator().manual_seed(0)
    return ATTACKS["transfer"](model or nn.Linear(3, 2), x, Y, threat=THREAT, rng=rng, surrogate=surrogate)


@pytest.mark.parametrize("asked", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float16, torch.float32, torch.float64])
def test_a_surrogate_is_asked_in_its_own_precision(own, asked):
    found, same = transfer(linear(own), x=X.to(asked)), transfer(linear(asked), x=X.to(asked))
    assert found.dtype == asked
    assert (found - X.to(asked)).abs().max() <= THREAT.eps + 1e-6
    assert torch.allclose(found, same, atol=1e-3)


@pytest.mark.parametrize(
    ("surrogate", "hint"),
    [
        (3, "surrogate=3 names no model"),
        ("other", "names no model"),
        (f"{__name__}:breaks", "breaks' cannot be loaded: RuntimeError: no weights here. Write"),
        (f"{__name__}:X", "cannot be loaded: TypeError"),
        (f"{__name__}:builds_text", "returned a str, not a torch.nn.Module"),
        (nn.Linear(5, 2), r"surrogate Linear fails on x \[4, 3\]: RuntimeError.*takes the same inputs"),
        (Saying((X, X)), "returned a tuple. Return the logits"),
        (Saying(X[:2]), r"returned \[2, 3\] for x \[4, 3\]"),
        (Saying(X[:, 0]), r"returned \[4\]"),
        (Saying(X[:, :1]), "for the same classes as the model under test, 2 at least"),
    ],
)
def test_a_surrogate_that_cannot_be_used_is_refused_in_words(surrogate, hint):
    with pytest.raises(WrongInput, match=hint):
        transfer(surrogate)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("nowhere_at_all:x", "there is no module"),
        (f"{__name__}:build", "has no 'build'"),
        ("other", "no name of a fun"),
    ],
)
def test_a_surrogate_that_is_not_there_is_refused_before_any_attack(path, hint):
    with pytest.raises(UnknownPart, match=f"surrogate.*{hint}"):
        as_suite([AttackConfig(name="transfer", params={"surrogate": path})])
    with pytest.raises(WrongInput, match="surrogate") as caught:
        transfer(path)
    assert "cannot be loaded" not in str(caught.value)
