"""redoubt doctor: each check is shown a fault that was planted for it, and a healthy thing beside it."""

import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tasks.doctor import CHECKS, Installation, diagnose, mlflow_at, named, prefect_at, require_prefect
from tasks.errors import StoreUnreachable, WrongInput
from tasks.health import bounded, failed, fine, machine, scheduler, servers
from tasks.health.servers import basic, without_password
from tasks.health.trust import MLFLOW, PREFECT
from tasks.track import client, require_mlflow, write_and_delete

ROOT = Path(__file__).parents[2]
PASSWORD = "correct-horse"  # pragma: allowlist secret


class Spoken(BaseHTTPRequestHandler):
    """Says what the test laid down for a path: (status, JSON). Its clock may be off; it may want a password."""

    said: ClassVar[dict[str, tuple[int, object]]] = {}
    late = timedelta()
    password = ""

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        well = {"/health": "OK", "/api/health": True}.get(self.path, {})
        status, body = self.said.get(self.path, (200, well))
        given = self.headers.get("Authorization")
        if self.password and not self.path.endswith("/health") and given != basic(self.password)["Authorization"]:
            status, body = 401, {}
        raw = json.dumps(body).encode()
        self.send_response_only(status)
        self.send_header("Date", format_datetime(datetime.now(UTC) + self.late, usegmt=True))
        self.send_header("Content-Length", str(len(raw) if status != 204 else 0))
        self.end_headers()
        if status != 204:
            self.wfile.write(raw)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def speaking(**how: object) -> Iterator[str]:
    """The URL of a server of that kind."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Told", (Spoken,), how))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_python_outside_the_range_is_named(monkeypatch):
    assert machine.python().outcome == "ok"
    monkeypatch.setattr("platform.python_version", lambda: "3.14.0")
    assert machine.python().outcome == "fail"
    assert "3.14.0, asked for is" in machine.python().found


@pytest.mark.parametrize(
    ("package", "number", "words"),
    [
        ("fastapi", "0.165.0", "fastapi 0.165.0 is outside <0.151,>=0.139 (Prefect's server answers 422"),
        ("sqlalchemy", "2.1.9", "sqlalchemy 2.1.9 is outside <2.1,>=2.0.36 (Prefect's scheduler never"),
        ("mlflow", "3.18.0", "mlflow 3.18.0 is outside"),
        ("numpy", None, "numpy is absent"),
        ("boto3", "0.1", "boto3 0.1 is outside"),
    ],
)
def test_a_package_outside_its_range_fails_with_the_command_that_mends_it(package, number, words, monkeypatch):
    assert machine.packages().outcome == "ok"
    real = machine.version

    def pretend(name: str) -> str:
        if name != package:
            return real(name)
        if number is None:
            raise machine.PackageNotFoundError(name)
        return number

    monkeypatch.setattr(machine, "version", pretend)
    found = machine.packages()
    assert found.outcome == "fail"
    assert words in found.found
    assert f"pip install '{package}" in found.mend


def test_an_absent_package_of_an_extra_is_no_fault(monkeypatch):
    real = machine.version

    def pretend(name: str) -> str:
        if name == "prefect-ray":
            raise machine.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(machine, "version", pretend)
    assert machine.packages().outcome == "ok"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    good = machine.writable({"REDOUBT_HOME": tmp_path / "home", "the store of cells": tmp_path / "home" / "cells"})
    assert good.outcome == "ok"
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    closed = machine.writable({"REDOUBT_HOME": tmp_path, "the store of cells": Path("/proc/nowhere/cells")})
    assert closed.outcome == "fail"
    assert "the store of cells /proc/nowhere/cells cannot be written" in closed.found
    assert "REDOUBT_HOME" in closed.mend


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB; the tests that need one look at /dev/full where mounting is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        yield Path("/dev/full")
        return
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_fails_though_it_still_makes_empty_files(small_disk):
    if small_disk.is_dir():
        assert machine.writable({"REDOUBT_HOME": small_disk}).outcome == "ok"
        (small_disk / "ballast").write_bytes(bytes((1 << 20) - 8192))
        (small_disk / "empty").touch()
        found = machine.writable({"REDOUBT_HOME": small_disk})
        assert "No space left on device" in found.found
        assert not list(small_disk.glob(".doctor-*"))
    else:
        found = machine.writable({"REDOUBT_HOME": small_disk})
    assert found.outcome == "fail"


def test_a_disk_with_little_room_fails_with_the_place(small_disk):
    if not small_disk.is_dir():
        pytest.skip("this machine does not let us mount a small disk")
    found = machine.disk((Path("/"), small_disk / "not" / "yet" / "there"))
    assert found.outcome == "fail"
    assert f"0.0 GiB free at {small_disk}" in found.found
    assert str(small_disk) in found.mend


@pytest.mark.parametrize(("free", "outcome"), [(6 << 30, "ok"), (2 << 30, "warn"), (1 << 20, "fail")])
def test_free_disk_has_two_thresholds(free, outcome, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert machine.disk((tmp_path,)).outcome == outcome


@pytest.mark.parametrize(("mode", "outcome"), [(0o600, "ok"), (0o640, "warn"), (0o644, "fail")])
def test_a_signing_key_that_others_can_read_is_found(mode, outcome, tmp_path, monkeypatch, home):
    key = tmp_path / "key.pem"
    key.write_text("secret words")
    key.chmod(mode)
    monkeypatch.setenv("REDOUBT_SIGNING_KEY", str(key))
    found = look("secrets")
    assert found.outcome == outcome
    assert found.mend == ("" if outcome == "ok" else f"chmod 600 {key}")
    assert "secret words" not in found.line("secrets")


def test_a_signing_key_that_is_not_there_fails(monkeypatch, home):
    monkeypatch.setenv("REDOUBT_SIGNING_KEY", "/nowhere/key.pem")
    assert look("secrets").outcome == "fail"


@pytest.mark.parametrize(
    ("name", "value"),
    [("DO_NOT_TRACK", "1"), ("MLFLOW_DISABLE_TELEMETRY", "false"), ("PREFECT_SERVER_ANALYTICS_ENABLED", "true")],
)
def test_telemetry_that_somebody_switched_on_fails(name, value, monkeypatch):
    assert look("telemetry").outcome == "ok"
    monkeypatch.setenv(name, value)
    assert look("telemetry").outcome == "fail"
    assert name in look("telemetry").mend


def test_data_that_is_not_there_or_empty_is_said(tmp_path, monkeypatch):
    assert machine.data("").outcome == "not applicable"
    assert machine.data(str(tmp_path)).outcome == "warn"
    assert machine.data(str(tmp_path / "nowhere")).outcome == "fail"
    (tmp_path / "mnist").mkdir()
    assert machine.data(str(tmp_path)).outcome == "ok"
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    assert machine.data(str(tmp_path)).outcome == "fail"


@pytest.fixture
def private(tmp_path) -> Iterator[tuple[int, Path]]:
    """The port of a server whose certificate an authority of its own has signed, and that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")]), datetime.now(UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    signed = made.add_extension(here, critical=False).sign(key, hashes.SHA256())
    shape = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*shape))
    (tmp_path / "own.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Spoken)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *who: None  # of who does not trust it
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, tmp_path / "own.pem"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("made", "path", "names", "anybody"),
    [
        (mlflow_at, "", MLFLOW.files, MLFLOW.anybody),
        (prefect_at, "/api", PREFECT.files, PREFECT.anybody),
    ],
    ids=["mlflow", "prefect"],
)
def test_a_server_with_an_authority_of_its_own_is_trusted_as_its_client_would(
    private, made, path, names, anybody, tmp_path, monkeypatch
):
    port, own = private
    server = made(f"https://127.0.0.1:{port}{path}")
    for name in (*MLFLOW.files, *PREFECT.files):
        monkeypatch.delenv(name, raising=False)
    found = servers.reachable(server)
    assert (found.outcome, found.mend.split("=")[0]) == ("fail", f"export {names[0]}")
    for name, value in (*((name, str(own)) for name in names), (anybody, "true")):
        with monkeypatch.context() as here:
            here.setenv(name, value)
            assert servers.reachable(server).outcome == "ok", name
    monkeypatch.setenv(names[0], str(tmp_path / "absent.pem"))
    found = servers.reachable(server)
    assert found.outcome == "fail"
    assert names[0] in found.found


def test_every_command_trusts_mlflows_server_as_the_doctor_does(private, monkeypatch):
    port, own = private
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{port}")
    with pytest.raises(StoreUnreachable, match="export MLFLOW_TRACKING_SERVER_CERT_PATH="):
        require_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(own))
    require_mlflow()


@pytest.mark.parametrize(
    ("told", "outcome"),
    [("2.20.1", "fail"), ("3.0.0", "warn"), ("3.99.0", "ok"), ("next", "not applicable"), ({}, "not applicable")],
)
def test_a_server_of_another_version_is_found(told, outcome, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "3.8.8")
    for made, path in ((mlflow_at, ""), (prefect_at, "/api")):
        server = made("http://<host>")
        with speaking(said={path + server.version: (200, told)}) as url:
            found = servers.fits(made(url + path).ask(server.version), "any")
        assert found.outcome == outcome, found
        assert ("pip install 'any==3.8.8'" in found.mend) == (outcome in ("fail", "warn"))


def test_a_prefect_of_another_major_version_is_not_asked_for_work(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "3.8.8")
    with (
        speaking(said={"/api/admin/version": (200, "2.20.1")}) as url,
        pytest.raises(StoreUnreachable, match=r"the server is prefect 2\.20\.1, here is 3\.8\.8"),
    ):
        require_prefect(f"{url}/api")
    with speaking(said={"/admin/version": (404, {})}) as url, pytest.raises(StoreUnreachable, match="/api at its end"):
        require_prefect(url)


def test_a_url_of_something_else_says_what_it_should_look_like():
    with speaking(said={"/health": (404, {})}) as url:
        found = servers.reachable(prefect_at(url))
        assert (found.outcome, found.mend) == ("fail", "export PREFECT_API_URL=http://<host>:4200/api")
    with speaking(said={"/health": (200, True)}) as url:  # as Prefect answers
        found = servers.reachable(mlflow_at(url))
        assert (found.outcome, found.mend) == ("fail", "export MLFLOW_TRACKING_URI=http://<host>:5000")
    found = servers.reachable(prefect_at("notaurl"))
    assert found.outcome == "fail"
    assert "notaurl is no URL" in found.found


@pytest.mark.parametrize("uri", ["notaurl", "ftp://x/y", "databricks", "/some/folder", "file:///some/folder"])
def test_a_store_that_is_neither_server_nor_database_is_refused(uri, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(WrongInput, match="names neither a server nor a database"):
        require_mlflow()
    found = look("mlflow")
    assert found.outcome == "fail"
    assert found.mend.startswith("export MLFLOW_TRACKING_URI=")


def test_a_home_that_cannot_be_written_is_what_the_mend_names(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path / "file" / "home"))
    for name in ("mlflow", "mlflow store"):
        found = look(name)
        assert (found.outcome, found.mend) == ("fail", "export REDOUBT_HOME=<a folder that you may write to>")


def test_nothing_at_a_port_is_unreachable_and_the_password_in_a_url_is_not_shown():
    found = servers.reachable(mlflow_at(f"http://me:{PASSWORD}@127.0.0.1:9"))
    assert found.outcome == "fail"
    assert "nothing answers at http://127.0.0.1:9" in found.found
    assert PASSWORD not in found.line("mlflow")


def test_a_port_that_speaks_no_http_and_a_health_that_is_bad_are_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=greet, args=(other,), daemon=True).start()
        assert servers.reachable(mlflow_at(f"http://127.0.0.1:{other.getsockname()[1]}")).outcome == "fail"
    assert servers.reachable(mlflow_at("http://127.0.0.1:port")).outcome == "fail"
    with speaking(said={"/health": (500, {})}) as url:
        assert "says 500" in servers.reachable(mlflow_at(url)).found


def greet(listening: socket.socket) -> None:
    with listening.accept()[0] as caller:
        caller.sendall(b"SSH-2.0-x\r\n\r\n")


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(servers, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert servers.reachable(mlflow_at(f"http://127.0.0.1:{silent.getsockname()[1]}")).outcome == "fail"
        assert time.monotonic() - began < 2


def test_a_server_without_auth_is_found_where_others_reach_it(monkeypatch):
    with speaking() as url:
        server = prefect_at(url)
        assert servers.asks_who_calls(server, mend="x").outcome == "not applicable"  # only this machine
        monkeypatch.setattr(type(server), "local", False)
        found = servers.asks_who_calls(server, mend="set a password")
        assert (found.outcome, found.mend) == ("warn", "set a password")
        assert "answers to anybody" in found.found


def test_a_server_with_auth_is_ok_here_and_in_the_clear_elsewhere(monkeypatch):
    with speaking(password=PASSWORD) as url:
        server = prefect_at(url)
        assert servers.asks_who_calls(server, mend="").outcome == "ok"
        monkeypatch.setattr(type(server), "local", False)
        found = servers.asks_who_calls(server, mend="")
        assert found.outcome == "warn"
        assert "in the clear" in found.found


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:5000", True),
        ("http://127.0.0.9", True),
        ("http://[::1]:5000", True),
        ("http://mlflow:5000", False),
        ("https://mlflow.example.org", False),
        ("http://localhost.example.org", False),
        ("http://10.0.0.1", False),
    ],
)
def test_only_loopback_is_local(url, local):
    assert mlflow_at(url).local is local


@pytest.mark.parametrize(
    ("late", "outcome"), [(0, "ok"), (3, "ok"), (-20, "warn"), (20, "warn"), (90, "fail"), (-3600, "fail")]
)
def test_a_clock_that_is_off_is_found(late, outcome):
    with speaking(late=timedelta(seconds=late)) as url:
        found = servers.clock(mlflow_at(url))
    assert found.outcome == outcome
    if outcome != "ok":
        assert ("ahead of" if late > 0 else "behind") in found.found


def test_a_pool_and_its_worker_and_the_limit_are_looked_for():
    beat = {"name": "w", "last_heartbeat_time": datetime.now(UTC).isoformat()}
    old = beat | {"last_heartbeat_time": (datetime.now(UTC) - timedelta(minutes=9)).isoformat()}
    pool, limit = "/work_pools/redoubt", "/v2/concurrency_limits/gpu"
    workers = f"{pool}/workers/filter"
    cases = [
        (scheduler.work_pool, {pool: (404, {})}, "warn", "redoubt deploy"),
        (
            scheduler.work_pool,
            {pool: (200, {"is_paused": True, "type": "process"})},
            "warn",
            "prefect work-pool resume",
        ),
        (scheduler.work_pool, {pool: (200, {"is_paused": False, "type": "process"})}, "ok", ""),
        (scheduler.work_pool, {pool: (500, {})}, "fail", "log"),
        (scheduler.worker, {workers: (200, [])}, "fail", "redoubt worker --pool redoubt"),
        (scheduler.worker, {workers: (200, [old])}, "fail", "redoubt worker --pool redoubt"),
        (scheduler.worker, {workers: (200, [old, beat])}, "ok", ""),
        (scheduler.worker, {workers: (404, {})}, "warn", "redoubt deploy"),
    ]
    for check, said, outcome, mend in cases:
        with speaking(said=said) as url:
            found = check(prefect_at(url), {}, "redoubt")
        assert (found.outcome, mend in found.mend) == (outcome, True), (said, found)
    limits = [((404, {}), "warn"), ((200, {"active": False}), "warn"), ((200, {"active": True, "limit": 1}), "ok")]
    for answer, outcome in limits:
        with speaking(said={limit: answer}) as url:
            assert scheduler.gpu_limit(prefect_at(url), {}).outcome == outcome


def test_a_wrong_password_for_prefect_names_what_to_set_and_not_the_password(monkeypatch):
    with speaking(password="admin:right", said={"/health": (200, True)}) as url:  # pragma: allowlist secret
        for given in ("", "admin:" + PASSWORD):
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", given)
            with pytest.raises(StoreUnreachable, match="export PREFECT_API_AUTH_STRING=<user>:<password>") as refused:
                require_prefect(url)
            assert PASSWORD not in str(refused.value)
            found = dict(diagnose(Installation(None, prefect_at(url))))
            assert found["prefect store"].outcome == "fail"
            assert "PREFECT_API_AUTH_STRING" in found["prefect store"].mend
            assert found["worker"].found == "not tried: prefect store comes first"
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:right")
        require_prefect(url)


def test_a_busy_prefect_is_waited_for_and_an_absent_one_is_not(monkeypatch):
    monkeypatch.setattr(servers, "TIMEOUT", 0.5)
    asked: list[float] = []

    class Busy(Spoken):
        def answer(self) -> None:
            asked.append(time.monotonic())
            if len(asked) < 3:
                time.sleep(1)
            super().answer()

        do_GET = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    server.handle_error = lambda *who: None  # the first two callers are gone when it answers
    threading.Thread(target=server.serve_forever, daemon=True).start()
    require_prefect(f"http://127.0.0.1:{server.server_port}/api")
    server.shutdown()
    server.server_close()
    assert len(asked) == 3
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="no Prefect server answers"):
        require_prefect("http://127.0.0.1:9/api")
    assert time.monotonic() - began < 2


def test_the_embedded_store_is_really_written_and_left_as_it_was(home):
    before = sorted(home.rglob("*"))
    write_and_delete()
    assert [experiment.name for experiment in client().search_experiments()] == ["Default"]
    assert [path for path in sorted(home.rglob("*")) if path not in before] == [home / "mlflow" / "artifacts"]


def test_an_embedded_store_that_cannot_be_written_fails(home, monkeypatch):
    client().search_experiments()
    (home / "mlflow" / "artifacts").write_text("a file where a folder should be")
    found = look("mlflow store")
    assert found.outcome == "fail"
    assert str(home / "mlflow") in found.found


def test_a_check_that_hangs_or_breaks_is_a_failure_of_its_own(monkeypatch):
    began = time.monotonic()
    hung = bounded(lambda: time.sleep(30) or fine(""), 0.1)
    assert time.monotonic() - began < 5
    assert hung.outcome == "fail"
    assert "no answer within" in hung.found
    broken = bounded(lambda: fine(str(1 / 0)), 5)
    assert "ZeroDivisionError" in broken.found
    assert bounded(lambda: failed("x", "y"), 5) == failed("x", "y")


def test_no_mend_is_forgotten_and_each_need_stands_before_what_needs_it():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for place, check in enumerate(CHECKS):
        assert not check.needs or check.needs in names[:place]


def test_with_everything_down_the_command_ends_with_1_and_names_each(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "REDOUBT_"))}
    environment |= {
        "REDOUBT_HOME": str(tmp_path / "file" / "home"),
        "REDOUBT_DATA": str(tmp_path / "nowhere"),
        "MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:9",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_API_AUTH_STRING": f"me:{PASSWORD}",
    }
    (tmp_path / "file").touch()
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "flows", "doctor", "--json"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert time.monotonic() - began < 60
    assert ran.returncode == 1, ran.stderr
    said = json.loads(ran.stdout)
    assert not said["healthy"]
    outcomes = {each["check"]: each["outcome"] for each in said["checks"]}
    assert {name for name, outcome in outcomes.items() if outcome == "fail"} == {"folders", "data", "mlflow", "prefect"}
    assert all(each["mend"] for each in said["checks"] if each["outcome"] in ("warn", "fail"))
    assert PASSWORD not in ran.stdout + ran.stderr


def test_a_url_loses_its_password_and_nothing_else():
    assert without_password("http://u:p@h:1/a@b") == "http://h:1/a@b"  # pragma: allowlist secret
    assert without_password("sqlite:////x/y.db") == "sqlite:////x/y.db"
    assert without_password("postgresql://u:p@h/d") == "postgresql://h/d"  # pragma: allowlist secret


def look(name: str):
    check = next(check for check in CHECKS if check.name == name)
    return bounded(lambda: check.look(named()), 60)
