"""Waiting for Prefect's temporary server: what a person is told when it does not come."""

import subprocess
import sys

import pytest

import flows.ephemeral
from flows.ephemeral import PATIENCE, _wait
from tasks.errors import StoreUnreachable, WrongInput

NOWHERE = "http://127.0.0.1:9/api"  # the port of discarded bytes: nothing answers there


def process(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", code])


def test_a_server_that_is_silent_is_given_up_after_the_seconds_that_are_named(monkeypatch, capsys):
    monkeypatch.setenv(PATIENCE, "0.4")
    monkeypatch.setattr(flows.ephemeral, "SOON", 0.1)
    server = process("import time; time.sleep(60)")
    try:
        with pytest.raises(StoreUnreachable, match=rf"within 0\.4 s, though its process lives.*{PATIENCE}=0\.8"):
            _wait(NOWHERE, server, "the log")
    finally:
        server.kill()
        server.wait()
    assert capsys.readouterr().err == "starting Prefect ...\n"


def test_a_server_that_ended_by_itself_is_told_with_its_code():
    server = process("raise SystemExit(7)")
    server.wait()
    with pytest.raises(StoreUnreachable, match=r"ended by itself with code 7; its last words are in the log\."):
        _wait(NOWHERE, server, "the log")


@pytest.mark.parametrize("given", ["soon", "0", "-1", "inf", "nan"])
def test_a_patience_that_is_no_number_of_seconds_is_refused(monkeypatch, given):
    monkeypatch.setenv(PATIENCE, given)
    server = process("pass")
    server.wait()
    with pytest.raises(WrongInput, match=f"{PATIENCE}='{given}' is no number of seconds"):
        _wait(NOWHERE, server, "the log")
