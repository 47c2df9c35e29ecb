"""MLflow or what is behind it goes away in mid-run: what was measured is kept, and delivered once."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.services import Service, mlflow_server, running, s3
from tests.faults.door import Door
from tests.faults.harness import SMALL, assert_verifies, content, redoubt, started

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "server"
    folder.mkdir()
    service = mlflow_server(folder, backend=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))
    with running(service):
        yield service


def assert_same_content(found, expected):
    for what in expected:
        assert found[what] == expected[what], what
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("after", ["validate", "train/baseline", "attack/baseline/test", "attack/hardened-1/test"])
def test_away_for_a_minute_nothing_is_lost_and_nothing_is_there_twice(fresh, server, undisturbed, after):
    away = 60.0 if after == "train/baseline" else 15.0
    with started(fresh, *SMALL, MLFLOW_TRACKING_URI=server.url) as run:
        run.until(after)
        server.stop()
        time.sleep(away)
        server.start()
        assert run.finish() == undisturbed.code, run.lines
    assert_same_content(content(server.url), undisturbed.content)
    assert_verifies(fresh, MLFLOW_TRACKING_URI=server.url)
    assert not list((fresh / "spool").rglob("call.json"))


def test_away_for_longer_than_the_patience_it_ends_with_4_and_deliver_brings_what_was_kept(fresh, server):
    patience = {"MLFLOW_TRACKING_URI": server.url, "REDOUBT_PATIENCE": "5"}
    with started(fresh, *SMALL, **patience) as run:
        run.until("train/baseline")
        server.stop()
        assert run.finish() == 4, run.lines
    assert run.heard("has not answered for 5 seconds")
    assert run.heard("at the latest by `redoubt deliver`")
    kept = len(list((fresh / "spool").rglob("call.json")))
    assert kept > 0
    again = redoubt(fresh, "deliver", **patience)
    assert again.returncode == 4
    assert "no MLflow server answers" in again.stderr
    server.start()
    delivered = redoubt(fresh, "deliver", **patience)
    assert (delivered.returncode, delivered.stdout) == (0, f"{kept} delivered.\n"), delivered.stderr
    assert redoubt(fresh, "deliver", **patience).stdout == "0 delivered.\n"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("two-kinds")
    whole = [r for r in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in r.data.tags]
    assert [run.info.status for run in whole] == ["FAILED"]
    assert {"seconds/validate", "seconds/train/baseline"} <= set(whole[0].data.metrics)
    ran = redoubt(fresh, *SMALL, **patience | {"REDOUBT_PATIENCE": "60"})
    assert ran.returncode == 0, ran.stderr
    assert_verifies(fresh, MLFLOW_TRACKING_URI=server.url)


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[tuple[Service, Door]]:
    """An MLflow server whose artifacts lie in an object store, and the door between the two."""
    folder = tmp_path / "server"
    folder.mkdir()
    keys = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",  # pragma: allowlist secret
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with running(s3(folder)) as store:
        import boto3

        words = {k.lower(): v for k, v in keys.items() if k != "AWS_DEFAULT_REGION"}
        boto3.client("s3", endpoint_url=store.url, region_name="us-east-1", **words).create_bucket(Bucket="mlflow")
        door = Door(store.port)
        env = keys | {"MLFLOW_S3_ENDPOINT_URL": door.url, "AWS_MAX_ATTEMPTS": "1"}
        service = mlflow_server(folder, backend=f"sqlite:///{folder}/mlflow.db", artifacts="s3://mlflow", env=env)
        with running(service):
            yield service, door
        door.gone()


def test_an_object_store_that_turns_away_and_one_that_is_slow(fresh, behind, undisturbed):
    service, door = behind
    with started(fresh, *SMALL, MLFLOW_TRACKING_URI=service.url) as run:
        run.until("validate")
        door.delay = 0.3
        run.until("train/baseline")
        door.delay = 0.0
        door.close()
        threading.Timer(30, door.open).start()
        assert run.finish() == undisturbed.code, run.lines
    assert run.heard("does not answer")
    assert_same_content(content(service.url), undisturbed.content)
    assert_verifies(fresh, MLFLOW_TRACKING_URI=service.url)


def test_an_object_store_that_asks_to_slow_down_is_waited_for(fresh, behind, undisturbed):
    service, door = behind
    with started(fresh, *SMALL, MLFLOW_TRACKING_URI=service.url) as run:
        run.until("train/baseline")
        door.refusal = 503, "SlowDown"
        door.cut()
        time.sleep(20)
        door.refusal = None
        assert run.finish() == undisturbed.code, run.lines
    assert_same_content(content(service.url), undisturbed.content)
    assert_verifies(fresh, MLFLOW_TRACKING_URI=service.url)


def test_an_object_store_that_denies_access_ends_the_run_honestly_and_loses_nothing(fresh, behind):
    service, door = behind
    asked = {"MLFLOW_TRACKING_URI": service.url, "REDOUBT_PATIENCE": "10"}
    with started(fresh, *SMALL, **asked) as run:
        run.until("train/baseline")
        door.refusal = 403, "AccessDenied"
        door.cut()
        assert run.finish() == 4, run.lines
    assert run.heard("behind it, which may deny access")
    door.refusal = None
    assert redoubt(fresh, "deliver", **asked).returncode == 0
    assert redoubt(fresh, *SMALL, **asked).returncode == 0
    assert_verifies(fresh, MLFLOW_TRACKING_URI=service.url)
