"""What the environment keeps secret reaches no message and no file, and a config cannot hold a credential."""

import logging
import sys

import pytest

from flows.__main__ import main
from flows.commands.running import show_steps
from flows.config import parse
from flows.recipes import digits
from tasks.errors import StoreUnreachable, WrongInput
from tasks.redact import redacted
from tasks.track import client

CANARIES = {
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow",  # pragma: allowlist secret
    "PREFECT_API_AUTH_STRING": "admin:canary-of-prefect",
    "AWS_SECRET_ACCESS_KEY": "canary/of+aws",  # pragma: allowlist secret
    "REDOUBT_SIGNING_PASSWORD": "canary of signing",  # pragma: allowlist secret
    "REDOUBT_WEBHOOK_URL": "https://hooks.example/T0/canary-of-hook",
    "MLFLOW_TRACKING_TOKEN": "canary-token",
}
URL = "http://user:" + "canary-in-url@127.0.0.1:1"


@pytest.fixture
def canaries(monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URL)


@pytest.mark.parametrize("name", CANARIES)
def test_a_secret_of_the_environment_is_taken_out(canaries, name):
    assert redacted(f"before {CANARIES[name]} after") == "before *** after"


def test_user_and_password_of_a_url_are_taken_out_and_the_rest_stays(canaries):
    assert redacted(f"no server at {URL}/health") == "no server at http://***@127.0.0.1:1/health"
    assert redacted("the password is canary-in-url") == "the password is ***"
    assert redacted("s3://key:" + "secret@bucket/x at 12:30") == "s3://***@bucket/x at 12:30"
    assert redacted("mail me@example.org: models:/a@champion http://host:80/a@b") == (
        "mail me@example.org: models:/a@champion http://host:80/a@b"
    )


def test_an_unreachable_store_is_named_without_its_password(canaries, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URL)
    with pytest.raises(StoreUnreachable) as caught:
        client()
    assert "canary" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_neither_message_nor_traceback_of_a_broken_run_tells_a_secret(canaries, home, monkeypatch, capsys):
    def broken(name, *_):
        raise RuntimeError(f"{URL}/api refused {' '.join(CANARIES.values())} \x1b[2J for {name}")

    monkeypatch.setattr("flows.recipes.configured", broken)
    monkeypatch.setattr(sys, "argv", ["redoubt", "config", "digits"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 4
    said = capsys.readouterr().err
    kept = (home / "reports/last-traceback.txt").read_text()
    for text in (said, kept):
        assert "canary" not in text
        assert "RuntimeError" in text
        assert "127.0.0.1" in text
    assert "\x1b" not in said


def test_a_line_of_the_log_tells_none_and_moves_no_cursor(canaries, capsys):
    log = logging.getLogger("redoubt")
    before = log.handlers[:], log.level, log.propagate
    try:
        show_steps()
        log.warning("version 1: %s at %s \x1b]8;;http://evil.example\x07", CANARIES["AWS_SECRET_ACCESS_KEY"], URL)
    finally:
        log.handlers[:], log.level, log.propagate = before
    said = capsys.readouterr().err
    assert "version 1: ***" in said
    assert "canary" not in said
    assert "\x1b" not in said
    assert "\x07" not in said


@pytest.mark.parametrize(
    "value",
    [
        "https://user:" + "hunter2@host/x.csv",
        "s3://AKIA" + "IOSFODNN7EXAMPLE:" + "wJalrXUtn@bucket",
        "/data/AKIA" + "IOSFODNN7EXAMPLE/x.csv",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
    ],
)
def test_a_config_that_holds_a_credential_is_refused_without_repeating_it(value):
    values = digits().model_dump(mode="json")
    for change in ({"dataset": value}, {"training": values["training"] | {"model": value}}):
        with pytest.raises(WrongInput, match="holds a credential") as caught:
            parse(values | change)
        assert value not in str(caught.value)
        assert next(iter(change)) in str(caught.value)
