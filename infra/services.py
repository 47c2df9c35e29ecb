"""The services of an installation as plain processes, for tests and benches: PostgreSQL, S3, MLflow, Prefect.

Each is a context manager that starts its process on a free local port, waits until it answers, and stops it. What
infra/compose.yaml runs in containers is started here from its packages, with the same settings.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

PATIENCE = 300.0  # seconds until a service that does not answer is given up
USER = "redoubt"


@dataclass
class Service:
    """A process that answers on a port of this machine; it can be stopped, and started again with the same words."""

    command: list[str]
    port: int
    log: Path
    health: str = ""  # path below http://127.0.0.1:port that says 200 when it is ready; empty: that the port is open
    env: Mapping[str, str] = field(default_factory=dict)  # what is set besides this process's environment
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Service":
        """Start it and wait until it answers. Raises RuntimeError with its last words."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return self
            time.sleep(0.1)
        self.stop(signal.SIGKILL)
        raise RuntimeError(f"{self.command[:4]} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and everything it started."""
        if self.process is None:
            return
        _signal_group(self.process, how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            _signal_group(self.process, signal.SIGKILL)
            self.process.wait(20)
        _signal_group(self.process, signal.SIGKILL)  # children that outlived it
        self.process = None

    def _answers(self) -> bool:
        try:
            if self.health:
                urllib.request.urlopen(self.url + self.health, timeout=2).close()
            else:
                socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
        except (OSError, urllib.error.URLError):
            return False
        return True


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """The service, started; stopped afterwards."""
    try:
        yield service.start()
    finally:
        service.stop()


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with a password, its log in the folder; what comes back is its URL, credentials included.

    Debian's package `postgresql` brings it. As root the server runs as user `postgres`, since it refuses root.
    """
    port, password = free_port(), secrets.token_hex(16)
    with TemporaryDirectory(prefix="redoubt-postgresql-") as own:  # pytest closes its folders to other users, again and
        data, secret = Path(own) / "data", Path(own) / "password"  # again: whenever another session of it begins
        data.mkdir()
        secret.write_text(password)
        as_user: list[str] = []
        if os.geteuid() == 0:
            as_user = ["runuser", "-u", "postgres", "--"]
            for path in (Path(own), data, secret):
                shutil.chown(path, "postgres", "postgres")
        initdb = [*as_user, str(_postgres("initdb")), "-D", str(data), "-U", USER, "-A", "scram-sha-256", "-E", "UTF8"]
        subprocess.run([*initdb, f"--pwfile={secret}"], check=True, capture_output=True, cwd="/")
        server = [*as_user, str(_postgres("postgres")), "-D", str(data), "-h", "127.0.0.1", "-p", str(port)]
        with running(Service([*server, "-k", "", "-c", "fsync=off"], port, folder / "postgresql.log")) as service:
            _wait_for_postgres(service, password)
            yield f"postgresql://{USER}:{password}@127.0.0.1:{port}"


def create_database(server: str, name: str) -> str:
    """Make an empty database on the PostgreSQL server; its URL, credentials included."""
    import psycopg2

    connection = psycopg2.connect(f"{server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()
    return f"{server}/{name}"


def s3(folder: Path) -> Service:
    """An S3 endpoint (moto), not started yet; any key is good for it, and what it holds is gone when it stops."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Service(command, port, folder / "s3.log", health="/moto-api/")


def mlflow_server(folder: Path, *, backend: str, artifacts: str, env: Mapping[str, str] | None = None) -> Service:
    """MLflow's server, not started yet: backend is a database URL, artifacts a folder or s3://bucket.

    With the environment of mlflow_users() it asks who calls.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--workers", "1"]
    command += ["--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_TRACKING_URI": ""}
    quiet |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes that wait for jobs we never send
    extra = dict(env or {})
    if "MLFLOW_AUTH_CONFIG_PATH" in extra:
        command += ["--app-name", "basic-auth"]
    return Service(command, port, folder / "mlflow.log", health="/health", env=quiet | extra)


def mlflow_users(folder: Path, *, database: str, password: str) -> dict[str, str]:
    """The environment of a server of MLflow with its auth app: its one user is `admin` with the password."""
    path = folder / "basic_auth.ini"
    path.write_text(
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        f"database_uri = {database}\n"
        "admin_username = admin\n"
        f"admin_password = {password}\n"
        "auth_cache_ttl_seconds = 60\n"  # as in infra/basic_auth.ini
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    path.chmod(0o600)
    return {"MLFLOW_AUTH_CONFIG_PATH": str(path), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32)}


def prefect_server(
    folder: Path, *, database: str = "", auth: str = "", env: Mapping[str, str] | None = None
) -> Service:
    """Prefect's server with all its services, not started yet; database a postgresql:// URL, auth `user:password`."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    settings = {
        "PREFECT_HOME": str(folder / "prefect-server"),
        "PREFECT_API_URL": "",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    }
    # a run on one machine switches off what only a server needs; here it is needed
    settings |= {
        key: "true" for key in os.environ if key.startswith("PREFECT_SERVER_SERVICES_") and key.endswith("_ENABLED")
    }
    if database:
        asynchronous = database.replace("postgresql://", "postgresql+asyncpg://", 1)
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = asynchronous
    if auth:
        settings["PREFECT_SERVER_API_AUTH_STRING"] = auth
    return Service(command, port, folder / "prefect.log", health="/api/health", env=settings | dict(env or {}))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _postgres(program: str) -> Path:
    """The newest PostgreSQL's program. Raises RuntimeError that says how to get it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which(program)
    if not found and not on_path:
        raise RuntimeError(f"PostgreSQL's {program} is not installed. Debian and Ubuntu: apt-get install postgresql")
    return found[-1] if found else Path(str(on_path))


def _wait_for_postgres(service: Service, password: str) -> None:
    import psycopg2

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg2.connect(
                host="127.0.0.1", port=service.port, user=USER, password=password, dbname="postgres"
            ).close()
            return
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _signal_group(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
