"""A real MLflow server, named by the environment alone."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from mlflow.exceptions import MlflowException

from tasks.errors import StoreUnreachable
from tasks.track import (
    artifacts,
    client,
    load_bytes,
    log_dict,
    log_files,
    log_metrics,
    make_model,
    model_facts,
    open_run,
    tag_model,
)


@pytest.fixture
def server(home, tmp_path, monkeypatch) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreUnreachable, match="no MLflow server answers"):
        client()
    store = f"sqlite:///{home}/mlflow/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        assert process.poll() is None
        try:
            client()
            break
        except StoreUnreachable:
            time.sleep(0.2)
    yield uri
    process.terminate()
    process.wait(30)


def test_runs_and_artifacts_go_to_the_server_and_nothing_to_standard_output(server, tmp_path, capsys):
    with open_run("remote", {"a": 1}) as run_id:
        log_metrics(run_id, {"clean_accuracy": 0.5})
        log_dict(run_id, {"b": 2}, "deep/er.json")
    assert client().get_run(run_id).data.metrics["clean_accuracy"] == 0.5
    assert client().get_run(run_id).info.status == "FINISHED"
    assert b'"b": 2' in load_bytes(f"runs:/{run_id}/deep/er.json")
    assert list((tmp_path / "artifacts").rglob("er.json"))
    assert capsys.readouterr().out == ""

    files = {f"many/{i}.txt": f"file {i}".encode() for i in range(9)}
    log_files(run_id, files)  # several at the same time
    assert artifacts(run_id, "many") == tuple(files)
    assert {path: load_bytes(f"runs:/{run_id}/{path}") for path in files} == files
    make_model("remote")
    tags = {f"tag {i}": str(i) for i in range(9)}
    tag_model("remote", tags)
    assert model_facts("remote") == ({}, tags)
    assert model_facts("nowhere") == ({}, {})
    with pytest.raises(MlflowException, match=r"too long|exceeds"):
        tag_model("remote", {"fits": "1", "t" * 300: "does not", "fits too": "1"})
