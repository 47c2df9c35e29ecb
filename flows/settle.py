"""Where a run on one machine keeps its things, said to Prefect and MLflow before they are imported."""

import os
from pathlib import Path

from tasks.home import folder

QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
# Prefect's temporary server: time to start on a slow machine; task runs written in batches, because those still
# queued when it stops are lost; no service that a single run has no use for.
TEMPORARY_SERVER = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
IDLE_SERVICES = (
    "CANCELLATION_CLEANUP",
    "DB_VACUUM",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
    "TRIGGERS",
)


def settle(*, server: bool = False) -> None:
    """Set what the environment leaves open: no telemetry, no pickle, one folder for everything.

    PREFECT_API_URL and MLFLOW_TRACKING_URI name servers and win. server: a Prefect server that is to last, with all
    its services, is started after this. Raises StoreUnreachable.
    """
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.pop("PREFECT_API_URL", None)  # Prefect takes an empty one for a server without a name
        os.environ.setdefault("PREFECT_HOME", str(folder("prefect")))
        for service in () if server else IDLE_SERVICES:
            os.environ.setdefault(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        for name, value in TEMPORARY_SERVER.items():
            os.environ.setdefault(name, value)
    if os.environ.get("PREFECT_API_URL", "").startswith("http:"):
        os.environ.setdefault("PREFECT_API_SSL_CERT_FILE", str(_one_authority()))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def _one_authority() -> Path:
    """A file with the first of the certificate authorities that Prefect would trust, instead of all of them.

    Each of its clients reads them all, for 30 ms of arithmetic, and a run makes a dozen; a server that is asked without
    TLS needs none. A file without any is refused.
    """
    path = folder("prefect") / "without-tls.pem"
    if not path.exists():
        import certifi

        first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(first + end, encoding="utf-8")
        part.replace(path)
    return path
