"""`redoubt serve` as a user starts it: a weak model is registered, and then nobody does anything any more."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.services import free_port
from tasks.recall import known_of
from tasks.track import aliases, registered
from tests.flows.registering import register_weak
from tests.flows.webhook import listening
from tests.flows.webhook import until as wait_until

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
NAME = "hands off (v1)"
SMALL = ("evaluation.samples=150", "policy.floor=0.7")
PATIENCE = 900.0


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a webhook, and what was posted to it so far."""
    with listening() as (url, heard):
        yield f"{url}/a-secret-path", heard


@pytest.fixture
def environment(home: Path, receiver) -> dict[str, str]:
    """What a user's shell has, and nothing of the tests' own Prefect."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return kept | {
        "REDOUBT_HOME": str(home),
        "REDOUBT_WEBHOOK_URL": receiver[0],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def served(home: Path, environment) -> Iterator[str]:
    """The URL of Prefect's API of a `redoubt serve` that works."""
    port, log = free_port(), home / "redoubt-serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--watch-every", "20", "--limit", "2", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: "Working." in log.read_text() or process.poll() is not None, "serve works")
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/api"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text()
        assert log.read_text().endswith("Ended.\n")
        assert "a-secret-path" not in log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


COMMAND = [sys.executable, "-m", "flows"]


def until(holds: Callable[[], Any], what: str) -> Any:
    return wait_until(holds, what, PATIENCE)


def asked(url: str, path: str) -> list[dict[str, Any]]:
    """What the server answers to a filter that lets all through."""
    import httpx

    answer = httpx.post(f"{url}{path}", json={"limit": 200}, timeout=60)
    answer.raise_for_status()
    return list(answer.json())


def counted(url: str) -> dict[str, list[str]]:
    """The ids of everything that a deploy makes; of automations the names: a deployment's triggers are made anew."""
    made = {path: asked(url, f"/{path}/filter") for path in ("deployments", "automations", "work_pools")}
    schedules = sorted(s["id"] for found in made["deployments"] for s in found["schedules"])
    ids = {path: sorted(one["id"] for one in made[path]) for path in ("deployments", "work_pools")}
    return ids | {"schedules": schedules, "automations": sorted(one["name"] for one in made["automations"])}


def runs_of(url: str, flow_name: str) -> list[dict[str, Any]]:
    """The runs of a flow that came to their end; one that is cancelled because another runs is none."""
    import httpx

    query = {"flows": {"name": {"any_": [flow_name]}}, "limit": 200}
    found = httpx.post(f"{url}/flow_runs/filter", json=query, timeout=60).json()
    return [run for run in found if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]


def call(environment: dict[str, str], *words: str, **more: str) -> str:
    """What a command says; it must end well."""
    ran = subprocess.run(
        [*COMMAND, *words], cwd=ROOT, env=environment | more, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_a_weak_model_is_found_attacked_failed_hardened_attacked_again_and_promoted(served, environment, receiver):
    heard = receiver[1]
    changes = [word for change in SMALL for word in ("--set", change)]
    call(environment, "adopt", NAME, "--like", "two-kinds", *changes)
    before = counted(served)
    assert len(before["deployments"]) == 5
    assert register_weak(NAME) == 1
    # from here on nobody does anything

    until(lambda: len([r for version in registered(NAME) for r in version.records()]) == 2, "both are measured")
    until(lambda: aliases(NAME) == {"champion": 2}, "the hardened one is promoted")
    (weak,), (hardened,) = (version.records() for version in registered(NAME))
    assert (weak.verdict, hardened.verdict) == ("fail", "pass")
    assert weak.key == hardened.key
    (finding,) = known_of(NAME).findings
    assert finding.state == "verified"
    (fail,) = until(lambda: [said for said in heard if said["event"] == "redoubt.verdict.fail"], "the webhook")
    assert (fail["model"], fail["version"]) == (NAME, 1)
    assert "below the floor" in fail["reasons"][0]

    (harden,) = until(lambda: runs_of(served, "redoubt-harden"), "the run that hardened has ended")
    assert (harden["state_type"], harden["parameters"]["name"]) == ("COMPLETED", NAME)
    assert (harden["parameters"]["version"], harden["parameters"]["reason"]) == (1, " ".join(fail["reasons"]))
    watched = len(runs_of(served, "redoubt-watch"))
    until(lambda: len(runs_of(served, "redoubt-watch")) >= watched + 2, "two more watches")
    assert len(runs_of(served, "redoubt-harden")) == 1
    assert [version.number for version in registered(NAME)] == [1, 2]

    said = call(environment, "deploy", PREFECT_API_URL=served)
    assert counted(served) == before
    assert "a-secret-path" not in said
