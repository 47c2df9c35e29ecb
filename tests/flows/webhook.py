"""A webhook that keeps what it is told, and patience with those who tell it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def listening(reply: Callable[[Any], Any] | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a webhook on this machine, and what was posted to it so far.

    It answers with what `reply` makes of each post, or else with nothing.
    """
    heard: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if reply is None:
                self.send_response(204)
                self.end_headers()
                return
            answer = json.dumps(reply(heard[-1])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        server.server_close()


def until(holds: Callable[[], Any], what: str, seconds: float) -> Any:
    """What holds() returned when it was true. Raises AssertionError where that takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited {seconds:g} s in vain: {what}")
