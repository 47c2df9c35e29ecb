"""What the fault tests share: a small run whose verdict is known, as a process; and what is in a store afterwards."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "flows"]
NAME = "two-kinds"
SMALL = ("run", NAME, "--set", "evaluation.suite=quick", "--set", "evaluation.samples=300")
SHARED: dict[str, str] = {}  # the one Prefect server of these tests, which spares each run the start of its own
STEPS = (  # as they are told on standard error, in the order in which they end
    *("validate", "train/baseline", "attack/baseline/test", "record/baseline"),
    *("train/hardened-1", "attack/hardened-1/select", "attack/hardened-1/test"),
    *("replay/hardened-1", "record/hardened-1"),
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with the Prefect server of these tests, and with a folder of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "REDOUBT_"))}
    ours = {"REDOUBT_HOME": str(home), "REDOUBT_PARTS": "tests.faults", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return kept | SHARED | ours | more


def redoubt(
    home: Path, *words: str, before: tuple[str, ...] = (), command: Sequence[str] = COMMAND, **more: str
) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end."""
    return subprocess.run(
        [*before, *command, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(home, **more),
        timeout=1800,
        check=False,
    )


@dataclass
class Running:
    """A command that goes on, and what it has said on standard error."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    said: threading.Condition = field(default_factory=threading.Condition)
    reader: threading.Thread | None = None

    def until(self, words: str, seconds: float = 1800) -> None:
        """Wait for a line that holds the words. Raises AssertionError where it ends or is silent before."""
        with self.said:
            there = self.said.wait_for(lambda: self.heard(words) or self.process.poll() is not None, timeout=seconds)
        assert there, f"silent about {words!r}: {self.lines}"
        if not self.heard(words):
            self.finish()
        assert self.heard(words), f"ended with {self.process.returncode} before {words!r}: {self.lines}"

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.finish()

    def finish(self, seconds: float = 1800) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        assert self.reader is not None
        self.reader.join()
        return code

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.said:
                self.lines.append(line.rstrip())
                self.said.notify_all()
        with self.said:
            self.said.notify_all()


@contextmanager
def started(home: Path, *words: str, **more: str) -> Iterator[Running]:
    """The command as a process; killed afterwards if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=ROOT,
        env=environment(home, **more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = Running(process)
    running.reader = threading.Thread(target=running.read, daemon=True)
    running.reader.start()
    try:
        yield running
    finally:
        if process.poll() is None:
            running.kill()
        running.finish()
        assert process.stderr is not None
        process.stderr.close()


def verdicts(home: Path, **more: str) -> list[tuple[int, str]]:
    """Version and verdict of every measured version, oldest first."""
    ran = redoubt(home, "history", NAME, "--json", **more)
    assert ran.returncode == 0, ran.stderr
    history: dict[str, Any] = json.loads(ran.stdout)
    return sorted({(record["version"], record["verdict"]) for record in _records(history)})


def _records(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if {"version", "verdict", "evidence"} <= value.keys():
            yield value
        for inner in value.values():
            yield from _records(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _records(inner)


def assert_verifies(home: Path, name: str = NAME, **more: str) -> None:
    """Every link of evidence, every file, the data, the store of cells."""
    ran = redoubt(home, "verify", name, **more)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def content(uri: str, name: str = NAME) -> dict[str, Any]:
    """What a store holds of the newest run of that name: metrics with their values, artifacts, versions, aliases.

    What a clock or a cost decides is left to its count.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    newest = max((r for r in runs if "mlflow.parentRunId" not in r.data.tags), key=lambda r: r.info.start_time)
    mine = [newest, *(r for r in runs if r.data.tags.get("mlflow.parentRunId") == newest.info.run_id)]
    found: dict[str, Any] = {"versions": len(client.search_model_versions(f"name = '{name}'"))}
    found["models"] = len(client.search_logged_models([experiment.experiment_id]))
    found["aliases"] = {k: int(v) for k, v in client.get_registered_model(name).aliases.items()}
    for run in mine:
        stage = run.data.tags.get("redoubt.stage", "whole")
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        found[f"{stage}: metrics"] = {
            key: len(rows) if _of_a_clock(key) else [(row.step, round(row.value, 9)) for row in rows]
            for key, rows in histories.items()
        }
        found[f"{stage}: artifacts"] = sorted(_paths(client, run.info.run_id, ""))
        found[f"{stage}: status"] = run.info.status
        found[f"{stage}: inputs"] = len(run.inputs.dataset_inputs)
        found[f"{stage}: outputs"] = len(run.outputs.model_outputs) if run.outputs else 0
    return found


def _of_a_clock(key: str) -> bool:
    return "second" in key or "days" in key


def _paths(client: Any, run_id: str, folder: str) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder or None):
        if entry.is_dir:
            yield from _paths(client, run_id, entry.path)
        elif not entry.path.startswith("findings/"):
            yield entry.path


def open_runs(uri: str, name: str = NAME) -> int:
    """How many runs say that they still run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return len(client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"))


def database(home: Path) -> str:
    """The URI of the store in a folder."""
    return f"sqlite:///{home}/mlflow/mlflow.db"
