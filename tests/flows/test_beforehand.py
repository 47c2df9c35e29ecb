"""What a config gets wrong is told before anything runs."""

from pathlib import Path

import pytest

from flows.__main__ import main
from flows.beforehand import check_fit, check_parts
from flows.config import parse_evaluation
from flows.plans import adopt, plan_of
from flows.recipes import RECIPES, configured, two_kinds
from tasks.data import Data, describe, load
from tasks.errors import WrongInput
from tasks.track import client, names

HERE = __name__
MASK = f"evaluation.threats=[{{norm: linf, eps: 0.1, mask: [{', '.join(['true'] * 7)}]}}]"
WRONG = [
    ("dataset=two-kind", "dataset: unknown dataset 'two-kind'. Did you mean 'two-kinds'?"),
    ("dataset=nowhere.csv", "dataset: dataset file 'nowhere.csv' does not exist"),
    ("dataset=no/where", "dataset: dataset path 'no/where' does not exist"),
    ("training.model=two-kind-mlp", "training.model: unknown model 'two-kind-mlp'. Did you mean 'two-kinds-mlp'?"),
    ("training.model=nowhere:net", "training.model: model 'nowhere:net': there is no module 'nowhere'"),
    ("hardening.model=nowhere:net", "hardening.model: model 'nowhere:net': there is no module 'nowhere'"),
    ("training.defence=plane", "training.defence: unknown defence 'plane'. Did you mean 'plain'?"),
    ("hardening.defence=adversary", "hardening.defence: unknown defence 'adversary'. Did you mean 'adversarial'?"),
    ("evaluation.suite=quik", "evaluation: unknown suite 'quik'. Did you mean 'quick'?"),
    ("evaluation.attacks=[{name: squared}]", "evaluation: unknown attack 'squared'. Did you mean 'square'?"),
    ("policy.floors={linf_0.2: 0.5}", "policy.floors: linf_0.2 is not measured. Write one of: linf_0.1; or"),
]
UNFIT = [
    ("evaluation.critical_pairs=[[0, 2]]", "critical_pairs names class 2, but the model knows 2 classes"),
    (MASK, "mask or scale has 7 entries, a sample 201 features"),
    ("evaluation.threats=[{norm: linf, eps: 0.1, bounds: [0.4, 0.6]}]", "but the threat model's bounds are 0.4..0.6"),
    ("hardening.model=phishing-mlp", "hardening.model: model 'phishing-mlp' fails on x"),
]


def of_x_alone(x):
    return x


def without_rng(model, x, y, *, threat):
    return x


def wants_more(model, x, y, *, threat, rng, depth):
    return x


def fits(model, x, y, *, threat, rng, depth=1):
    return x


def takes_anything(*given, **named):
    return given[1]


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("of_x_alone", "too many positional arguments"),
        ("without_rng", "got an unexpected keyword argument 'rng'"),
        ("wants_more", "missing a required argument: 'depth'"),
    ],
)
def test_an_attack_that_cannot_be_called_is_told(attack, said):
    with pytest.raises(WrongInput) as refused:
        check_parts(configured("two-kinds", (f"evaluation.attacks=[{{name: '{HERE}:{attack}'}}]",)))
    assert f"evaluation: attack '{HERE}:{attack}' cannot be called: {said}" in str(refused.value)
    assert "Write def " in str(refused.value)
    assert "(model, x, y, *, threat, rng)" in str(refused.value)


@pytest.mark.parametrize("attack", ["fits", "takes_anything"])
def test_an_attack_that_can_be_called_is_let_through(attack):
    check_parts(configured("two-kinds", (f"evaluation.attacks=[{{name: '{HERE}:{attack}'}}]",)))


def test_a_parameter_that_the_config_gives_is_not_missing():
    named = f"{{name: '{HERE}:fits', params: {{depth: 2}}}}"
    check_parts(configured("two-kinds", (f"evaluation.attacks=[{named}]",)))


@pytest.fixture(scope="module")
def data() -> Data:
    return describe("two-kinds", load("two-kinds"))


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_have_nothing_to_complain_of(name):
    check_parts(RECIPES[name]())


def test_what_fits_is_let_through(data):
    check_fit(two_kinds(), data)


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_name_that_means_nothing_is_told(change, said):
    with pytest.raises(WrongInput) as refused:
        check_parts(configured("two-kinds", (change,)))
    assert said in str(refused.value)


def test_a_floor_that_an_evaluation_does_not_measure_is_told():
    values = two_kinds().as_evaluation(1).model_dump(mode="json")
    for floors in ({}, {"linf_0.1": 0.5}):
        check_parts(parse_evaluation(values | {"policy": {"floors": floors}}), here=False)
    wrong = parse_evaluation(values | {"policy": {"floors": {"linf_0.2": 0.5}}})
    with pytest.raises(WrongInput, match=r"policy\.floors: linf_0\.2 is not measured\. Write one of: linf_0\.1"):
        check_parts(wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policy.floor=60", "policy.floor: 60 is no share. Write 0.6 for 60 %."),
        ("policy.clean_floor=97.5", "policy.clean_floor: 97.5 is no share. Write 0.975 for 97.5 %."),
        ("policy.floors={linf_0.1: 60}", "policy.floors.linf_0.1: 60 is no share. Write 0.6 for 60 %."),
        ("policy.floors={linf_0.1: -1}", "-1 is no share. Write a number from 0 to 1, e.g. 0.6 for 60 %."),
        ("policy.floors={linf_0.1: .nan}", "nan is no share. Write a number from 0 to 1"),
        ("policy.tolerance=3", "policy.tolerance: 3 is no share. Write 0.03 for 3 %."),
        ("policy.floor=no", "policy.floor: false is no share. Write a number from 0 to 1, e.g. 0.6 for 60 %."),
        ("policy.tolerance=yes", "policy.tolerance: true is no share."),
        ("policy.floors={linf_0.1: off}", "policy.floors.linf_0.1: false is no share."),
        ("policy.floors={linf_0.1: high}", "should be a valid number"),
    ],
)
def test_a_floor_that_is_no_share_is_refused_when_the_config_is_read(change, said):
    with pytest.raises(WrongInput) as refused:
        configured("two-kinds", (change,))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policy.min_samples=yes", "policy.min_samples: true is no number; YAML reads yes and on so. Write 1"),
        ("policy.max_rounds=no", "policy.max_rounds: false is no number; YAML reads no and off so. Write 0"),
        ("evaluation.samples=on", "evaluation.samples: true is no number"),
        ("evaluation.attack_seconds=true", "evaluation.attack_seconds: true is no number"),
        ("training.lr=yes", "training.lr: true is no number"),
        ("evaluation.threats.0.eps=yes", "eps=True is no radius. Write 0.03 or '8/255'."),
        ("evaluation.threats.0.bounds=[no, yes]", "evaluation.threats.0.bounds.0: false is no number"),
    ],
)
def test_a_number_that_yaml_takes_for_true_or_false_is_refused(change, said):
    with pytest.raises(WrongInput) as refused:
        configured("two-kinds", (change,))
    assert said in str(refused.value)


def test_true_and_false_are_taken_where_they_are_meant():
    changes = ("policy.may_ask_less=yes", "evaluation.warm=on", "evaluation.attacks=[{name: a:b, params: {k: yes}}]")
    config = configured("two-kinds", changes)
    assert (config.policy.may_ask_less, config.evaluation.warm) == (True, True)
    assert config.evaluation.attacks[0].params == {"k": True}


def test_every_wrong_name_has_its_line():
    wrong = configured("two-kinds", tuple(change for change, _ in WRONG[3::2]))
    with pytest.raises(WrongInput) as refused:
        check_parts(wrong)
    assert len(str(refused.value).splitlines()) == len(WRONG[3::2])


@pytest.mark.parametrize(("change", "said"), UNFIT)
def test_a_config_that_does_not_fit_the_data_is_told(change, said, data):
    with pytest.raises(WrongInput) as refused:
        check_fit(configured("two-kinds", (change,)), data)
    assert said in str(refused.value)


def test_a_model_that_the_run_cannot_come_to_need_not_fit(data):
    never = configured("two-kinds", ("hardening.model=phishing-mlp", "policy.max_rounds=0"))
    check_fit(never, data)


@pytest.mark.parametrize("change", ["dataset=acme:tickets", "dataset=/data/t.csv", "hardening.defence=acme:smooth"])
def test_a_plan_may_name_what_is_on_other_machines(home, change):
    plan = adopt("m", "digits", (change,))
    with pytest.raises(WrongInput):
        check_parts(plan)  # as a run of it does, wherever that is


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("evaluation.suite=warmm", "evaluation.attacks=[{name: 'acme:mine'}]"), "unknown suite 'warmm'"),
        (("evaluation.attacks=[{name: 'acme:mine'}, {name: squared}]",), "unknown attack 'squared'"),
        (("evaluation.attacks=[{name: 'acme:mine'}, {name: pgd, params: {stops: 9}}]",), "no parameter 'stops'"),
    ],
)
def test_what_a_plan_names_beside_a_part_of_another_machine_is_looked_at(home, changes, said):
    with pytest.raises(WrongInput, match=said):
        adopt("m", "digits", changes)
    assert names() == ()


def test_an_attack_of_another_machine_is_taken_on_trust_beside_known_ones(home):
    named = "{name: 'acme:mine', params: {depth: 3}}, {name: transfer, params: {surrogate: 'acme:other'}}, {name: pgd}"
    plan = adopt("m", "digits", (f"evaluation.attacks=[{named}]",))
    assert [attack.name for attack in plan.evaluation.attacks] == ["acme:mine", "transfer", "pgd"]
    assert names() == ("m",)


@pytest.mark.server
@pytest.mark.parametrize(
    ("change", "said", "begun"),
    [("hardening.defence=nosuch", "hardening.defence: unknown defence", 0), (*UNFIT[0], 1)],
    ids=["a part", "the data"],
)
def test_a_run_ends_before_anything_is_trained(prefect_server, home: Path, monkeypatch, capsys, change, said, begun):
    monkeypatch.setattr("sys.argv", ["redoubt", "run", "two-kinds", "--set", change])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    assert said in capsys.readouterr().err
    assert plan_of("two-kinds") is None
    experiment = client().get_experiment_by_name("two-kinds")
    runs = client().search_runs([experiment.experiment_id]) if experiment else []
    assert [run.info.status for run in runs] == ["FAILED"] * begun  # and no stage below it


def test_a_plan_of_parts_that_nobody_knows_is_not_adopted(home, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["redoubt", "adopt", "m", "--like", "digits", "--set", "hardening.defence=nosuch"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    assert "hardening.defence: unknown defence 'nosuch'" in capsys.readouterr().err
    assert names() == ()
