"""Two workers on one model at once: both come to the same, and what each found is kept."""

import json
import time

import pytest

from tests.faults.harness import NAME, SMALL, assert_verifies, database, redoubt, started, verdicts

SHARING = {"REDOUBT_TEMPORARY_PREFECT": ""}  # a Prefect server that several machines share
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]


def tags(home):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=database(home)).get_registered_model(NAME).tags


def assert_at_the_same_time(home, since):
    """Two runs began after that moment, and the second began before the first had ended."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database(home))
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(every, f"attributes.start_time >= {int(1000 * since)}", order_by=["start_time ASC"])
    first, second = (run.info for run in found if "mlflow.parentRunId" not in run.data.tags)
    assert first.start_time <= second.start_time < first.end_time


@pytest.fixture
def measured(fresh):
    """A folder with a weak version 1 and a hardened version 2, measured under another seed than will be asked for."""
    assert redoubt(fresh, *SMALL).returncode == 0
    return fresh


def test_one_version_by_two_at_once(measured):
    ask, since = ("evaluate", f"models:/{NAME}/1", "--seed", "5", "--samples", "280"), time.time()
    with started(measured, *ask, **SHARING) as one, started(measured, *ask, **SHARING) as other:
        assert (one.finish(), other.finish()) == (1, 1), one.lines + other.lines
    assert_at_the_same_time(measured, since)
    assert_verifies(measured)
    ran = redoubt(measured, "verify", NAME, "--json")
    links = {row["version"]: row["evidences"] for row in json.loads(ran.stdout)["versions"]}
    assert links[1] == 3  # of the run that made it, and of both


def test_two_versions_by_two_at_once_ledger_and_corpus_hold_what_both_found(measured):
    asks = [
        ("evaluate", f"models:/{NAME}/{number}", "--eps", "0.4", "--seed", "7", "--samples", "280")
        for number in (1, 2)  # both fall under it
    ]
    since = time.time()
    with started(measured, *asks[0], **SHARING) as one, started(measured, *asks[1], **SHARING) as other:
        codes = one.finish(), other.finish()
    assert 4 not in codes, one.lines + other.lines
    assert_at_the_same_time(measured, since)
    assert_verifies(measured)
    assert len(verdicts(measured)) >= 2
    corpora = [json.loads(v)["uri"] for k, v in tags(measured).items() if k.startswith("redoubt.corpus.")]
    found = [corpus for uri in corpora if json.loads(str((corpus := _corpus(measured, uri))["threat"]))["eps"] == 0.4]
    assert [set(corpus["version"].tolist()) for corpus in found] == [{1, 2}]


def _corpus(home, uri):
    import io

    import mlflow
    import numpy as np

    path = mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=database(home))
    with open(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
