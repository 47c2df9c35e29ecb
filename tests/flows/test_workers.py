"""The same evaluation in one process, in several and on clusters: the same verdict and report, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from prefect import flow

from flows.recipes import two_kinds
from infra.services import free_port
from tasks.attacks import ThreatModel
from tasks.data import describe, load
from tasks.decide import decide
from tasks.errors import WrongInput
from tasks.evaluate import evaluate_robustness
from tasks.track import open_run
from tasks.train import train_model
from tasks.workers import task_runner

RECIPE = two_kinds()
LINF, L2 = ThreatModel(norm="linf", eps=0.1), ThreatModel(norm="l2", eps=0.3)
CONFIG = RECIPE.evaluation.model_copy(update={"threats": (LINF, L2), "suite": "quick"})
DASK = [sys.executable, "-m", "dask"]
CROWD = """
from tasks.data import two_kinds_of_feature

def crowd(split):
    return two_kinds_of_feature(split, n=1100)
"""


@pytest.fixture
def crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of the user's own, of three blocks, that workers must find too."""
    (tmp_path / "crowd_of_workers.py").write_text(CROWD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    yield "crowd_of_workers:crowd"
    sys.modules.pop("crowd_of_workers", None)


@pytest.fixture
def asked(crowd: str, home: Path):
    """What evaluates one trained model anew with the workers that it is given: verdict and report without times."""
    data = describe(crowd, load(crowd))
    with open_run("workers", {"a": 1}) as run_id:
        model = train_model.fn(data, RECIPE.training.model_copy(update={"epochs": 2}), stage="baseline", run_id=run_id)

        def evaluated(workers: str = "") -> tuple[object, object]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("REDOUBT_WORKERS", workers)
                patch.setenv("REDOUBT_HOME", str(home))
                report = flow(name="sharded")(
                    lambda: evaluate_robustness(model, data, CONFIG, split="test", run_id=run_id, again=True)
                )()
            return decide.fn(model, report, RECIPE.policy), timeless(report.model_dump())

        yield evaluated


def timeless(value):
    """A report without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "measured_at")}
    return [timeless(v) for v in value] if isinstance(value, list | tuple) else value


@contextmanager
def cluster(*commands: list[str]) -> Iterator[None]:
    """The processes of a cluster, ended afterwards with all that they have started."""
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for command in commands
    ]
    try:
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def patiently(words: str) -> str:
    """The words, once the cluster that they name answers."""
    deadline = time.monotonic() + 90
    while True:
        try:
            task_runner(words)
            return words
        except WrongInput:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.server
def test_threads_that_take_turns_come_to_the_same_as_none(prefect_server, asked, caplog):
    assert asked("threads:2") == asked()
    assert "a worker failed" not in caplog.text


@pytest.mark.nightly
def test_four_processes_come_to_the_same_as_none(prefect_server, asked, caplog):
    assert asked("4") == asked()
    assert "worker" not in caplog.text


@contextmanager
def dask(workers: int = 2) -> Iterator[str]:
    """A Dask cluster of processes of its own, as an existing one is named."""
    port = free_port()
    scheduler = [*DASK, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [*DASK, "worker", f"tcp://127.0.0.1:{port}", "--nworkers", str(workers), "--nthreads", "1"]
    with cluster(scheduler, [*worker, "--no-dashboard"]):
        yield patiently(f"dask=tcp://127.0.0.1:{port}")


@contextmanager
def ray(workers: int = 2) -> Iterator[str]:
    """A Ray cluster of processes of its own, as an existing one is named."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="rw-")  # its sockets' paths must be short
    head = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    head += [f"--num-cpus={workers}", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    head[0] = str(Path(sys.executable).with_name("ray"))
    try:
        with cluster(head):
            yield patiently(f"ray=127.0.0.1:{port}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.parametrize("started", [dask, ray])
def test_a_cluster_by_address_comes_to_the_same_as_none(prefect_server, asked, caplog, started):
    with started() as words:
        assert asked(words) == asked()
    assert "worker" not in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("words", ["2", "dask"])
def test_a_worker_that_is_killed_in_mid_run_changes_nothing(prefect_server, asked, words, tmp_path):
    mark, killed = tmp_path / "killed", []

    def kill_one() -> None:
        while not mark.exists() and not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "spawn_main" in " ".join(process.cmdline()) and process.cpu_times().user > 8:
                        process.kill()
                        killed.append(process.pid)
                        break
            time.sleep(0.05)

    hunter = threading.Thread(target=kill_one)
    if words == "2":
        hunter.start()
        found = asked("2")
    else:
        with dask() as address:
            hunter.start()
            found = asked(address)
    mark.touch()
    hunter.join()
    assert killed
    assert found == asked()
