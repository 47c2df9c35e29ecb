"""Runs: what one evaluation leaves behind. Every call names its run: MLflow's active run does not cross threads."""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import StoreUnreachable, WrongInput
from tasks.home import folder
from tasks.track.alive import is_gone, me
from tasks.track.kept import begin, log_dict, remembered
from tasks.track.places import keep_place, place_of_run
from tasks.track.store import client, patient

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.data import Data
    from tasks.models import StoredModel

PROCESS = "redoubt.process"  # a tag: which process makes the run
SECONDS = "seconds/"  # before the name of a step, in the name of a metric
UNNAMED = re.compile(r"[^\w./ :-]")  # what MLflow does not take in the name of a metric
PACKAGES = ("redoubt", "torch", "numpy", "prefect", "mlflow", "great-expectations")


@dataclass
class _Opened:
    """A run that this process has open: what it need not ask the store for."""

    stages: dict[str, str] = field(default_factory=dict)  # the run of each, by its name
    took: dict[str, float] = field(default_factory=dict)  # seconds of each step


_OPENED: dict[str, _Opened] = {}


@contextmanager
def open_run(experiment: str, config: Mapping[str, Any]) -> Iterator[str]:
    """The id of a new parent run that holds the whole config; closed as finished, failed or killed, with its stages."""
    store = client()
    place = _experiment(store, experiment)
    _close_killed(store, place)
    run = store.create_run(place, tags=_provenance() | {PROCESS: me()})
    run_id = run.info.run_id
    keep_place(run)
    log_dict(run_id, config, "config.json")
    status = "KILLED"
    opened = _OPENED[run_id] = _Opened()
    try:
        with remembered():
            yield run_id
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        try:
            if opened.took:
                log_metrics(run_id, _as_metrics(opened.took))
        finally:
            _close(store, run_id, status)
            del _OPENED[run_id]
    patient().settle()  # what the run came to is said when all of it is kept


def _close_killed(store: "MlflowClient", experiment: str) -> None:
    """Mark as killed what runs of this machine left open whose process has ended."""
    for run in store.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if is_gone(run.data.tags.get(PROCESS, "")):
            _close(store, run.info.run_id, "KILLED")


def _close(store: "MlflowClient", run_id: str, status: str) -> None:
    """End the run and its stages. Where the store does not answer, the run's end goes to the spool."""
    stages: Sequence[str] = ()
    with suppress(StoreUnreachable):
        opened = _alone(run_id)
        stages = tuple(opened.stages.values()) if opened else _left_open(store, run_id)
    for stage in stages:
        store.set_terminated(stage, status)
    store.set_terminated(run_id, status)


def _alone(run_id: str) -> _Opened | None:
    """The run, if this process has it open and no workers add stages and figures of their own."""
    return None if os.environ.get("REDOUBT_WORKERS") else _OPENED.get(run_id)


def _left_open(store: "MlflowClient", run_id: str) -> tuple[str, ...]:
    return tuple(run.info.run_id for run in _stages(store, run_id) if run.info.status == "RUNNING")


def open_stage(run_id: str, stage: str) -> str:
    """The id of the child run of that name, made if it is absent."""
    store = client()
    opened = _alone(run_id)
    known = opened.stages if opened else {run.info.run_name: run.info.run_id for run in _stages(store, run_id)}
    if stage in known:
        return known[stage]
    tags = {"mlflow.parentRunId": run_id, "redoubt.stage": stage}
    made = store.create_run(place_of_run(run_id).experiment, run_name=stage, tags=tags)
    keep_place(made)
    if run_id in _OPENED:
        _OPENED[run_id].stages[stage] = made.info.run_id
    if opened:
        begin(str(made.info.run_id))
    return str(made.info.run_id)


@contextmanager
def timed(run_id: str, step: str) -> Iterator[None]:
    """Log how long the block took as seconds/<step> of the run: when the run ends, where this process has it open."""
    started = time.perf_counter()
    yield
    took = time.perf_counter() - started
    if run_id in _OPENED:
        _OPENED[run_id].took[step] = took
    else:  # of a candidate on a worker
        log_metrics(run_id, _as_metrics({step: took}))
    logging.getLogger("redoubt").info("%-28s %6.1f s", step, took)


def _as_metrics(took: Mapping[str, float]) -> dict[str, float]:
    return {f"{SECONDS}{UNNAMED.sub('_', step)}": seconds for step, seconds in took.items()}


def log_metrics(
    run_id: str,
    values: Mapping[str, float],
    *,
    model: "StoredModel | None" = None,
    data: "Data | None" = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log every value, and set the tags, in one request.

    Values are tied to the model and the data that they were measured on, if these are given.
    """
    from mlflow.entities import Metric, RunTag

    tie: dict[str, str] = {}
    if model is not None and model.model_uri:
        tie |= {"model_id": model.model_uri.removeprefix("models:/"), "run_id": run_id}
    if data is not None:
        tie |= {"dataset_name": data.name, "dataset_digest": data.digest}
    now = int(time.time() * 1000)
    metrics = [Metric(key, float(value), now, 0, **tie) for key, value in values.items()]
    client().log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in (tags or {}).items()])


def log_history(run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Log a row of figures for each epoch, as train/<figure>, in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(f"train/{k}", float(v), now, step) for step, row in enumerate(rows, 1) for k, v in row.items()]
    for start in range(0, len(metrics), 1000):  # the server's limit
        client().log_batch(run_id, metrics=metrics[start : start + 1000])


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags on a run, in one request."""
    log_metrics(run_id, {}, tags=tags)


def log_dataset(run_id: str, data: "Data") -> None:
    """Tie the dataset to the run, so that MLflow shows what the run has seen."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"shape": data.shape, "classes": data.classes, "sizes": data.sizes})
    entity = Dataset(data.name, data.digest, "code", json.dumps({"dataset": data.name}), profile=profile)
    client().log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "evaluation")])])


def children(run_id: str) -> tuple[str, ...]:
    """The runs of its stages, oldest first. Raises WrongInput for a run that is not there."""
    known_run(run_id)
    stages = _stages(client(), run_id)
    return tuple(str(run.info.run_id) for run in sorted(stages, key=lambda run: run.info.start_time))


def known_run(run_id: str) -> None:
    """Raise WrongInput for a run that is not there."""
    from mlflow.exceptions import MlflowException

    try:
        client().get_run(run_id)
    except MlflowException as error:
        raise WrongInput(f"there is no run {run_id!r} in this store. Runs stand in `redoubt history NAME`.") from error


def parent_of(run_id: str) -> str:
    """The run that a stage belongs to; empty for one that is no stage."""
    return run_tags(run_id).get("mlflow.parentRunId", "")


def finished(run_id: str) -> bool:
    """Whether the run came to its end: it was neither stopped nor broke, and does not go on."""
    return bool(client().get_run(run_id).info.status == "FINISHED")


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run."""
    return dict(client().get_run(run_id).data.tags)


def run_metrics(run_id: str) -> dict[str, float]:
    """The newest value of each metric of a run."""
    return dict(client().get_run(run_id).data.metrics)


def runs_of(name: str) -> dict[str, dict[str, str]]:
    """The tags of every run that evaluated a version of the registered model, by the run's id."""
    store, found, token = client(), dict[str, dict[str, str]](), None
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    while True:
        page = store.search_runs(experiments, f"tags.`redoubt.model` = '{name}'", page_token=token)
        found |= {run.info.run_id: dict(run.data.tags) for run in page}
        token = page.token
        if not token:
            return found


def seconds(run_id: str) -> dict[str, float]:
    """How long each step of the run took: those on workers, then this process's in the order in which they ended."""
    opened = _alone(run_id)
    if opened:
        return dict(opened.took)
    logged = run_metrics(run_id)
    there = {key.removeprefix(SECONDS): value for key, value in logged.items() if key.startswith(SECONDS)}
    return there | (_OPENED[run_id].took if run_id in _OPENED else {})


def _experiment(store: "MlflowClient", name: str) -> str:
    found = store.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    return str(store.create_experiment(name, artifact_location=place_of(name)))


def place_of(experiment: str) -> str | None:
    """Where a new experiment keeps its artifacts on the embedded store, as a URI; None where a server decides."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else (folder("mlflow/artifacts") / experiment).as_uri()


def _stages(store: "MlflowClient", run_id: str) -> list[Any]:
    return list(store.search_runs([place_of_run(run_id).experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"))


def environment() -> dict[str, str]:
    """The versions of what computes: Python, and the packages that a number depends on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str:
    return version(package)


@cache
def commit() -> str:
    """The commit of Redoubt's own code when it was first asked; empty where it is no repository, or git is absent."""
    root = Path(__file__).parents[2]
    if shutil.which("git") is None:  # as in the image
        return ""
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _provenance() -> dict[str, str]:
    tags = {f"version.{name}": number for name, number in environment().items()}
    return tags | ({"mlflow.source.git.commit": commit()} if commit() else {})
