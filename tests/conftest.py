"""Real parts for the tests: one MLflow store and one Prefect server for the whole session."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SESSION = tempfile.mkdtemp(prefix="redoubt-tests-")


def pytest_configure() -> None:
    """Before any test imports Prefect: its settings are read once."""
    for server in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        os.environ.pop(server, None)
    os.environ |= {"REDOUBT_HOME": SESSION, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "OMP_NUM_THREADS": "1"}
    from flows.settle import settle

    settle()


def pytest_unconfigure() -> None:
    shutil.rmtree(SESSION, ignore_errors=True)


SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def _migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making its tables takes seconds, copying them milliseconds."""
    folder = tmp_path_factory.mktemp("template")
    os.environ["REDOUBT_HOME"] = str(folder)
    from tasks.track import client

    client().search_experiments()
    return folder / "mlflow" / "mlflow.db"


@pytest.fixture
def home(_migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for everything that a run keeps, with an empty MLflow store in it."""
    folder = tmp_path / "home"
    (folder / "mlflow").mkdir(parents=True)
    shutil.copy(_migrated_store, folder / "mlflow" / "mlflow.db")
    monkeypatch.setenv("REDOUBT_HOME", str(folder))
    return folder


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The folder with MNIST and the tables, named in the environment; None on a machine that has none."""
    if not SHARED_DATA.is_dir():
        return None
    monkeypatch.setenv("REDOUBT_DATA", str(SHARED_DATA))
    return SHARED_DATA


@pytest.fixture(autouse=True, scope="module")
def _no_events_under_way() -> Iterator[None]:
    """End Prefect's connection for events with the file of tests that opened it.

    It pings the server from a thread of its own with numbers of `random`, which Hypothesis does not allow.
    """
    yield
    worker = sys.modules.get("prefect.events.worker")
    if worker is not None:
        worker.EventsWorker.drain_all(timeout=30)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Prefect's API in a process of its own, as `redoubt run` starts it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.ephemeral import prefect_api

    with prefect_api() as ready:
        ready()
        with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
            yield
