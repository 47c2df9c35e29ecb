"""Write to the store what nobody needs, read it, and take it away again."""

import os
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tasks.errors import RedoubtError, StoreUnreachable
from tasks.track.kept import load_bytes, log_text
from tasks.track.runs import place_of
from tasks.track.store import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def write_and_delete() -> None:
    """Tag a throwaway run, give it an artifact, read both, and delete artifact, run and experiment.

    Raises StoreUnreachable that says which of them did not work.
    """
    from mlflow.exceptions import MlflowException

    with _impatient():
        store, name = client(), f"redoubt-doctor-{uuid4().hex}"
        doing = "making an experiment"
        try:
            experiment = store.create_experiment(name, artifact_location=place_of(name))
            try:
                doing = "making a run"
                run_id = str(store.create_run(experiment, tags={"redoubt.doctor": name}).info.run_id)
                doing = "reading a tag"
                if store.get_run(run_id).data.tags.get("redoubt.doctor") != name:
                    raise StoreUnreachable("MLflow gives back another tag than was written.")
                doing = "writing an artifact"
                _artifact(store, run_id, name)
                doing = "deleting a run"
                store.set_terminated(run_id)
                store.delete_run(run_id)
            finally:
                store.delete_experiment(experiment)
                _forget(name)
        except RedoubtError:
            raise
        except (MlflowException, OSError) as error:
            raise StoreUnreachable(f"{doing} did not work: {str(error).splitlines()[0]}") from error


def _artifact(store: "MlflowClient", run_id: str, text: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    log_text(run_id, text, "doctor.txt")
    if load_bytes(f"runs:/{run_id}/doctor.txt") != text.encode():
        raise StoreUnreachable("MLflow gives back another artifact than was written.")
    kept: Any = get_artifact_repository(str(store.get_run(run_id).info.artifact_uri))
    kept.delete_artifacts()


def _forget(name: str) -> None:
    """On the embedded store, MLflow leaves the folders of what it deletes."""
    place = place_of(name)
    if place:
        shutil.rmtree(urllib.parse.unquote(urllib.parse.urlsplit(place).path), ignore_errors=True)


@contextmanager
def _impatient() -> Iterator[None]:
    """While it is open, MLflow gives up after one short try; it goes on for minutes otherwise."""
    before = {name: os.environ.get(name) for name in IMPATIENT}
    os.environ.update(IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
