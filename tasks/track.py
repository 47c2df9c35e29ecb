"""The only door to MLflow. Every call names its run: MLflow's active run does not cross threads."""

import json
import logging
import os
import platform
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tasks.data import Data
from tasks.errors import StoreUnreachable
from tasks.home import folder
from tasks.metrics import RobustnessReport
from tasks.models import StoredModel, digest_of, to_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

ONE_EXPORT_AT_A_TIME = threading.Lock()  # torch.export is not thread-safe (pytorch#195099)
PACKAGES = ("redoubt", "torch", "numpy", "prefect", "mlflow", "great-expectations")
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for --json
}
_ANSWERED: set[str] = set()  # the stores that were reached once; MLflow itself retries for minutes
WEIGHTS, STORED, REPORT = "weights/model.safetensors", "model.json", "report.json"


def client() -> "MlflowClient":
    """A client of the server that MLFLOW_TRACKING_URI names, or of the embedded store. Raises StoreUnreachable."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or embedded_store()
    if uri not in _ANSWERED:
        _reachable(uri)
        _ANSWERED.add(uri)
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
        if not named:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it; what a user names must stay apart
    return mlflow.MlflowClient()


def embedded_store() -> str:
    """The URI of the store that is used where MLFLOW_TRACKING_URI names none. Raises StoreUnreachable."""
    return f"sqlite:///{folder('mlflow')}/mlflow.db"


def _reachable(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise StoreUnreachable(
            f"no MLflow server answers at {uri} ({error}). Start it, correct MLFLOW_TRACKING_URI, "
            f"or unset it to use the embedded store."
        ) from error


@contextmanager
def open_run(experiment: str, config: Mapping[str, Any]) -> Iterator[str]:
    """The id of a new parent run that holds the whole config; closed as finished, failed or killed, with its stages."""
    store = client()
    run = store.create_run(_experiment(store, experiment), tags=_provenance())
    run_id = run.info.run_id
    store.log_dict(run_id, dict(config), "config.json")
    status = "KILLED"
    try:
        yield run_id
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        for stage in _stages(store, run_id):
            if stage.info.status == "RUNNING":
                store.set_terminated(stage.info.run_id, status)
        store.set_terminated(run_id, status)


def open_stage(run_id: str, stage: str) -> str:
    """The id of the child run of that name, made if it is absent."""
    store = client()
    for run in _stages(store, run_id):
        if run.info.run_name == stage:
            return str(run.info.run_id)
    experiment = store.get_run(run_id).info.experiment_id
    tags = {"mlflow.parentRunId": run_id, "redoubt.stage": stage}
    return str(store.create_run(experiment, run_name=stage, tags=tags).info.run_id)


@contextmanager
def timed(run_id: str, step: str) -> Iterator[None]:
    """Log how long the block took as seconds/<step> of the run."""
    started = time.perf_counter()
    yield
    took = time.perf_counter() - started
    log_metrics(run_id, {f"seconds/{step}": took})
    logging.getLogger("redoubt").info("%-28s %6.1f s", step, took)


def log_metrics(
    run_id: str, values: Mapping[str, float], *, model: StoredModel | None = None, data: Data | None = None
) -> None:
    """Log every value in one request, tied to the model and the data that it was measured on, if they are given."""
    from mlflow.entities import Metric

    tie: dict[str, str] = {}
    if model is not None:
        tie |= {"model_id": model.model_uri.removeprefix("models:/"), "run_id": run_id}
    if data is not None:
        tie |= {"dataset_name": data.name, "dataset_digest": data.digest}
    now = int(time.time() * 1000)
    client().log_batch(run_id, metrics=[Metric(key, float(value), now, 0, **tie) for key, value in values.items()])


def log_history(run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Log a row of figures for each epoch, as train/<figure>, in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(f"train/{k}", float(v), now, step) for step, row in enumerate(rows, 1) for k, v in row.items()]
    for start in range(0, len(metrics), 1000):  # the server's limit
        client().log_batch(run_id, metrics=metrics[start : start + 1000])


def log_text(run_id: str, text: str, path: str) -> None:
    """Keep a text as an artifact."""
    client().log_text(run_id, text, path)


def log_dict(run_id: str, values: Mapping[str, Any], path: str) -> None:
    """Keep a mapping as a JSON artifact."""
    client().log_dict(run_id, dict(values), path)


def log_bytes(run_id: str, raw: bytes, path: str) -> None:
    """Keep bytes as an artifact."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / Path(path).name
        file.write_bytes(raw)
        parent = str(Path(path).parent)
        client().log_artifact(run_id, str(file), None if parent == "." else parent)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags on a run."""
    from mlflow.entities import RunTag

    client().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_dataset(run_id: str, data: Data) -> None:
    """Tie the dataset to the run, so that MLflow shows what the run has seen."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"shape": data.shape, "classes": data.classes, "sizes": data.sizes})
    entity = Dataset(data.name, data.digest, "code", json.dumps({"dataset": data.name}), profile=profile)
    client().log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "evaluation")])])


def save_model(run_id: str, stage: str, name: str, model: nn.Module, example: Tensor) -> StoredModel:
    """Keep the weights as safetensors and the model as an exported graph; neither holds a pickle.

    run_id is the stage's run; example is a batch x [2, ...] that the graph is traced with.
    """
    store, raw = client(), to_bytes(model)
    log_bytes(run_id, raw, WEIGHTS)
    with ONE_EXPORT_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch.export and MLflow say of their own insides
        import mlflow.pytorch

        mlflow.start_run(run_id=run_id)  # or else the logged model lands in MLflow's default experiment
        info = mlflow.pytorch.log_model(
            model,
            name="model",
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            params={"model": name, "stage": stage},
            model_type="classifier",
        )
        mlflow.end_run()
        store.update_run(run_id, status="RUNNING")  # its evaluation is still to come
    stored = StoredModel(
        stage=stage,
        model=name,
        weights=f"runs:/{run_id}/{WEIGHTS}",
        digest=digest_of(raw),
        run_id=run_id,
        model_uri=f"models:/{info.model_id}",
    )
    log_dict(run_id, stored.model_dump(mode="json"), STORED)
    return stored


def load_bytes(uri: str) -> bytes:
    """The bytes of an artifact, e.g. runs:/<run>/<path>."""
    client()
    import mlflow

    with tempfile.TemporaryDirectory() as scratch:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)).read_bytes()


def register(name: str, stored: StoredModel, tags: Mapping[str, str]) -> int:
    """The number of the new version of the registered model."""
    store = client()
    if not store.search_registered_models(f"name = '{name}'"):
        store.create_registered_model(name)
    model_id = stored.model_uri.removeprefix("models:/")
    made = store.create_model_version(
        name, source=stored.model_uri, run_id=stored.run_id, tags=dict(tags), model_id=model_id
    )
    return int(made.version)


def aliases(name: str) -> dict[str, int]:
    """The versions that bear an alias, e.g. {"champion": 2}; empty for a model that is not registered."""
    store = client()
    if not store.search_registered_models(f"name = '{name}'"):
        return {}
    return {alias: int(number) for alias, number in store.get_registered_model(name).aliases.items()}


def versions(name: str) -> tuple[int, ...]:
    """The numbers of the registered model's versions, in ascending order; none for a model that is not registered."""
    return tuple(sorted(int(found.version) for found in client().search_model_versions(f"name = '{name}'")))


def set_alias(name: str, alias: str, number: int) -> None:
    """Let the alias point at the version."""
    client().set_registered_model_alias(name, alias, str(number))


def load_version(name: str, number: int) -> tuple[StoredModel, RobustnessReport]:
    """A registered version and the report that its verdict was based on."""
    run_id = client().get_model_version(name, str(number)).run_id
    stored = StoredModel.model_validate_json(load_bytes(f"runs:/{run_id}/{STORED}"))
    return stored, RobustnessReport.model_validate_json(load_bytes(f"runs:/{run_id}/{REPORT}"))


def seconds(run_id: str) -> dict[str, float]:
    """How long each step of the run took, in the order in which they ended."""
    metrics = client().get_run(run_id).data.metrics
    return {key.removeprefix("seconds/"): value for key, value in metrics.items() if key.startswith("seconds/")}


def _experiment(store: "MlflowClient", name: str) -> str:
    found = store.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    place = None if os.environ.get("MLFLOW_TRACKING_URI") else (folder("mlflow/artifacts") / name).as_uri()
    return str(store.create_experiment(name, artifact_location=place))


def _stages(store: "MlflowClient", run_id: str) -> list[Any]:
    experiment = store.get_run(run_id).info.experiment_id
    return list(store.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"))


def _provenance() -> dict[str, str]:
    tags = {f"version.{name}": version(name) for name in PACKAGES} | {"version.python": platform.python_version()}
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        tags["mlflow.source.git.commit"] = commit.stdout.strip()
    return tags
