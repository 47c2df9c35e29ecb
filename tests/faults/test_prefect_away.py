"""Prefect's server is restarted in mid-run, and a worker's flow process is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.services import Service, prefect_server, running
from tests.faults.harness import (
    ROOT,
    SMALL,
    assert_verifies,
    content,
    database,
    environment,
    open_runs,
    redoubt,
    started,
    verdicts,
)

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]
DEPLOY = """
import sys
from flows.pipeline import posture_pipeline
from prefect.deployments import run_deployment
from flows.recipes import configured
changes = [word for word in sys.argv[2:] if "=" in word]
config = configured("two-kinds", tuple(changes)).model_dump(mode="json")
flow = posture_pipeline.from_source(source=sys.argv[1], entrypoint="flows/pipeline.py:posture_pipeline")
flow.deploy("fault", work_pool_name="faults", parameters={"config": config}, print_next_steps=False)
print("RUN", run_deployment("redoubt/fault", timeout=0).id, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "prefect"
    folder.mkdir()
    with running(prefect_server(folder)) as service:
        yield service


def test_restarted_in_mid_run_the_verdict_is_right_or_the_failure_honest(fresh, server, undisturbed):
    api = {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_HOME": str(fresh) + "-prefect"}
    with started(fresh, *SMALL, **api) as run:
        run.until("train/baseline")
        server.stop(signal.SIGKILL)
        time.sleep(5)
        server.start()
        code = run.finish()
    assert code in (undisturbed.code, 4), run.lines
    if code == undisturbed.code:
        found = content(database(fresh))
        for what in undisturbed.content:
            assert found[what] == undisturbed.content[what], what
    assert open_runs(database(fresh)) == 0
    again = redoubt(fresh, *SMALL, **api)
    assert again.returncode == undisturbed.code, again.stderr
    assert_verifies(fresh)


def prefect(env: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def state(env: dict[str, str], run: str) -> str:
    import json

    told = prefect(env, "flow-run", "inspect", run, "--output", "json")
    return str(json.loads(told)["state"]["type"])


def wait_for(env: dict[str, str], run: str, *wanted: str, seconds: float = 900) -> str:
    deadline = time.monotonic() + seconds
    while (now := state(env, run)) not in wanted:
        assert time.monotonic() < deadline, now
        time.sleep(2)
    return now


def until_said(log: Path, words: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *children(child)]
    return found


def test_a_flow_process_that_is_killed_is_crashed_and_a_retry_comes_to_the_verdict(
    fresh, server, undisturbed, tmp_path
):
    env = environment(
        fresh, PREFECT_API_URL=f"{server.url}/api", PREFECT_HOME=str(tmp_path / "client"), DO_NOT_TRACK="true"
    )
    prefect(env, "work-pool", "create", "faults", "--type", "process")
    asked = subprocess.run(
        [sys.executable, "-c", DEPLOY, str(ROOT), *SMALL],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    run = asked.stdout.split("RUN")[1].split()[0]
    words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "faults", "--type", "process"]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while not list((fresh / "cells").glob("*.safetensors")):
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
            time.sleep(0.1)
        for pid in children(worker.pid):
            os.kill(pid, signal.SIGKILL)
        # the flow's own runner reports it first, the worker seconds later: between the two it would undo a retry
        until_said(tmp_path / "worker.log", "prefect.flow_runs.worker - Check whether")
        wait_for(env, run, "CRASHED")
        prefect(env, "flow-run", "retry", run)
        assert wait_for(env, run, "COMPLETED", "FAILED", "CRASHED") == "COMPLETED"
    finally:
        os.killpg(worker.pid, signal.SIGKILL)  # on SIGTERM Prefect's own worker may wait for minutes
        worker.wait(60)
    assert verdicts(fresh)[-1][1] == undisturbed.said["verdict"]
    assert open_runs(database(fresh)) == 0
    assert_verifies(fresh)
