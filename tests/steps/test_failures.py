"""What an error of MLflow's client is taken for, and what a person is told."""

import errno

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST

from tasks.errors import Forbidden, StoreUnreachable
from tasks.track.failures import understood, visitor

STATEMENT = "(sqlite3.OperationalError) database or disk is full [SQL: INSERT INTO metrics] [parameters: ('a', 3.72)]"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MlflowException(f"{STATEMENT} (Background on this error at: https://sqlalche.me/e/20/e3q8)"), "disk is full"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/place/file"), "at /some/place/file"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_told_with_its_place_and_without_the_statement(error, words, home):
    with pytest.raises(StoreUnreachable) as told:
        understood(error)
    assert words in str(told.value)
    assert str(home) in str(told.value) or "/some/place/file" in str(told.value)
    assert "INSERT" not in str(told.value)
    assert "sqlalche" not in str(told.value)


def test_who_may_not_is_told_who_asked_and_who_grants_it(home, monkeypatch):
    refused = MlflowException("API request to x failed with error code 403 != 200", error_code=PERMISSION_DENIED)
    with pytest.raises(Forbidden, match="does not let us do this"):
        understood(refused)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    assert visitor() == ""  # a database asks for no name
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(
        Forbidden, match=r"does not let ann do this .* READ to look, EDIT to measure, MANAGE to promote"
    ):
        understood(refused)


def test_what_is_neither_silence_nor_refusal_is_raised_as_it_is():
    absent = MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
    with pytest.raises(MlflowException, match="no such run"):
        understood(absent)
    lost = ConnectionError("Connection refused")
    assert understood(lost) is lost
