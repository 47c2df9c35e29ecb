"""An MLflow that goes away: what is written meanwhile is kept and delivered once, what is made is made once."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.services import Service, mlflow_server, running
from tasks.errors import StoreUnreachable, WrongInput
from tasks.track import (
    artifacts,
    client,
    load_bytes,
    log_bytes,
    log_dataset,
    log_dict,
    log_files,
    log_metrics,
    log_text,
    make_model,
    model_facts,
    open_run,
    patient,
    register,
    tag_model,
)
from tasks.track import store as store_module
from tasks.track.patience import patience, spool_of
from tests.faults.door import Door

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(_migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("patience")
    database = folder / "mlflow.db"
    database.write_bytes(_migrated_store.read_bytes())
    with running(mlflow_server(folder, backend=f"sqlite:///{database}", artifacts=str(folder / "artifacts"))) as made:
        yield made


@pytest.fixture
def door(server: Service, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    door = Door(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.url)
    monkeypatch.setenv("REDOUBT_PATIENCE", "20")
    monkeypatch.setattr(store_module, "_ANSWERED", {})
    yield door
    door.gone()


def later(action, seconds: float = 1.0) -> threading.Thread:
    thread = threading.Timer(seconds, action)
    thread.start()
    return thread


def test_what_is_logged_while_mlflow_is_away_is_kept_in_order_and_delivered_once(door, home, caplog):
    with open_run("away", {"a": 1}) as run_id:
        log_metrics(run_id, {"before": 1.0})
        door.close()
        log_metrics(run_id, {"during": float("nan"), "accuracy": 0.1 + 0.2})
        log_dict(run_id, {"b": [1, 2], "a": None}, "deep/er.json")
        log_text(run_id, "first", "text.txt")
        log_text(run_id, "second", "text.txt")
        log_bytes(run_id, b"\x00\xff", "bytes/raw.bin")
        spool = spool_of(door.url)
        assert len(spool) == 5
        assert spool.runs() == {run_id}
        assert "is kept in" in caplog.text
        door.open()
        assert "text.txt" in artifacts(run_id)  # whoever asks is told what was written
        assert len(spool) == 0
        log_metrics(run_id, {"after": 3.0})
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == 0.1 + 0.2
    assert {key: len(client().get_metric_history(run_id, key)) for key in run.data.metrics} == dict.fromkeys(
        ("before", "during", "accuracy", "after"), 1
    )
    assert load_bytes(f"runs:/{run_id}/text.txt") == b"second"
    assert load_bytes(f"runs:/{run_id}/deep/er.json") == json.dumps({"b": [1, 2], "a": None}, indent=2).encode()
    assert load_bytes(f"runs:/{run_id}/bytes/raw.bin") == b"\x00\xff"


def test_a_call_whose_answer_was_lost_is_not_made_twice(door):
    with open_run("lost", {}) as run_id:
        experiment = client().get_run(run_id).info.experiment_id
        door.deaf = True
        later(door.open)
        log_metrics(run_id, {"accuracy": 0.5})
        second = client().create_run(experiment, run_name="second").info.run_id
    assert len(client().get_metric_history(run_id, "accuracy")) == 1
    runs = client().search_runs([experiment])
    assert {run.info.run_id for run in runs} == {run_id, second}
    assert len(runs) == 2


def test_that_it_waits_is_said_once(door, caplog):
    with open_run("waits", {}) as run_id:
        door.close()
        later(door.open)
        assert client().get_run(run_id).info.run_id == run_id
    waits = [one for one in caplog.messages if "It is waited for, at most 20 seconds (REDOUBT_PATIENCE)" in one]
    assert len(waits) == 1
    assert waits[0].startswith(f"MLflow at {door.url} does not answer")


def test_what_is_written_at_the_same_time_is_kept_once_and_told_of_once(door, caplog):
    make_model("abreast")
    files, tags = {f"{i}.txt": f"file {i}".encode() for i in range(12)}, {f"tag {i}": str(i) for i in range(12)}
    with open_run("abreast", {}) as run_id:
        door.close()
        log_files(run_id, files)
        assert len(spool_of(door.url)) == len(files)
        later(door.open)
        tag_model("abreast", tags)
        assert len(spool_of(door.url)) == 0
    assert model_facts("abreast")[1] == tags
    assert {path: load_bytes(f"runs:/{run_id}/{path}") for path in files} == files
    for told, often in (("is kept in", 1), ("It is waited for", 0), ("answers again: 12 delivered", 1)):
        assert sum(told in message for message in caplog.messages) == often, told


def test_ctrl_c_does_not_wait_for_those_that_wait(door, monkeypatch):
    monkeypatch.setenv("REDOUBT_PATIENCE", "120")
    make_model("stopped")
    door.close()
    handled = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    later(partial(os.kill, os.getpid(), signal.SIGINT))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tag_model("stopped", {f"tag {i}": str(i) for i in range(9)})
    signal.signal(signal.SIGINT, handled)
    assert time.monotonic() - started < 60
    door.open()
    tag_model("stopped", {"after": "all"})
    assert model_facts("stopped")[1]["after"] == "all"


def test_a_version_is_registered_once_though_the_answer_was_lost(door):
    with open_run("versions", {}) as run_id:
        made = client().create_registered_model
        assert made("lost").name == "lost"
        door.deaf = True
        later(door.open)
        number = client().create_model_version("lost", source=f"runs:/{run_id}/model", run_id=run_id, tags={"a": "b"})
        assert int(number.version) == 1
        assert len(client().search_model_versions("name = 'lost'")) == 1
        again = client().create_model_version("lost", source=f"runs:/{run_id}/model", run_id=run_id)
        assert int(again.version) == 2  # whoever asks twice gets two
    assert made("lost").name == "lost"  # as where two processes make it at once


def test_past_the_patience_the_message_says_where_the_writes_are_and_deliver_brings_them(door, home, monkeypatch):
    monkeypatch.setenv("REDOUBT_PATIENCE", "1")
    seen = []

    def broken():
        with open_run("gone", {}) as run_id:
            seen.append(run_id)
            door.close()
            log_metrics(run_id, {"accuracy": 0.25})
            client().get_run(run_id)

    with pytest.raises(StoreUnreachable, match=r"has not answered for 1 seconds.*1 writes are kept.*redoubt deliver"):
        broken()
    spool = spool_of(door.url)
    assert len(spool) == 2  # the metric, and how the run ended
    assert home in spool.folder.parents
    door.open()
    done = patient().deliver()
    assert (done.sent, len(spool)) == (2, 0)
    run = client().get_run(seen[0])
    assert (run.info.status, run.data.metrics["accuracy"]) == ("FAILED", 0.25)
    assert patient().deliver().sent == 0


def test_a_write_that_the_server_refuses_is_no_silence(door):
    from mlflow.exceptions import MlflowException

    with open_run("refused", {}):
        with pytest.raises(MlflowException, match="not found"):
            log_metrics("0" * 32, {"accuracy": 0.5})
        assert len(spool_of(door.url)) == 0


def test_what_was_kept_and_is_refused_later_is_set_aside_with_the_answer(door):
    spool = spool_of(door.url)
    client()
    with open_run("aside", {}) as run_id:
        spool.append("0" * 32, "log_text", ("0" * 32, "text", "a.txt"), {})
        spool.append(run_id, "log_text", (run_id, "text", "a.txt"), {})
        done = patient().deliver()
        assert (done.sent, list(done.refused)) == (1, ["0" * 32])
        (aside,) = (spool.folder / "refused").iterdir()
        assert "not found" in (aside / "answer.txt").read_text()
        assert load_bytes(f"runs:/{run_id}/a.txt") == b"text"


WRITER = """
import sys
from tasks.track.spool import Spool
from pathlib import Path
spool = Spool(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    spool.append(sys.argv[2], "log_text", (sys.argv[2], str(i), "n.txt"), {})
    print(i, flush=True)
"""


def _writer(folder: Path, run: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(folder), run, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_writers_at_once_lose_nothing_and_each_keeps_its_order_though_one_is_killed(tmp_path):
    from tasks.track.spool import Spool

    writers = [_writer(tmp_path / "spool", run, 60) for run in ("a", "b")]
    victim = _writer(tmp_path / "spool", "c", 100_000)
    assert victim.stdout is not None
    said = [victim.stdout.readline() for _ in range(20)]
    victim.send_signal(signal.SIGKILL)
    said += victim.communicate()[0].splitlines()
    for writer in writers:
        writer.communicate()
    spool, seen = Spool(tmp_path / "spool"), {"a": [], "b": [], "c": []}
    spool.deliver(lambda name, args, kwargs: seen[args[0]].append(int(args[1])), silent=lambda error: False)
    assert seen["a"] == seen["b"] == list(range(60))
    assert seen["c"][: len(said)] == list(range(len(said)))  # what it knew to be kept is kept
    assert len(seen["c"]) <= len(said) + 1
    assert len(spool) == 0


def test_a_failed_call_keeps_the_later_ones_of_its_run_waiting_and_no_others(tmp_path):
    from tasks.track.spool import Spool

    spool = Spool(tmp_path)
    for run, word in (("a", "1"), ("b", "2"), ("a", "3")):
        spool.append(run, "log_text", (run, word, "n.txt"), {})
    seen = []

    def perform(name, args, kwargs):
        if args[0] == "a":
            raise ConnectionError
        seen.append(args[1])

    done = spool.deliver(perform, silent=lambda error: isinstance(error, ConnectionError))
    assert (done.sent, done.kept, seen) == (1, {"a"}, ["2"])
    assert len(spool) == 2


def test_a_patience_that_is_no_number_is_wrong_input(monkeypatch):
    for words in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("REDOUBT_PATIENCE", words)
        with pytest.raises(WrongInput, match="write a number of seconds"):
            patience()


def test_a_locked_database_is_waited_for(home, monkeypatch):
    """MLflow itself gives up after twenty seconds; here its wait is cut to nothing, so that ours is what helps."""
    with open_run("locked", {}) as run_id:
        client().get_run(run_id)
        holder = sqlite3.connect(home / "mlflow" / "mlflow.db", check_same_thread=False, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        later(lambda: holder.execute("ROLLBACK"), 1.5)
        engine = client()._tracking_client.store.engine
        from sqlalchemy import event

        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout = 0"))
        started = time.monotonic()
        log_metrics(run_id, {"accuracy": 0.5})
        assert time.monotonic() - started > 1
        holder.close()
    assert client().get_run(run_id).data.metrics["accuracy"] == 0.5


def test_register_finds_a_model_that_another_process_made_at_the_same_moment(door, monkeypatch):
    from tasks.models import StoredModel

    with open_run("race", {}) as run_id:
        experiment = client().get_run(run_id).info.experiment_id
        made = client().create_logged_model(experiment, name="model", source_run_id=run_id)
        uri = f"models:/{made.model_id}"
        words = {"stage": "s", "model": "m", "weights": "w", "digest": "0" * 16, "model_uri": uri}
        client().create_registered_model("race")
        real = patient()._client.search_registered_models
        answers = iter([[]])  # what it asked before the other made it
        monkeypatch.setattr(
            patient()._client, "search_registered_models", lambda *a, **k: next(answers, None) or real(*a, **k)
        )
        assert register("race", StoredModel(run_id=run_id, **words), {}) == 1


def test_a_dataset_that_another_run_notes_at_the_same_moment_is_noted_by_both(home):
    """MLflow looks whether its row is there and then makes it; here another process makes it in between."""
    from sqlalchemy import event

    data = SimpleNamespace(name="two-kinds", digest="0" * 16, shape=(201,), classes=2, sizes={"test": 1})
    others = []

    def first(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("INSERT INTO datasets") and not others:
            others.append(parameters)
            with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as other, other:
                other.execute(statement, ("another", *parameters[1:]))

    with open_run("at-once", {}) as run_id:
        event.listen(client()._tracking_client.store.engine, "before_cursor_execute", first)
        log_dataset(run_id, data)
    assert len(others) == 1
    (noted,) = client().get_run(run_id).inputs.dataset_inputs
    assert (noted.dataset.name, noted.dataset.digest) == (data.name, data.digest)
