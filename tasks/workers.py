"""Where work goes that can be shared out: this process, processes of its own, or a cluster of Dask or Ray."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tasks.errors import WrongInput

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

WORKERS = "REDOUBT_WORKERS"
WORDS = re.compile(
    r"(?P<processes>\d+)|threads:(?P<threads>\d+)|(?P<kind>dask|ray)(?::(?P<local>\d+)|=(?P<address>\S+))?"
)
PATIENCE = 5.0  # seconds until a cluster that does not answer is given up
_ALONE = ContextVar("alone", default=False)  # whether this is itself work that was shared out


def workers() -> str:
    """What REDOUBT_WORKERS says; empty where all is computed in this process, as in a worker itself."""
    words = os.environ.get(WORKERS, "").strip()
    return "" if words in ("", "1") or _ALONE.get() else words


@contextmanager
def alone() -> Iterator[None]:
    """Share nothing out meanwhile: this is a worker."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def check_workers(words: str) -> None:
    """Raise WrongInput for words that name no workers, a package that is missing, an address where nobody answers."""
    found = WORDS.fullmatch(words)
    if found is None or "0" in found.groups():
        raise WrongInput(
            f"workers {words!r}: write a number of processes (4), dask or ray for a cluster on this machine (dask:4), "
            "or a cluster's address: dask=tcp://host:8786, ray=ray://host:10001."
        )
    if found["kind"] and find_spec(f"prefect_{found['kind']}") is None:
        raise WrongInput(f"workers {words!r} need a package that is missing. Install redoubt[{found['kind']}].")
    if found["address"]:
        _answers(found["kind"], found["address"])


def task_runner(words: str) -> "TaskRunner[Any]":
    """Prefect's task runner for what REDOUBT_WORKERS may say, not started yet.

    4: processes. threads:2, for a look only: they take turns. dask or dask:4, ray or ray:4: a cluster on this machine.
    dask=tcp://host:8786, ray=ray://host:10001: one that is there. Raises WrongInput as check_workers() does.
    """
    check_workers(words)
    found = WORDS.fullmatch(words)
    assert found is not None
    many, address = (
        int(found["processes"] or found["threads"] or found["local"] or os.cpu_count() or 1),
        found["address"],
    )
    if found["kind"] == "dask":
        from prefect_dask.task_runners import DaskTaskRunner

        if address:
            return DaskTaskRunner(address=address)
        return DaskTaskRunner(cluster_kwargs={"n_workers": many, "threads_per_worker": 1, "dashboard_address": None})
    if found["kind"] == "ray":
        from prefect_ray.task_runners import RayTaskRunner

        own = {} if address else {"num_cpus": many, "include_dashboard": False}
        ray: TaskRunner[Any] = RayTaskRunner(address=address, init_kwargs={"log_to_driver": False} | own)
        return ray
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    return ThreadPoolTaskRunner(many) if found["threads"] else ProcessPoolTaskRunner(many)


def _answers(kind: str, address: str) -> None:
    """Raise WrongInput unless somebody listens at the address."""
    usual = 8786 if kind == "dask" else 10001 if address.startswith("ray://") else 6379
    try:
        place = urlsplit(address if "://" in address else f"tcp://{address}")
        socket.create_connection((place.hostname or "", place.port or usual), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        raise WrongInput(
            f"no {kind.title()} cluster answers at {address} ({error}). Start it, or correct {WORKERS} or --workers."
        ) from error
