"""What an error of MLflow's client says: that nobody answered, that a disk is full, that one may not."""

import errno
import os
import re

from tasks.errors import Forbidden, StoreUnreachable
from tasks.home import home

SILENT = re.compile(  # of MLflow's server, of an object store behind it, of a database that is asked directly
    r"API request to \S+ failed with (timeout )?exception|Connection broken|IncompleteRead"
    r"|Could not connect to the endpoint|timeout on endpoint URL|\b(SlowDown|ServiceUnavailable|RequestTimeout)\b"
    r"|database (table |schema )?is locked|server closed the connection|[Cc]onnection refused|terminating connection"
)
FULL = re.compile(r"database or disk is full|disk I/O error|No space left on device")


def silent(error: BaseException) -> bool:
    """Whether the error says that the store did not answer: nothing was wrong with what was asked, so ask again."""
    from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout

    if isinstance(error, (ConnectionError, Timeout, ChunkedEncodingError)):
        return True
    if full(error):
        return False
    return bool(SILENT.search(str(error)))


def full(error: BaseException) -> bool:
    """Whether the error says that a disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return bool(FULL.search(str(error)))


def understood(error: Exception) -> Exception:
    """The error, if it says that nobody answered. Raises StoreUnreachable for a full disk, and any other as it is."""
    if full(error):
        raise StoreUnreachable(
            f"a disk is full: {_full(error)}. Make room, or name another folder (REDOUBT_HOME), then run the same "
            "command again; what was measured is not measured twice."
        ) from error
    if _status(error) == 403:
        raise Forbidden(
            f"MLflow's server does not let {visitor() or 'us'} do this ({short(error)}). Who may MANAGE the model or "
            "the experiment, or an admin, grants it: READ to look, EDIT to measure, MANAGE to promote."
        ) from error
    if not silent(error):
        raise error
    return error


def _full(error: BaseException) -> str:
    """What says so, without the statement that was to be written, and where."""
    found = FULL.search(str(error))
    place = getattr(error, "filename", None) or home()
    return f"{found.group() if found else error.strerror if isinstance(error, OSError) else error}, at {place}"


def _status(error: BaseException) -> int | None:
    """The HTTP status that MLflow's error stands for."""
    from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException

    return ERROR_CODE_TO_HTTP_STATUS.get(error.error_code) if isinstance(error, MlflowException) else None


def short(error: BaseException | None) -> str:
    """The last words of an error, which say the cause."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else f"...{text[-160:]}"


def sick(failure: BaseException | None) -> bool:
    """Whether the server was there, and said that something in it had failed."""
    return "500 error responses" in str(failure)


def visitor() -> str:
    """As whom MLflow's server is asked; empty where nobody says so, or where a database is asked directly."""
    at_server = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))
    return os.environ.get("MLFLOW_TRACKING_USERNAME", "") if at_server else ""
