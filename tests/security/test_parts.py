"""Functions that a store names: imported only where the user has vouched for them."""

import sys

import pytest

from flows.asked import asked
from flows.check import check
from tasks.attacks import ThreatModel
from tasks.errors import PartRefused, UnknownPart
from tasks.fetch import fetch_version
from tasks.lookup import imported
from tasks.models import StoredModel
from tasks.parts import named, vouched
from tasks.recall import asked_of
from tasks.results import ASKED
from tasks.track import client, keep_stored, log_dict, registered

EVIL = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
from os import system
from functools import partial
from subprocess import run
hidden = partial(run)


def mine():
    return 1


def wines(split):
    raise RuntimeError
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that lies where modules are looked for; the file whose existence says that it was imported."""
    (tmp_path / "evil_parts.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("REDOUBT_PARTS", raising=False)
    yield tmp_path / "imported"
    sys.modules.pop("evil_parts", None)


NESTED = (
    {"dataset": "evil_parts:wines"},
    {"evaluation": {"attacks": [{"name": "evil_parts:mine", "params": {}}]}},
    {"evaluation": {"attacks": [{"name": "transfer", "params": {"surrogate": "evil_parts:mine"}}]}},
    {"training": {"defence": "evil_parts:mine"}},
    {"evil_parts:mine": 1},
    ("evil_parts:mine",),
)


@pytest.mark.parametrize("values", NESTED, ids=str)
def test_a_function_that_a_store_names_is_refused_and_its_module_not_imported(evil, values):
    with pytest.raises(PartRefused, match="REDOUBT_PARTS=evil_parts"):
        vouched(values, "the plan")
    assert not evil.exists()


def test_names_of_our_tables_and_plain_values_pass(evil):
    values = {"dataset": "digits", "path": "/data/x.csv", "model": "models:/a/3", "floor": 0.5, "when": "12:30"}
    assert vouched(values, "the plan") is values


@pytest.mark.parametrize("entry", ["evil_parts", "other, evil_parts", "evil_parts:mine"])
def test_what_the_environment_lists_passes(evil, monkeypatch, entry):
    monkeypatch.setenv("REDOUBT_PARTS", entry)
    assert vouched("evil_parts:mine", "the plan")


@pytest.mark.parametrize("path", ["evil_parts:system", "evil_parts:run", "evil_parts:hidden", "evil_parts:pathlib"])
def test_a_listed_module_vouches_only_for_what_it_defines(evil, monkeypatch, path):
    monkeypatch.setenv("REDOUBT_PARTS", "evil_parts")
    with pytest.raises(PartRefused):
        vouched(path, "the plan")


@pytest.mark.parametrize("entry", ["evil", "evil_part", "evil_parts:wines", "*", "", "evil_parts.below"])
def test_a_list_of_others_vouches_for_nothing(evil, monkeypatch, entry):
    monkeypatch.setenv("REDOUBT_PARTS", entry)
    with pytest.raises(PartRefused):
        vouched("evil_parts:mine", "the plan")
    assert not evil.exists()


def test_what_the_user_names_passes_while_it_is_named_and_only_that(evil):
    with named({"dataset": "evil_parts:wines"}, ("evaluation.attacks=[{name: 'evil_parts:mine'}]",)):
        vouched(["evil_parts:wines", "evil_parts:mine"], "the plan")
        with pytest.raises(PartRefused):
            vouched("evil_parts:run", "the plan")
    with pytest.raises(PartRefused):
        vouched("evil_parts:wines", "the plan")
    assert not evil.exists()


@pytest.mark.parametrize("path", ["os:abort", "posixpath:join", "subprocess:call", "tasks.track.store:client"])
def test_neither_python_s_modules_nor_our_own_inner_ones_are_taken_from_a_store(path):
    with pytest.raises(PartRefused):
        vouched({"model": path}, "the plan")


@pytest.mark.parametrize("path", ["os:path.join", ".os:abort", "os.:abort", "a b:c", "os:", ":x", "a:b:c", "/tmp/x:y"])
def test_what_is_no_plain_name_is_never_imported(path):
    with pytest.raises(UnknownPart, match=r"package\.module:function"):
        imported("dataset", path)


@pytest.fixture
def registry(home, evil):
    """A registered model whose stored facts and config name a function that nobody here has named."""
    store = client()
    run = store.create_run(store.create_experiment("theirs")).info.run_id
    stored = StoredModel(
        stage="baseline", model="evil_parts:mine", weights=f"runs:/{run}/w", digest="0" * 16, run_id=run, model_uri=""
    )
    keep_stored(run, stored)
    log_dict(run, {"dataset": "evil_parts:wines", "evaluation": {}, "policy": {}}, ASKED)
    store.create_registered_model("theirs")
    store.create_model_version("theirs", source="", run_id=run)
    return run


def test_a_registered_model_cannot_name_what_builds_it(registry, evil):
    with pytest.raises(PartRefused, match=r"model\.json of run"):
        fetch_version(registered("theirs")[0])
    with pytest.raises(PartRefused, match=r"model\.json of run"):
        check(
            "models:/theirs/1", "digits", threat=ThreatModel(norm="linf", eps=0.1), floor=0.5, suite="quick", seed=0,
            planted=0,
        )  # fmt: skip
    assert not evil.exists()


def test_a_config_that_a_run_keeps_cannot_name_its_dataset(registry, evil):
    with pytest.raises(PartRefused, match="the config of run"):
        asked_of(registry)
    with named("evil_parts:wines"):
        assert asked_of(registry)["dataset"] == "evil_parts:wines"
    assert not evil.exists()


def test_what_a_command_names_is_the_user_s_own_word(registry, evil, monkeypatch):
    monkeypatch.setattr("flows.asked._newest", lambda _: type("Record", (), {"run_id": registry}))
    words = dict.fromkeys(("like", "name", "suite", "samples", "seed", "floor")) | {"norm": "linf", "changes": ()}
    with pytest.raises(PartRefused):
        asked("models:/theirs/1", dataset=None, eps="0.1", **words)
    assert asked("models:/theirs/1", dataset="evil_parts:wines", eps="0.1", **words).dataset == "evil_parts:wines"
