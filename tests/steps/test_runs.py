"""An open run: what the process that has it open knows of it, and what the store holds when it ends."""

import pytest

from tasks.track import client, open_run, open_stage, run_metrics, seconds, timed
from tasks.track.runs import _OPENED


def ended(run_id: str) -> str:
    return str(client().get_run(run_id).info.status)


def test_the_seconds_of_a_step_are_known_at_once_and_logged_when_the_run_ends(home):
    told: dict[str, float] = {}

    def fail() -> None:
        with open_run("x", {}) as run_id:
            with timed(run_id, "train/baseline"), timed(run_id, "attack/epoch=9 (1)/test"):
                pass
            assert list(seconds(run_id)) == ["attack/epoch=9 (1)/test", "train/baseline"]
            assert not run_metrics(run_id)
            told.update(seconds(run_id))
            raise RuntimeError(run_id)

    with pytest.raises(RuntimeError) as stop:
        fail()
    run_id = str(stop.value)
    names = {"attack/epoch=9 (1)/test": "attack/epoch_9 _1_/test"}  # what MLflow takes as a name
    told = {names.get(step, step): took for step, took in told.items()}
    assert run_metrics(run_id) == {f"seconds/{step}": took for step, took in told.items()}
    assert ended(run_id) == "FAILED"
    assert seconds(run_id) == told
    assert run_id not in _OPENED


def test_a_stage_is_made_once_and_ends_as_its_run_does(home):
    with open_run("x", {}) as run_id:
        first, other = open_stage(run_id, "baseline"), open_stage(run_id, "hardened-1")
        assert open_stage(run_id, "baseline") == first != other
        with open_run("x", {}) as another:
            assert open_stage(another, "baseline") not in (first, other)
    assert {ended(run) for run in (run_id, first, other, another)} == {"FINISHED"}


def test_what_workers_add_to_a_run_is_found_and_closed_with_it(home, monkeypatch):
    monkeypatch.setenv("REDOUBT_WORKERS", "processes:2")
    with open_run("x", {}) as run_id, timed(run_id, "mine"):
        mine = _OPENED.pop(run_id)  # as it is in the process of a worker, which has not opened the run
        theirs = open_stage(run_id, "candidate-1")
        with timed(run_id, "train/candidate-1"):
            pass
        _OPENED[run_id] = mine
        assert open_stage(run_id, "candidate-1") == theirs
        assert list(seconds(run_id)) == ["train/candidate-1"]
    assert set(seconds(run_id)) == {"mine", "train/candidate-1"}
    assert (ended(run_id), ended(theirs)) == ("FINISHED", "FINISHED")
