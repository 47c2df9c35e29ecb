"""The store: which MLflow answers, and whether it does."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar, cast

from tasks.errors import StoreUnreachable, WrongInput
from tasks.health.servers import without_password
from tasks.health.trust import MLFLOW
from tasks.home import folder
from tasks.redact import redacted
from tasks.track.failures import silent
from tasks.track.patience import Patient

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
ABREAST = 4  # requests at the same time
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for --json
    # What a server stores is asked of the server: it would send us to its object store, which only it may reach.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it would retry for minutes, and make a run twice; we retry ourselves
}
_ANSWERED: dict[str, Patient] = {}  # the stores that were reached once


def client() -> "MlflowClient":
    """A client of the server that MLFLOW_TRACKING_URI names, or of the embedded store. Raises StoreUnreachable.

    Once a store has answered, the client is patient with it.
    """
    return cast("MlflowClient", patient())


def patient() -> Patient:
    """The same, with what it does besides: ask() in patience, deliver() what is kept, settle() what was written."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        if logging.getLogger(name).level != logging.WARNING:  # to set it empties the caches of every logger
            logging.getLogger(name).setLevel(logging.WARNING)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or embedded_store()
    new = uri not in _ANSWERED
    if new:
        _reachable(uri)
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
        if not named:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it; what a user names must stay apart
    if new:
        _let_in(uri)
        _ANSWERED[uri] = Patient(mlflow.MlflowClient(), uri)
        _left_over(_ANSWERED[uri])
    return _ANSWERED[uri]


def abreast(do: Callable[[T], None], each: Iterable[T]) -> None:
    """Do it for each: several at the same time where a server is asked, one after another in a database.

    Raises what the first to fail raises. What has not begun then never does, and nobody waits for the others.
    """
    store, waiting = patient(), list(each)
    if store.spool is None or len(waiting) < 2:
        for one in waiting:
            do(one)
        return
    several = ThreadPoolExecutor(ABREAST)
    try:
        for done in [several.submit(copy_context().run, do, one) for one in waiting]:
            done.result()
    except BaseException:
        store.hurry()  # else Ctrl-C would wait for those that wait for the server
        several.shutdown(wait=False, cancel_futures=True)
        raise
    several.shutdown()


def _left_over(store: Patient) -> None:
    """Deliver what earlier runs could not."""
    done = store.left_over = store.deliver()
    if done.sent or done.kept or done.refused:
        logging.getLogger("redoubt").warning("writes that earlier runs left in the spool: %s", done)


def require_mlflow() -> None:
    """Raise StoreUnreachable where MLFLOW_TRACKING_URI names a server that is silent. Loads nothing of MLflow."""
    _reachable(os.environ.get("MLFLOW_TRACKING_URI", ""))


def check_place(uri: str) -> None:
    """Return if the URI is a server's or a database's, or empty. Raises WrongInput that says what to write."""
    scheme, found, _ = uri.partition("://")
    if uri and not (found and scheme.split("+")[0] in ("http", "https", *DATABASES)):
        raise WrongInput(
            f"MLFLOW_TRACKING_URI={redacted(uri)} names neither a server nor a database. Write http://<host>:5000, "
            "sqlite:///<file>.db or postgresql://<host>/<database>, or unset it to use the embedded store."
        )


def embedded_store() -> str:
    """The URI of the store that is used where MLFLOW_TRACKING_URI names none. Raises StoreUnreachable."""
    return f"sqlite:///{folder('mlflow')}/mlflow.db"


def _reachable(uri: str) -> None:
    check_place(uri)
    if not uri.startswith(("http://", "https://")):
        return
    try:
        address = f"{without_password(uri).rstrip('/')}/health"
        urllib.request.urlopen(address, timeout=5, context=MLFLOW.context()).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        mend = MLFLOW.mend(error) or "Start it, correct MLFLOW_TRACKING_URI, or unset it to use the embedded store"
        raise StoreUnreachable(f"no MLflow server answers at {redacted(uri)} ({error}). {mend}.") from error


def _let_in(uri: str) -> None:
    """Raise StoreUnreachable that says what to set, where the server refuses us: its health it tells to everybody."""
    if not uri.startswith(("http://", "https://")):
        return
    import mlflow
    from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException

    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        status = ERROR_CODE_TO_HTTP_STATUS.get(error.error_code)
        if status not in (401, 403):
            if silent(error):
                raise
            raise StoreUnreachable(
                f"what answers at {without_password(uri)} does not speak as MLflow's server does ({error}). Correct "
                "MLFLOW_TRACKING_URI, or look at the server's log."
            ) from error
        mend = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user that it knows."
        if "Invalid Host header" in str(error):
            mend = "It does not know that name of itself: start it with --allowed-hosts."
        raise StoreUnreachable(
            f"MLflow's server at {without_password(uri)} does not let us in ({status}). {mend}"
        ) from error
