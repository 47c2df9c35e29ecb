"""The store: which MLflow answers, and whether it does."""

import logging
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from tasks.errors import StoreUnreachable
from tasks.home import folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for --json
}
_ANSWERED: set[str] = set()  # the stores that were reached once; MLflow itself retries for minutes


def client() -> "MlflowClient":
    """A client of the server that MLFLOW_TRACKING_URI names, or of the embedded store. Raises StoreUnreachable."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or embedded_store()
    if uri not in _ANSWERED:
        _reachable(uri)
        _ANSWERED.add(uri)
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
        if not named:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it; what a user names must stay apart
    return mlflow.MlflowClient()


def embedded_store() -> str:
    """The URI of the store that is used where MLFLOW_TRACKING_URI names none. Raises StoreUnreachable."""
    return f"sqlite:///{folder('mlflow')}/mlflow.db"


def _reachable(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise StoreUnreachable(
            f"no MLflow server answers at {uri} ({error}). Start it, correct MLFLOW_TRACKING_URI, "
            f"or unset it to use the embedded store."
        ) from error
