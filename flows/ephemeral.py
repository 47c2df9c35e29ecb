"""Prefect's API for the length of one run, in a process of its own that boots while the run's libraries load."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.errors import StoreUnreachable, WrongInput
from tasks.home import folder
from tasks.reserve import TEMPORARY

PATIENCE = "REDOUBT_PREFECT_PATIENCE"  # the environment variable: seconds until a server that is silent is given up
USUAL = 120.0
SOON = 5.0  # seconds of waiting after which a person is told what for
DRAIN = 0.5  # seconds that the server is left alone at the end: it writes task runs every second
GRACE = 20.0  # seconds that the server has to end


@contextmanager
def prefect_api() -> Iterator[Callable[[], None]]:
    """Start a server on a free local port and set PREFECT_API_URL; call what it yields before the first flow.

    Where PREFECT_API_URL names a server already, nothing is started. Raises StoreUnreachable, and without having
    started anything where MLflow's server does not answer.
    """
    from tasks.track import require_mlflow

    require_mlflow()
    named = os.environ.get("PREFECT_API_URL")
    if named:
        from tasks.doctor import require_prefect

        yield lambda: require_prefect(named)
        return
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    log = folder("prefect") / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.ephemeral", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run; the server ends after it, with everything written
        )
    os.environ |= {"PREFECT_API_URL": url, TEMPORARY: "1"}
    try:
        yield lambda: _wait(url, server, str(log))
    finally:
        _hand_over()
        for name in ("PREFECT_API_URL", TEMPORARY):
            os.environ.pop(name, None)
        server.terminate()
        try:
            server.wait(GRACE)
        except subprocess.TimeoutExpired:
            server.kill()


def serve(port: int) -> None:
    """Prefect's API on the port, until this process or the one that started it ends."""
    import uvicorn
    from prefect.server.api.server import create_app

    _end_with_parent()
    uvicorn.run(create_app(ephemeral=True), host="127.0.0.1", port=port, log_level="error")


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)  # a server that does not end as it is told is nobody's any more
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _hand_over() -> None:
    """Send what Prefect still holds in this process, and leave the server the time to write it."""
    if "prefect.main" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)
    time.sleep(DRAIN)


def _wait(url: str, server: "subprocess.Popen[bytes]", log: str) -> None:
    began, patience, told = time.monotonic(), _patience(), False
    while (waited := time.monotonic() - began) < patience and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
        if waited > SOON and not told:
            sys.stderr.write("starting Prefect ...\n")
            told = True
    words, by_hand = f"its last words are in {log}", "start one (prefect server start) and set PREFECT_API_URL to it"
    if server.poll() is not None:
        ended = f"Prefect's temporary server ended by itself with code {server.returncode}"
        raise StoreUnreachable(f"{ended}; {words}. Run the command again, or {by_hand}.")
    raise StoreUnreachable(
        f"Prefect's temporary server did not answer within {patience:g} s, though its process lives; {words}. On "
        f"a slow machine give it longer, e.g. {PATIENCE}={2 * patience:g}, or {by_hand}."
    )


def _patience() -> float:
    """Seconds. Raises WrongInput for what is no positive number."""
    given = os.environ.get(PATIENCE) or str(USUAL)
    try:
        if 0 < float(given) < float("inf"):
            return float(given)
    except ValueError:
        pass
    raise WrongInput(f"{PATIENCE}={given!r} is no number of seconds. Write e.g. {PATIENCE}=300.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
