"""A whole installation with the settings of infra/compose.yaml, as processes that ask who calls."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import infra.services
from flows.recipes import configured
from infra.services import Service, free_port, postgresql, running, s3
from tests.services.installation import ROOT, as_process, composed

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
SECRETS = {  # each so odd that a place which does not quote it breaks, and that it is found wherever it leaks
    "POSTGRES_PASSWORD": "superuser-8f0c'1",
    "MLFLOW_DATABASE_PASSWORD": "tables-91'b/%40:x@y",
    "PREFECT_DATABASE_PASSWORD": 'flows-72"c/%2F:x@y',
    "S3_ACCESS_KEY": "objects-key-5d1",
    "S3_SECRET_KEY": "objects-secret-4e2+/=",  # pragma: allowlist secret
    "MLFLOW_ADMIN_PASSWORD": "tracking-63f:'/@%",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "forms-0a9b8c7d",  # pragma: allowlist secret
    "PREFECT_AUTH_STRING": "admin:orchestration-55a:'/@%",
}


@dataclass(frozen=True)
class Installation:
    """What runs, and how to reach it."""

    caller: Mapping[str, str]  # the environment of whoever may call
    folder: Path
    postgres: str
    bucket: Mapping[str, str]  # the environment that reads it
    mlflow_url: str


@pytest.fixture(scope="module")
def installation(tmp_path_factory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    services = composed(SECRETS | {"REDOUBT_DATA": str(folder)})["services"]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(infra.services, "PATIENCE", 300.0)  # four servers start on one machine
        for name in list(os.environ):  # what the tests themselves set is not for a server
            if name.startswith(("PREFECT_", "MLFLOW_")):
                patch.delenv(name)
        server = stack.enter_context(postgresql(folder))
        make_databases(server, services["postgres"]["environment"])
        objects = stack.enter_context(running(s3(folder)))
        port = str(urlsplit(server).port)
        known = {"MLFLOW_WORKERS": "1", "PGPORT": port, "PREFECT_SERVER_DATABASE_PORT": port}
        ports = {"mlflow": free_port(), "prefect": free_port()}
        places = {
            "postgres": "127.0.0.1",
            "http://s3:7070": objects.url,
            "/tmp/prefect": str(folder / "prefect-server"),
            "/tmp/prefect-ui": str(folder / "prefect-ui"),
            "http://mlflow:5000": f"http://127.0.0.1:{ports['mlflow']}",
            "http://prefect:4200/api": f"http://127.0.0.1:{ports['prefect']}/api",
            "infra/basic_auth.ini": str(ROOT / "infra" / "basic_auth.ini"),
        }
        for name in ("bucket", "mlflow-tables", "bucket"):  # the second time it is there already
            command, settings = as_process(services[name], places)
            environment = os.environ | known | settings
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        # as in compose.yaml, nobody but MLflow's server reaches the objects: by a name that nobody else knows
        apart = {"MLFLOW_S3_ENDPOINT_URL": "http://s3:7070", "HTTP_PROXY": objects.url, "NO_PROXY": "127.0.0.1"}
        for name, at in ports.items():
            command, settings = as_process(services[name], places, at)
            settings |= apart if name == "mlflow" else {}
            health = urlsplit(services[name]["healthcheck"]["test"][-1]).path
            stack.enter_context(running(Service(command, at, folder / f"{name}.log", health, settings | known)))
        caller = as_process(services["worker"], places)[1]
        caller |= {"REDOUBT_HOME": str(folder / "home"), "REDOUBT_DATA": str(folder)}
        keys = as_process(services["bucket"], places)[1]
        yield Installation(caller, folder, server, keys, places["http://mlflow:5000"])


def make_databases(server: str, settings: Mapping[str, str]) -> None:
    at = urlsplit(server)
    environment = {"PGHOST": "127.0.0.1", "PGPORT": str(at.port), "PGPASSWORD": str(at.password)}
    environment |= {name: value for name, value in settings.items() if name.endswith("DATABASE_PASSWORD")}
    subprocess.run(
        ["sh", str(ROOT / "infra" / "databases.sh")],
        env=os.environ | environment | {"POSTGRES_USER": str(at.username)},
        check=True,
        capture_output=True,
    )


def call(installation: Installation, *words: str, **changes: str | None) -> "subprocess.CompletedProcess[str]":
    """A command of ours (or Prefect's, after `prefect`), called as the worker of compose.yaml; None takes away."""
    module = words if words[0] == "prefect" else ("flows", *words)
    environment = os.environ | dict(installation.caller) | {k: v for k, v in changes.items() if v is not None}
    for name in (name for name, value in changes.items() if value is None):
        environment.pop(name)
    environment.setdefault("PREFECT_HOME", str(installation.folder / "prefect-client"))
    return subprocess.run(
        [sys.executable, "-m", *module], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900
    )


@pytest.fixture(scope="module")
def config(installation, tmp_path_factory) -> Path:
    changes = ("name=small", "training.epochs=2", "evaluation.samples=60", "evaluation.suite=quick")
    whole = configured("digits", (*changes, "policy.max_rounds=0", "policy.floor=0.99"))
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(whole.model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def ran(installation, config) -> "subprocess.CompletedProcess[str]":
    return call(installation, "run", str(config), "--json")


def query(installation: Installation, database: str, words: str) -> list[tuple[object, ...]]:
    import psycopg2

    connection = psycopg2.connect(f"{installation.postgres}/{database}")
    try:
        with connection.cursor() as cursor:
            cursor.execute(words)
            return cursor.fetchall()
    finally:
        connection.close()


def objects(installation: Installation) -> dict[str, bytes]:
    import boto3

    store = boto3.client(
        "s3",
        endpoint_url=installation.bucket["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=SECRETS["S3_ACCESS_KEY"],
        aws_secret_access_key=SECRETS["S3_SECRET_KEY"],
        region_name="us-east-1",
    )
    pages = store.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    found = {key: store.get_object(Bucket="mlflow", Key=key)["Body"].read() for key in keys}
    store.close()
    return found


def test_a_run_ends_with_its_verdict_and_leaves_everything_in_postgres_and_the_bucket(installation, ran):
    assert ran.returncode == 1, ran.stderr
    said = json.loads(ran.stdout)
    assert said["verdict"] == "fail"
    kept = {Path(key).name for key in objects(installation)}
    assert {"config.json", "model.safetensors", "report.html", "story.json"} <= kept
    assert query(installation, "mlflow", "SELECT status FROM runs") == [("FINISHED",)] * 2
    assert query(installation, "prefect", "SELECT state_type::text FROM flow_run") == [("COMPLETED",)]
    assert not list((installation.folder / "home").rglob("mlflow.db"))


def test_what_it_left_can_be_verified(installation, ran):
    verified = call(installation, "verify", "small", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    (version,) = json.loads(verified.stdout)["versions"]
    assert version["evidences"] == 1
    assert version["files"] > 5


def test_the_doctor_finds_it_healthy(installation):
    looked = call(installation, "doctor", "--json")
    said = {each["check"]: each for each in json.loads(looked.stdout)["checks"]}
    assert [each for each in said.values() if each["outcome"] == "fail"] == []
    assert looked.returncode == 0
    assert all(each["outcome"] == "ok" for name, each in said.items() if name.startswith(("mlflow", "prefect"))), said
    assert said["work pool"]["mend"] == "redoubt deploy"
    assert not [key for key in objects(installation) if "doctor" in key]
    live = query(installation, "mlflow", "SELECT name FROM experiments WHERE lifecycle_stage = 'active'")
    assert ("small",) in live
    assert not [name for (name,) in live if "doctor" in str(name)]
    assert query(installation, "prefect", "SELECT count(*) FROM variable WHERE name LIKE 'redoubt_doctor%'") == [(0,)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {"MLFLOW_TRACKING_PASSWORD": "guessed-9911"},  # pragma: allowlist secret
            ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        ),
        ({"MLFLOW_TRACKING_USERNAME": None, "MLFLOW_TRACKING_PASSWORD": None}, ("MLFLOW_TRACKING_PASSWORD",)),
        ({"PREFECT_API_AUTH_STRING": "admin:guessed-9911"}, ("PREFECT_API_AUTH_STRING",)),
        ({"PREFECT_API_AUTH_STRING": None}, ("PREFECT_API_AUTH_STRING",)),
    ],
)
def test_a_wrong_password_or_none_ends_a_run_before_it_begins_and_says_what_to_set(
    installation, config, changes, names
):
    refused = call(installation, "run", str(config), **changes)
    assert refused.returncode == 4, refused.stderr
    assert "does not let us in (401)" in refused.stderr
    assert all(name in refused.stderr for name in names)
    assert "guessed-9911" not in refused.stdout + refused.stderr
    assert "train/" not in refused.stderr
    looked = call(installation, "doctor", "--json", **changes)
    assert looked.returncode == 1
    failures = [each for each in json.loads(looked.stdout)["checks"] if each["outcome"] == "fail"]
    assert len(failures) == 1
    assert names[-1] in failures[0]["mend"]
    assert "guessed-9911" not in looked.stdout + looked.stderr


def test_a_host_name_that_mlflow_does_not_know_is_told_apart_from_a_password(installation, config):
    other = installation.mlflow_url.replace("127.0.0.1", "127.0.0.2")
    refused = call(installation, "doctor", "--only", "mlflow store", MLFLOW_TRACKING_URI=other)
    assert "--allowed-hosts" in refused.stdout or "no MLflow server answers" in refused.stdout


def test_prefect_own_commands_reach_the_server_that_asks_who_calls(installation):
    listed = call(installation, "prefect", "work-pool", "ls")
    assert listed.returncode == 0, listed.stderr
    assert call(installation, "prefect", "work-pool", "ls", PREFECT_API_AUTH_STRING=None).returncode != 0


def test_a_worker_takes_what_is_deployed_from_a_server_that_asks_who_calls(installation, ran):
    """The commands of compose.yaml's deploy and worker; the night's flow, begun by Prefect's own command."""
    deployed = call(installation, "deploy", "--pool", "redoubt")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    environment = os.environ | dict(installation.caller) | {"PREFECT_HOME": str(installation.folder / "prefect-worker")}
    log = installation.folder / "worker.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "flows", "worker", "--pool", "redoubt"]
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            night = call(installation, "prefect", "deployment", "run", "redoubt-reattack-all/nightly", "--watch")
            assert night.returncode == 0, night.stdout + night.stderr + log.read_text()
            (said,) = json.loads(call(installation, "doctor", "--json", "--only", "worker").stdout)["checks"]
            assert said["outcome"] == "ok", said
        finally:
            worker.terminate()
            assert worker.wait(60) == 0
    states = query(installation, "prefect", "SELECT state_type::text FROM flow_run WHERE deployment_id IS NOT NULL")
    assert ("COMPLETED",) in states
    verified = call(installation, "verify", "small", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    (version,) = json.loads(verified.stdout)["versions"]
    assert version["evidences"] == 2


@pytest.mark.parametrize(
    ("words", "changes", "told"),
    [
        (("worker",), {"PREFECT_API_AUTH_STRING": "admin:guessed-9911"}, "export PREFECT_API_AUTH_STRING="),
        (("deploy",), {"PREFECT_API_AUTH_STRING": None}, "export PREFECT_API_AUTH_STRING="),
        (("worker",), {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "no Prefect server answers at http://127.0.0.1:9"),
        (("deploy",), {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "no Prefect server answers at http://127.0.0.1:9"),
    ],
)
def test_a_worker_or_a_deployment_that_is_not_let_in_says_what_to_set(installation, words, changes, told):
    refused = call(installation, *words, **changes)
    assert refused.returncode == 4
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "guessed-9911" not in refused.stdout + refused.stderr


def test_no_password_is_anywhere_but_where_it_was_given(installation, ran):
    """In no table, no object, no log, no file of ours, nothing printed; the environment alone knows them."""
    at = urlsplit(installation.postgres)
    places = {"printed": (ran.stdout + ran.stderr).encode()}
    for database in ("mlflow", "mlflow_auth", "prefect"):
        dump = subprocess.run(
            ["pg_dump", "--data-only", "-h", "127.0.0.1", "-p", str(at.port), "-U", str(at.username), database],
            env=os.environ | {"PGPASSWORD": str(at.password)},
            capture_output=True,
            check=True,
        )
        places[database] = dump.stdout
    places |= {f"s3 {key}": raw for key, raw in objects(installation).items()}
    files = [*installation.folder.glob("*.log"), *(installation.folder / "home").rglob("*")]
    places |= {str(path): path.read_bytes() for path in files if path.is_file()}
    assert b"small" in places["mlflow"]  # the search would find what is there
    assert len(places) > 20
    signed = places.pop(str(installation.folder / "s3.log"))  # names the callers' key ids, as every such store does
    places["s3.log"] = signed.replace(SECRETS["S3_ACCESS_KEY"].encode(), b"")
    words = {*SECRETS.values(), SECRETS["PREFECT_AUTH_STRING"].partition(":")[2]}
    found = [(where, word) for where, raw in places.items() for word in words if word.encode() in raw]
    assert found == []
