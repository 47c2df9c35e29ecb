"""One machine that does it all: a Prefect server that lasts, every schedule, and the work, in one command."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from flows.deployments import ROOT, deploy_all, search_path
from tasks.errors import StoreUnreachable, WrongInput
from tasks.home import folder, home
from tasks.track import client

POOL = "redoubt"
PATIENCE = 600.0  # seconds until a server that does not answer is given up
GRACE = 30.0  # seconds that a child is given to end by itself


def serve(*, watch_every: int | None, limit: int, port: int) -> None:
    """Start the server unless PREFECT_API_URL names one, deploy, and work the pool until Ctrl-C or SIGTERM.

    Raises WrongInput for a port on which a Prefect server answers, and StoreUnreachable where a child ends by itself,
    as the server does on a port that something else has taken.
    """
    os.environ["REDOUBT_HOME"] = str(home())  # the children start in another folder
    if os.environ.get("REDOUBT_DATA"):
        os.environ["REDOUBT_DATA"] = os.path.abspath(os.environ["REDOUBT_DATA"])
    client().search_experiments(max_results=1)  # makes MLflow's tables once, before several processes want them
    stop = threading.Event()
    before = {number: signal.signal(number, _setter(stop)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _server(port, stop):
            if not stop.is_set():
                click.echo("\n".join(deploy_all(POOL, watch_every=watch_every)))
            if not stop.is_set():
                _watch_now()
                work(POOL, limit=limit, stop=stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    click.echo("Ended.")


def work(pool: str, *, limit: int, stop: threading.Event) -> None:
    """Run what the pool is given, at most so many runs at the same time, until stop is set."""
    command = [sys.executable, "-m", "flows", "worker", "--pool", pool, "--limit", str(limit)]
    with _child(command, "worker", {"PYTHONPATH": os.pathsep.join([search_path(), os.getcwd()])}) as worker:
        click.echo("Working. Ctrl-C ends it.")
        while not stop.wait(0.5):
            if worker.poll() is not None:
                raise StoreUnreachable(
                    f"the worker ended by itself; its last words are in {folder('prefect')}/worker.log"
                )


@contextmanager
def _server(port: int, stop: threading.Event) -> Iterator[None]:
    """Prefect's server with all its services and its pages, its data in REDOUBT_HOME; PREFECT_API_URL names it."""
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    url = f"http://127.0.0.1:{port}"
    if _healthy(url):
        raise WrongInput(f"a server answers on port {port} already. Use it: PREFECT_API_URL={url}/api, or name --port.")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    click.echo("Starting Prefect's server; the first time takes half a minute.")
    with _child(command, "serve", {"PREFECT_SERVER_UI_API_URL": f"{url}/api"}) as server:
        deadline = time.monotonic() + PATIENCE
        while not _healthy(url) and not stop.wait(0.2):
            if server.poll() is not None or time.monotonic() > deadline:
                raise StoreUnreachable(
                    f"Prefect's server did not start on port {port}; see {folder('prefect')}/serve.log"
                )
        os.environ["PREFECT_API_URL"] = f"{url}/api"
        click.echo(f"Prefect  {url}   For other commands: export PREFECT_API_URL={url}/api")
        try:
            yield
        finally:
            os.environ.pop("PREFECT_API_URL", None)


@contextmanager
def _child(command: list[str], name: str, more: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose words go to a log in REDOUBT_HOME; it and all that it started is ended afterwards."""
    inherited = {key: value for key, value in os.environ.items() if key != "REDOUBT_WEBHOOK_URL"}  # the block has it
    with (folder("prefect") / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            command,
            env=inherited | more,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: the children end in order
        )
    try:
        yield child
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what outlived it
        child.wait()


def _watch_now() -> None:
    """Let the first watch begin at once, not after its interval."""
    from prefect.deployments import run_deployment

    run_deployment("redoubt-watch/watch", timeout=0, as_subflow=False)


def _setter(stop: threading.Event) -> Callable[[int, FrameType | None], None]:
    def handle(_: int, __: FrameType | None) -> None:
        stop.set()

    return handle


def _healthy(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/health", timeout=2).close()
    except OSError:
        return False
    return True
