"""What a fault is held against: the same run, undisturbed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra.services import prefect_server, running
from tests.faults.harness import NAME, SHARED, SMALL, content, database, redoubt


class Undisturbed(NamedTuple):
    """A run that nothing came between."""

    said: dict[str, Any]
    code: int
    content: dict[str, Any]


@pytest.fixture(autouse=True)
def _no_server_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _one_prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("prefect")
    with running(prefect_server(folder)) as server:
        SHARED["PREFECT_API_URL"] = f"{server.url}/api"
        SHARED["PREFECT_HOME"] = str(folder / "client")
        SHARED["REDOUBT_TEMPORARY_PREFECT"] = "1"  # as where each run has a server of its own
        yield
    SHARED.clear()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = tmp_path_factory.mktemp("undisturbed")
    ran = redoubt(home, *SMALL, "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["verdict"], said["model"]) == ("pass", NAME)
    return Undisturbed(said, ran.returncode, content(database(home)))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A folder for everything that a run keeps, which is not there yet."""
    return tmp_path / "home"
