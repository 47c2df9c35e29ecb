"""The files of a run: what is written, listed and read again, and from where."""

import pytest
import torch

from tasks.models import build
from tasks.track import (
    artifacts,
    client,
    keeps,
    load_bytes,
    log_bytes,
    log_dict,
    log_text,
    model_artifacts,
    open_run,
    open_stage,
    register,
    save_model,
    written,
)
from tasks.track import kept as kept_module
from tasks.track.kept import placed


@pytest.fixture
def change(home):
    """Change a file behind the back of the process that wrote it."""
    return lambda run_id, path, raw: next((home / "mlflow").rglob(f"{run_id}/artifacts/{path}")).write_bytes(raw)


def test_an_open_run_knows_what_it_wrote_and_everybody_else_asks_the_store(home, change):
    with open_run("x", {}) as run_id:
        log_text(run_id, "mine ä", "deep/a.txt")
        change(run_id, "deep/a.txt", b"another's")
        assert load_bytes(f"runs:/{run_id}/deep/a.txt").decode() == "mine ä"
    assert load_bytes(f"runs:/{run_id}/deep/a.txt") == b"another's"
    with open_run("x", {}) as later:
        assert load_bytes(f"runs:/{run_id}/deep/a.txt") == b"another's"
        log_dict(later, {"b": 1}, "b.json")
        change(later, "b.json", b"{}")
        with pytest.raises(RuntimeError), open_run("x", {}):
            raise RuntimeError
        assert load_bytes(f"runs:/{later}/b.json") == b'{\n  "b": 1\n}'  # another run that ends takes nothing from it


def test_an_open_run_reads_a_file_of_another_once(home, change):
    with open_run("x", {}) as other:
        log_bytes(other, b"weights", "weights.bin")
    with open_run("x", {}):
        assert load_bytes(f"runs:/{other}/weights.bin") == b"weights"
        change(other, "weights.bin", b"changed")
        assert load_bytes(f"runs:/{other}/weights.bin") == b"weights"  # what was judged is what is recorded
    assert load_bytes(f"runs:/{other}/weights.bin") == b"changed"


def test_what_is_written_twice_is_known_as_it_was_written_last(home):
    with open_run("x", {}) as run_id:
        log_bytes(run_id, b"first", "raw.bin")
        log_bytes(run_id, b"second", "raw.bin")
        assert load_bytes(f"runs:/{run_id}/raw.bin") == b"second"


def test_no_more_is_remembered_than_fits(home, change, monkeypatch):
    monkeypatch.setattr(kept_module, "LARGEST", 10)
    with open_run("x", {}) as run_id:
        log_bytes(run_id, b"12345678", "kept")
        log_bytes(run_id, b"12345678", "too-much")
        log_bytes(run_id, b"12", "small")
        for path in ("kept", "too-much", "small"):
            change(run_id, path, b"changed")
        assert load_bytes(f"runs:/{run_id}/kept") == b"12345678"
        assert load_bytes(f"runs:/{run_id}/too-much") == b"changed"
        log_bytes(run_id, b"much too much of it", "kept")  # whatever was known of it is no longer true
        assert load_bytes(f"runs:/{run_id}/kept") == b"much too much of it"
        change(run_id, "kept", b"changed")
        assert load_bytes(f"runs:/{run_id}/kept") == b"changed"


def test_a_version_is_looked_up_whatever_its_model_is_called(home):
    with open_run("x", {}) as run_id:
        assert placed(f"runs:/{run_id}/a/b.txt").endswith(f"{run_id}/artifacts/a/b.txt")
    for uri in ("models:/digits/3", "models:/m-mnist-small/3", "models:/m-mnist-small/3/MLmodel"):
        assert placed(uri) == uri


def test_files_are_listed_in_folders_and_named_by_their_whole_path(home):
    with open_run("x", {}) as run_id:
        log_text(run_id, "a", "a.txt")
        log_text(run_id, "b", "d/e/b.txt")
        assert artifacts(run_id) == ("a.txt", "config.json", "d/e/b.txt")
        assert artifacts(run_id, "d") == ("d/e/b.txt",)
        assert artifacts(run_id, "none") == ()
        assert keeps(run_id, "a.txt")
        assert keeps(run_id, "d/e/b.txt")
        assert not keeps(run_id, "d/e")
        assert not keeps(run_id, "d/c.txt")


def test_a_model_lands_in_its_own_run_whatever_the_caller_has_begun_with_mlflow(home, monkeypatch):
    """Flows called from a notebook: an experiment is set there, and a run is active."""
    import mlflow

    network = build("two-kinds-mlp", seed=1).eval()
    with open_run("mine", {}) as run_id:
        stage = open_stage(run_id, "baseline")
        monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # set back when this ends
        monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        mlflow.set_experiment("another")
        with mlflow.start_run() as theirs:
            stored = save_model(stage, "baseline", "two-kinds-mlp", network, torch.zeros(2, 201))
            active = mlflow.active_run()
            assert active is not None
            assert active.info.run_id == theirs.info.run_id
        assert client().get_run(stage).info.status == "RUNNING"
    own, other = client().get_run(stage), client().get_run(theirs.info.run_id)
    assert [output.model_id for output in own.outputs.model_outputs] == [stored.model_uri.removeprefix("models:/")]
    assert not other.outputs.model_outputs
    logged = client().get_logged_model(own.outputs.model_outputs[0].model_id)
    assert (logged.source_run_id, logged.experiment_id) == (stage, own.info.experiment_id)
    assert str(logged.status) == "READY"
    assert not client().search_runs(["0"])  # MLflow's default experiment
    loaded = mlflow.pytorch.load_model(stored.model_uri)
    x = torch.rand(2, 201)
    torch.testing.assert_close(loaded(x), network(x))


def test_what_was_written_to_a_run_of_one_s_own_is_known_and_of_another_is_asked_for(home, monkeypatch):
    with open_run("mine", {}) as run_id:
        stage = open_stage(run_id, "baseline")
        assert written(stage) == ()
        log_text(stage, "a", "a.txt")
        log_text(stage, "b", "folder/b.txt")
        assert written(stage) == artifacts(stage) == ("a.txt", "folder/b.txt")
        (home / "mlflow" / "artifacts" / "mine" / stage / "artifacts" / "planted.txt").write_text("by somebody else")
        assert written(stage) == ("a.txt", "folder/b.txt")
        assert "planted.txt" in artifacts(stage)
        monkeypatch.setenv("REDOUBT_WORKERS", "dask:")  # which write to stages as well
        shared = open_stage(run_id, "candidate")
        log_text(shared, "a", "a.txt")
        (home / "mlflow" / "artifacts" / "mine" / shared / "artifacts" / "theirs.txt").write_text("by a worker")
        assert written(shared) == ("a.txt", "theirs.txt")
        monkeypatch.delenv("REDOUBT_WORKERS")
    assert written(stage) == artifacts(stage)  # once it is over, all of it


def test_a_file_is_the_same_by_each_of_its_names(home):
    """By the logged model and by the registered version that serves it, in a folder too."""
    network = build("two-kinds-mlp", seed=1).eval()
    with open_run("mine", {}) as run_id:
        stage = open_stage(run_id, "baseline")
        stored = save_model(stage, "baseline", "two-kinds-mlp", network, torch.zeros(2, 201))
        number = register("adopted (v2)", stored, {})
    files = model_artifacts(stored.model_uri)
    assert "MLmodel" in files
    assert any("/" in path for path in files)
    for path, raw in files.items():
        for root in (stored.model_uri, f"models:/adopted (v2)/{number}"):
            assert load_bytes(f"{root}/{path}") == raw
