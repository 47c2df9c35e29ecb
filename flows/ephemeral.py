"""Prefect's API for the length of one run, in a process of its own that boots while the run's libraries load."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.errors import StoreUnreachable
from tasks.home import folder
from tasks.reserve import TEMPORARY

PATIENCE = 120.0  # seconds until a server that does not answer is given up
DRAIN = 0.5  # seconds that the server is left alone at the end: it writes task runs every second


@contextmanager
def prefect_api() -> Iterator[Callable[[], None]]:
    """Start a server on a free local port and set PREFECT_API_URL; call what it yields before the first flow.

    Where PREFECT_API_URL names a server already, nothing is started. Raises StoreUnreachable.
    """
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
            server.wait(20)
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
        os.kill(os.getpid(), 15)

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
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise StoreUnreachable(f"Prefect's temporary server did not start; its last words are in {log}.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
