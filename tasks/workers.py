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
WORDS = re.compile(r"(?:(?P<kind>threads|dask|ray)(?::(?P<local>\d+)|=(?P<address>\S+))?|(?P<processes>\d+))")
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


def task_runner(words: str) -> "TaskRunner[Any]":
    """Prefect's task runner for what REDOUBT_WORKERS may say, not started yet.

    4: processes. threads:2, for a look only: they take turns. dask or dask:4, ray or ray:4: a cluster on this machine.
    dask=tcp://host:8786, ray=ray://host:10001: one that is there. Raises WrongInput for other words, for a package that
    is missing and for an address where nobody answers.
    """
    found = WORDS.fullmatch(words)
    if found is None or "0" in (found["processes"], found["local"]) or words == "threads":
        raise WrongInput(
            f"workers {words!r}: write a number of processes (4), dask or ray for a cluster on this machine (dask:4), "
            "or a cluster's address: dask=tcp://host:8786, ray=ray://host:10001."
        )
    many = int(found["processes"] or found["local"] or os.cpu_count() or 1)
    if found["kind"] == "dask":
        return _dask(found["address"], many)
    if found["kind"] == "ray":
        return _ray(found["address"], many)
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    return ThreadPoolTaskRunner(many) if found["kind"] == "threads" else ProcessPoolTaskRunner(many)


def _dask(address: str | None, many: int) -> "TaskRunner[Any]":
    _installed("prefect_dask", "dask")
    from prefect_dask import DaskTaskRunner

    if address:
        _answers("Dask scheduler", address, 8786)
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(cluster_kwargs={"n_workers": many, "threads_per_worker": 1, "dashboard_address": None})


def _ray(address: str | None, many: int) -> "TaskRunner[Any]":
    _installed("prefect_ray", "ray")
    from prefect_ray import RayTaskRunner

    quiet = {"log_to_driver": False}
    if address:
        _answers("Ray head", address, 10001 if address.startswith("ray://") else 6379)
        return RayTaskRunner(address=address, init_kwargs=quiet)
    return RayTaskRunner(init_kwargs=quiet | {"num_cpus": many, "include_dashboard": False})


def _installed(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise WrongInput(f"workers on {extra.title()} need a package that is missing. Install redoubt[{extra}].")


def _answers(who: str, address: str, port: int) -> None:
    """Raise WrongInput unless somebody listens at the address."""
    try:
        place = urlsplit(address if "://" in address else f"tcp://{address}")
        socket.create_connection((place.hostname or "", place.port or port), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        raise WrongInput(
            f"no {who} answers at {address} ({error}). Start the cluster, or correct {WORKERS} or --workers."
        ) from error
