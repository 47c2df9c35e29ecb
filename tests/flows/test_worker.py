"""The warm worker on a real Prefect server: what it runs, what a run leaves to the next, and what survives a crash."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import anyio
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

from flows.config import EvaluateConfig
from flows.warm.mother import fingerprint
from flows.worker import WarmWorker, why_cold, work
from infra.services import Service, prefect_server, running
from tasks.errors import StoreUnreachable, WrongInput
from tasks.track import client

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0
PROBE = """
import itertools, json, os, sys, time
from pathlib import Path

import torch
from prefect import flow, get_run_logger


@flow(name="probe")
def probe(said: str, hold: bool = False, hang: bool = False) -> None:
    found = {
        "pid": os.getpid(),
        "said": said,
        "loaded": "great_expectations" in sys.modules and "mlflow" in sys.modules,
        "leaked": [os.environ.get("LEAK"), hasattr(torch, "LEAK")],
        "given": os.environ.get("REDOUBT_GIVEN"),
        "cwd": os.getcwd(),
    }
    os.environ["LEAK"], torch.LEAK = "here", True
    os.chdir("/")
    get_run_logger().info("probed")
    Path(said).write_text(json.dumps(found))
    while hold and not Path(said + ".on").exists():
        time.sleep(0.05)
    if hang:  # in C code: no signal is handled, no other thread runs
        sum(itertools.repeat(0))
"""
PARTS = """
import torch


def net():
    with torch.no_grad():
        net = torch.nn.Linear(201, 2)
        net.weight.fill_({value})
    return net
"""


def eventually(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return answer


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Stand:
    """A server, a copy of Redoubt's code that tests may change, and a worker that runs it."""

    def __init__(self, folder: Path, server: Service, api: SyncPrefectClient, env: dict[str, str]) -> None:
        self.folder, self.server, self.api, self.env = folder, server, api, env
        self.code = folder / "code"
        self.deployed: dict[str, UUID] = {}

    def deploy(self, name: str, entrypoint: str, source: Path) -> None:
        made = RunnerDeployment.from_entrypoint(
            f"{source}/{entrypoint}", name=name, work_pool_name="redoubt", enforce_parameter_schema=False
        )
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(source)}}
        flow_id = self.api.create_flow_from_name(made.flow_name)
        self.deployed[name] = self.api.create_deployment(
            flow_id=flow_id, name=name, entrypoint=entrypoint, pull_steps=[step], work_pool_name="redoubt"
        )

    def queue(self, name: str, env: dict[str, str] | None = None, **parameters: Any) -> UUID:
        return self.api.create_flow_run_from_deployment(
            self.deployed[name], parameters=parameters, job_variables={"env": env} if env else None
        ).id

    def ended(self, run: UUID) -> str:
        return eventually(
            lambda: (s := self.api.read_flow_run(run).state) and s.is_final() and s.name, f"{run} runs on"
        )

    def probed(self, **more: Any) -> tuple[UUID, dict[str, Any]]:
        said = self.folder / f"said-{time.monotonic_ns()}"
        run = self.queue("probe", said=str(said), **more)
        text = eventually(lambda: said.exists() and said.read_text(), "the probe never ran")
        return run, json.loads(text)

    def evaluate(self, samples: int = 40) -> UUID:
        config = EvaluateConfig.model_validate(
            {
                "name": "parts",
                "model": "parts:net",
                "dataset": "two-kinds",
                "evaluation": {"threats": [{"norm": "linf", "eps": 0.1}], "samples": samples, "suite": "quick"},
            }
        )
        return self.queue("evaluate", config=config.model_dump(mode="json"))

    def runs(self) -> list[Any]:
        """What MLflow holds of the model, newest first: the runs of evaluations."""
        found = client().get_experiment_by_name("parts")
        return [r for r in client().search_runs([found.experiment_id]) if "mlflow.parentRunId" not in r.data.tags]


@pytest.fixture(scope="module")
def stand(_migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(_migrated_store, folder / "home" / "mlflow" / "mlflow.db")
    for top in ("flows", "tasks"):
        shutil.copytree(ROOT / top, folder / "code" / top, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "code" / "parts.py").write_text(PARTS.format(value=0.1))
    (folder / "probes").mkdir()
    (folder / "probes" / "probe.py").write_text(PROBE)
    with running(prefect_server(folder)) as server:
        url = f"{server.url}/api"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        env = kept | {"PREFECT_API_URL": url, "REDOUBT_HOME": str(folder / "home"), "PYTHONPATH": str(folder / "code")}
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as api:
            template = WarmWorker.get_default_base_job_template()
            api.create_work_pool(WorkPoolCreate(name="redoubt", type="process", base_job_template=template))
            stand = Stand(folder, server, api, env)
            stand.deploy("probe", "probe.py:probe", folder / "probes")
            stand.deploy("evaluate", "flows/evaluate.py:evaluate_model", folder / "code")
            yield stand


@pytest.fixture(scope="module")
def worker(stand: Stand) -> Iterator[subprocess.Popen]:
    process = start(stand)
    yield process
    process.terminate()
    process.wait(60)


def start(stand: Stand) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flows", "worker", "--limit", "2"]
    return subprocess.Popen(command, cwd=stand.code, env=stand.env, start_new_session=True)


@pytest.fixture
def home(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDOUBT_HOME", str(stand.folder / "home"))


@pytest.mark.nightly
def test_three_evaluations_queued_at_once_end_with_a_verdict_each(stand, worker, home):
    queued = [stand.evaluate(samples) for samples in (40, 41, 42)]
    ends = [stand.ended(run) for run in queued]
    assert ends == ["Completed"] * 3, [stand.api.read_flow_run(run).state.message for run in queued]
    runs = stand.runs()
    assert len(runs) == 3
    assert {run.data.tags["redoubt.verdict"] for run in runs} <= {"pass", "fail", "cannot tell"}
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.nightly
def test_a_run_finds_everything_loaded_and_nothing_of_the_run_before(stand, worker):
    first, found = stand.probed()
    assert stand.ended(first) == "Completed"
    second, again = stand.probed()
    assert found["loaded"]
    assert again == found | {"pid": again["pid"], "said": again["said"]}
    assert again["pid"] != found["pid"]
    assert again["leaked"] == [None, False]
    assert again["cwd"] == str(stand.folder / "probes")
    logs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[second]))
    eventually(lambda: any(log.message == "probed" for log in stand.api.read_logs(logs)), "its log never arrived")


@pytest.mark.nightly
def test_the_environment_of_a_run_is_its_own(stand, worker):
    _, found = stand.probed(env={"REDOUBT_GIVEN": "yes"})
    assert (found["given"], found["loaded"]) == ("yes", True)
    assert stand.probed()[1]["given"] is None
    _, cold = stand.probed(env={"OMP_NUM_THREADS": "7"})  # is read when torch is loaded
    assert not cold["loaded"]


@pytest.mark.nightly
def test_a_killed_run_is_crashed_and_the_worker_goes_on(stand, worker):
    run, found = stand.probed(hold=True)
    os.kill(found["pid"], signal.SIGKILL)
    assert stand.ended(run) == "Crashed"
    assert stand.ended(stand.probed()[0]) == "Completed"
    assert worker.poll() is None


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["hold", "hang"])
def test_a_cancelled_run_ends_its_process_though_it_hangs_for_good(stand, worker, how):
    run, found = stand.probed(**{how: True})
    stand.api.set_flow_run_state(run, Cancelling())
    assert stand.ended(run) == "Cancelled"
    eventually(lambda: not alive(found["pid"]), "the process of a cancelled run lives on")
    assert stand.ended(stand.probed()[0]) == "Completed"


@pytest.mark.nightly
def test_code_that_changes_is_what_the_next_run_runs(stand, worker, home):
    assert stand.ended(stand.evaluate()) == "Completed"
    before = client().get_run(stand.runs()[0].info.run_id)
    assert "changed" not in before.data.tags
    (stand.code / "parts.py").write_text(PARTS.format(value=0.2))  # the user's
    place = stand.code / "tasks" / "publish.py"  # ours
    place.write_text(place.read_text().replace('{"redoubt.verdict":', '{"changed": "yes", "redoubt.verdict":'))
    assert stand.ended(stand.evaluate()) == "Completed"
    after = stand.runs()[0]
    assert after.data.tags["changed"] == "yes"
    told = [json.loads(client().list_artifacts(run.info.run_id) and story(run)) for run in (before, after)]
    first, second = (one["chapters"][0]["report"]["weights_digest"] for one in told)
    assert first != second


def story(run: Any) -> str:
    return (Path(run.info.artifact_uri.removeprefix("file://")) / "story.json").read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_leaves_no_process(stand, worker, how):
    worker.terminate()
    worker.wait(60)
    other = start(stand)
    run, found = stand.probed(hold=True)
    mother = int(Path(f"/proc/{found['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    other.send_signal(how)
    assert other.wait(60) == 0
    assert not alive(found["pid"])
    assert not alive(mother)
    assert stand.ended(run) == "Crashed"


def go_on(found: dict[str, Any]) -> None:
    """Let a probe that holds end."""
    Path(found["said"] + ".on").touch()


@pytest.mark.nightly
def test_a_worker_that_is_killed_takes_no_run_with_it_and_the_next_one_goes_on(stand, worker):
    worker.terminate()
    worker.wait(60)
    other = start(stand)
    run, found = stand.probed(hold=True)
    mother = int(Path(f"/proc/{found['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    other.kill()
    other.wait(60)
    go_on(found)
    assert stand.ended(run) == "Completed"
    eventually(lambda: not alive(mother), "what runs were forked from outlives its worker")
    waiting = stand.queue("probe", said=str(stand.folder / "after"))
    last = start(stand)
    assert stand.ended(waiting) == "Completed"
    last.terminate()
    assert last.wait(60) == 0


@pytest.mark.nightly
def test_prefect_s_server_killed_and_started_again_under_a_worker_costs_no_run(stand, worker):
    worker.terminate()
    worker.wait(60)
    other = start(stand)
    run, found = stand.probed(hold=True)
    stand.server.stop(signal.SIGKILL)
    time.sleep(5)
    stand.server.start()
    go_on(found)
    assert stand.ended(run) == "Completed"
    assert stand.ended(stand.probed()[0]) == "Completed"
    assert other.poll() is None
    other.terminate()
    assert other.wait(60) == 0


def test_a_worker_without_a_server_says_what_to_write(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(WrongInput, match="PREFECT_API_URL=http"):
        work()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(WrongInput, match="--limit 0 would never"):
        work(limit=0)
    with pytest.raises(StoreUnreachable, match="no Prefect server answers at http://127"):
        work()


def test_a_worker_that_can_start_nothing_asks_for_no_work_but_now_and_then(monkeypatch):
    asked, now = [], [0.0]

    async def told(self):
        asked.append(now[0])
        return []

    monkeypatch.setattr(ProcessWorker, "_get_scheduled_flow_runs", told)
    monkeypatch.setattr("flows.worker.time", SimpleNamespace(monotonic=lambda: now[0]))
    worker = WarmWorker(work_pool_name="redoubt", limit=1)
    worker._limiter = anyio.CapacityLimiter(1)

    async def each_second(until: int) -> None:
        while now[0] < until:
            await worker._get_scheduled_flow_runs()
            now[0] += 1

    async def whole() -> None:
        await each_second(3)
        worker._limiter.acquire_on_behalf_of_nowait("a run")
        await each_second(70)
        worker._limiter.release_on_behalf_of("a run")
        await each_second(73)

    anyio.run(whole)
    assert asked == [0, 1, 2, 32, 62, 70, 71, 72]


def configured(env: dict[str, str], steps: list[dict[str, Any]] | None = None, path: str | None = None) -> Any:
    deployment = SimpleNamespace(pull_steps=steps, path=path)
    return SimpleNamespace(env=env, working_dir=None, _related_objects={"deployment": deployment})


def test_a_fork_is_refused_where_a_new_process_would_find_something_else(tmp_path):
    loaded = {"OMP_NUM_THREADS": "1"}
    folder = "prefect.deployments.steps.set_working_directory"
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    assert why_cold(loaded, configured(loaded | {"PREFECT__FLOW_RUN_ID": "x", "REDOUBT_HOME": "/else"})) == ""
    assert why_cold(loaded, configured(loaded, [{folder: {"directory": str(ROOT)}}])) == ""
    assert "OMP_NUM_THREADS" in why_cold(loaded, configured({"OMP_NUM_THREADS": "2"}))
    assert "git_clone" in why_cold(loaded, configured(loaded, [{"prefect.deployments.steps.git_clone": {}}]))
    assert str(tmp_path) in why_cold(loaded, configured(loaded, [{folder: {"directory": str(tmp_path)}}]))
    assert str(tmp_path) in why_cold(loaded, configured(loaded, path=str(tmp_path)))


def test_the_fingerprint_of_the_code_tells_a_change(tmp_path, monkeypatch):
    for top in ("flows", "tasks"):
        (tmp_path / top).mkdir()
    (tmp_path / "tasks" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr("flows.warm.mother.ROOT", tmp_path)
    seen = [fingerprint(), fingerprint()]
    (tmp_path / "tasks" / "a.py").write_text("a = 22\n")
    seen.append(fingerprint())
    (tmp_path / "flows" / "b.py").write_text("")
    seen.append(fingerprint())
    assert len(set(seen)) == 3
    assert seen[0] == seen[1]


def test_a_launcher_without_a_mother_becomes_the_process_that_prefect_starts(tmp_path):
    launch = ROOT / "flows" / "warm" / "launch.py"
    env = os.environ | {"PREFECT__FLOW_RUN_ID": "no uuid"}
    command = [sys.executable, "-I", "-S", str(launch), str(tmp_path / "nobody")]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 1
    assert "Invalid flow run id" in ran.stderr + ran.stdout
