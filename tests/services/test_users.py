"""MLflow's auth app and a user who is not its administrator."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from infra.services import Service, mlflow_server, mlflow_users, running
from tasks.errors import Forbidden, WrongInput
from tasks.recall import known_of
from tasks.track import make_model, model_facts, names, open_run, set_tags, tag_model
from tasks.track import store as store_module

ADMIN, ANN = ("admin", "a-password-of-some-length"), ("ann", "another-of-some-length")  # pragma: allowlist secret

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("users")
    env = mlflow_users(folder, database=f"sqlite:///{folder}/users.db", password=ADMIN[1])
    backend, files = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    with running(mlflow_server(folder, backend=backend, artifacts=files, env=env)) as made:
        said = dict(zip(("username", "password"), ANN, strict=True))
        requests.post(f"{made.url}/api/2.0/mlflow/users/create", json=said, auth=ADMIN, timeout=60).raise_for_status()
        yield made


@pytest.fixture
def log_in(server: Service, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)

    def log_in(name: str, password: str) -> None:
        monkeypatch.setattr(store_module, "_ANSWERED", {})
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return log_in


def test_a_user_may_begin_a_model_and_sees_nothing_of_what_is_not_hers(log_in):
    log_in(*ADMIN)
    make_model("theirs")
    tag_model("theirs", {"kept": "1"})
    log_in(*ANN)
    assert model_facts("hers") == ({}, {})  # the auth app forbids what is not there as well
    with open_run("hers", {"a": 1}) as run_id:
        set_tags(run_id, {"b": "2"})
    make_model("hers")
    tag_model("hers", {"mine": "1"})
    assert model_facts("hers") == ({}, {"mine": "1"})
    assert model_facts("theirs") == ({}, {})
    with pytest.raises(Forbidden, match="MLflow's server does not let ann do this"):
        tag_model("theirs", {"kept": "2"})
    with pytest.raises(Forbidden, match="'theirs' is registered, and ann may not see it"):
        make_model("theirs")
    with pytest.raises(WrongInput, match="What ann may not read does not show"):
        known_of("theirs")
    assert names() == ("hers",)
    log_in(*ADMIN)
    assert model_facts("theirs") == ({}, {"kept": "1"})
