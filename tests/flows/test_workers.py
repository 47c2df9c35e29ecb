"""The same evaluation in one process, in several and on clusters: the same verdict and report, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from prefect import flow

from flows.recipes import two_kinds
from infra.services import free_port
from tasks.attacks import ThreatModel
from tasks.candidates import DROPPED, candidates, stages_of
from tasks.data import describe, load
from tasks.decide import decide
from tasks.errors import WrongInput
from tasks.evaluate import evaluate_robustness
from tasks.evidence import Chapter
from tasks.models import StoredModel
from tasks.track import children, open_run, run_tags
from tasks.train import release, train_model
from tasks.workers import task_runner

pytestmark = pytest.mark.timeout(900)
RECIPE = two_kinds()
LINF, L2 = ThreatModel(norm="linf", eps=0.1), ThreatModel(norm="l2", eps=0.3)
CONFIG = RECIPE.evaluation.model_copy(update={"threats": (LINF, L2), "suite": "quick"})
DATASET, NET = "crowd_of_workers:crowd", "crowd_of_workers:Net"  # three blocks of samples
DASK = [sys.executable, "-m", "dask"]
CROWD = """
import os
import signal

from torch import nn

from tasks.data import two_kinds_of_feature


def crowd(split):
    return two_kinds_of_feature(split, n=1030)


class Net(nn.Module):
    # kills the first worker that has asked it 150 times, where the test has put a file for it
    def __init__(self):
        super().__init__()
        self.layers, self.asked = nn.Sequential(nn.Linear(201, 32), nn.ReLU(), nn.Linear(32, 2)), 0

    def forward(self, x):
        armed = os.environ.get("REDOUBT_TEST_ARMED", "")
        if os.path.exists(armed) and str(os.getpid()) != os.environ["REDOUBT_TEST_DRIVER"]:
            self.asked += 1
            if self.asked == 150:
                os.remove(armed)  # by one only: the others raise, and are computed again
                os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x)
"""


@pytest.fixture(scope="module")
def home(_migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for this file, named in the environment, so that workers find it."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "mlflow").mkdir()
    shutil.copy(_migrated_store, folder / "mlflow" / "mlflow.db")
    (folder / "crowd_of_workers.py").write_text(CROWD)  # a dataset of the user's own, which they must find too
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDOUBT_HOME", str(folder))
        patch.syspath_prepend(folder)
        patch.setenv("REDOUBT_TEST_ARMED", str(folder / "armed"))
        patch.setenv("REDOUBT_TEST_DRIVER", str(os.getpid()))
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{Path(__file__).parents[2]}")
        yield folder


@pytest.fixture(scope="module")
def asked(prefect_server, home: Path) -> Iterator[Callable[..., object]]:
    """What evaluates one trained model anew with the workers that it is given: verdict and report without times."""
    data = describe(DATASET, load(DATASET))
    with open_run("workers", {"a": 1}) as run_id:
        model = train_model.fn(
            data, RECIPE.training.model_copy(update={"epochs": 2, "model": NET}), stage="baseline", run_id=run_id
        )

        def evaluated(workers: str = "") -> tuple[object, object]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("REDOUBT_WORKERS", workers)
                report = flow(name="sharded")(
                    lambda: evaluate_robustness(model, data, CONFIG, split="test", run_id=run_id, again=True)
                )()
            return decide.fn(model, report, RECIPE.policy), timeless(report.model_dump())

        yield evaluated


@pytest.fixture(scope="module")
def alone(asked) -> object:
    """What this process comes to by itself."""
    return asked()


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
    deadline = time.monotonic() + 240  # a Ray cluster takes half a minute on a quiet machine
    while True:
        try:
            task_runner(words)
            return words
        except WrongInput:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.nightly
@pytest.mark.server
def test_threads_that_take_turns_come_to_the_same_as_none(asked, alone, caplog):
    assert asked("threads:2") == alone
    assert "a worker failed" not in caplog.text


@pytest.mark.nightly
def test_four_processes_come_to_the_same_as_none(asked, alone, caplog):
    assert asked("4") == alone
    assert "a worker failed" not in caplog.text


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
    port, client, folder = free_port(), free_port(), tempfile.mkdtemp(prefix="rw-")  # its sockets' paths must be short
    head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    head += [f"--ray-client-server-port={client}", f"--num-cpus={workers}", "--include-dashboard=false"]
    try:
        with cluster([*head, "--disable-usage-stats", f"--temp-dir={folder}"]):
            words = patiently(f"ray=ray://127.0.0.1:{client}")
            probe = f"import ray; ray.init('ray://127.0.0.1:{client}')"  # Ray itself gives a client half a minute
            assert any(subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0 for _ in range(5))
            yield words
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.parametrize("started", [dask, ray])
def test_a_cluster_by_address_comes_to_the_same_as_none(asked, alone, caplog, started):
    with started() as words:
        assert asked(words) == alone
    assert "a worker failed" not in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("where", [lambda: nullcontext("2"), dask, ray], ids=["processes", "dask", "ray"])
def test_a_worker_that_is_killed_in_mid_run_changes_nothing(asked, alone, home, where):
    armed = home / "armed"
    with where() as words:
        armed.touch()
        assert asked(words) == alone
    assert not armed.exists()  # one was killed


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("floor", "counted", "where"),
    [(0.0, 1, lambda: nullcontext("2")), (0.999, 2, lambda: nullcontext("2")), (0.999, 2, dask), (0.999, 2, ray)],
    ids=["processes, one counts", "processes", "dask", "ray"],
)
def test_candidates_at_the_same_time_come_to_the_same_as_one_after_another(
    prefect_server, home, caplog, floor, counted, where
):
    data = describe("two-kinds", load("two-kinds"))
    hardening = RECIPE.hardening.model_copy(update={"epochs": 1})
    evaluation = CONFIG.model_copy(update={"threats": (LINF,), "samples": 300})
    policy = RECIPE.policy.model_copy(update={"floor": floor, "clean_floor": 0.0, "max_rounds": 2, "min_samples": 100})

    def hardened(words: str) -> tuple[list[object], dict[str, str]]:
        @flow(name="candidates")
        def made(run_id: str) -> list[tuple[StoredModel, Chapter]]:
            tried = []
            with candidates(data, hardening, evaluation, policy, run_id=run_id) as rounds:
                for model, chapter in rounds:
                    tried.append((model, chapter))
                    if chapter.verdict.outcome != "fail":
                        break
            return tried

        with pytest.MonkeyPatch.context() as patch, open_run("candidates", {"a": 1}) as run_id:
            patch.setenv("REDOUBT_WORKERS", words)
            found = made(run_id)
            release(data, stages_of(hardening, policy))  # or else the second would find what the first has trained
            stages = [run_tags(stage) for stage in children(run_id)]
            dropped = {tags["redoubt.stage"]: tags[DROPPED] for tags in stages if DROPPED in tags}
        reports = [c.report.model_copy(update={"recalled": ()}) for _, c in found]  # the second finds the first's cells
        told = [(m.digest, c.verdict, timeless(r.model_dump())) for (m, c), r in zip(found, reports, strict=True)]
        return told, dropped

    one, none = hardened("")
    with where() as words:
        same, dropped = hardened(words)
    assert "a worker failed" not in caplog.text
    assert len(one) == counted
    assert same == one
    assert none == {}
    assert set(dropped) == {f"hardened-{number}" for number in (1, 2)[counted:]}
