"""The servers that an installation names: do they answer, do they ask who calls, and what time is it there."""

import base64
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tasks.health.finding import Finding, failed, fine, skipped, warned

TIMEOUT = 5.0  # seconds that a server has for one answer
TRIES = 6  # before a run gives a busy server up
SLOW, WRONG = 5.0, 60.0  # seconds between two clocks: above the first warn, above the second fail


@dataclass(frozen=True)
class Answer:
    """What a server said: status, body, its clock less ours in seconds (None where it names no date)."""

    status: int
    body: bytes
    ahead: float | None = None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A server by its name and URL, and the variables that name it and the password for it."""

    name: str
    url: str
    variable: str
    credentials: str
    probe: str  # a path that only a known user may read
    health: str  # a path that answers to everybody

    @property
    def shown(self) -> str:
        """The URL without a password in it."""
        return without_password(self.url)

    @property
    def local(self) -> bool:
        """Whether it is on this machine and cannot be reached from another by this name."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def ask(self, path: str, *, headers: Mapping[str, str] | None = None, send: Any = None, method: str = "") -> Answer:
        """What it says to a request, whatever its status. Raises OSError where nothing answers."""
        body = None if send is None else json.dumps(send).encode()
        kind = {"Content-Type": "application/json"} if body else {}
        request = urllib.request.Request(
            _bare(self.url) + path, data=body, headers=kind | dict(headers or {}), method=method or None
        )
        began = time.time()
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return Answer(response.status, response.read(), _ahead(response.headers.get("Date"), began))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), _ahead(error.headers.get("Date"), began))
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{type(error).__name__}: it is no HTTP server, or {self.shown} is no URL") from error


def without_password(url: str) -> str:
    """The URL with its user and password, if it holds any, left out."""
    head, found, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{head}://{place.rpartition('@')[2]}{slash}{path}" if found else url


def basic(words: str) -> dict[str, str]:
    """The header that says who calls; words are user:password, none where they are empty."""
    return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"} if words else {}


def patiently(server: Server, path: str, *, headers: Mapping[str, str]) -> Answer:
    """What it says; one that is slow to answer is asked again. Raises OSError, at once where none is there."""
    for _ in range(TRIES - 1):
        try:
            return server.ask(path, headers=headers)
        except OSError as error:
            if not isinstance(getattr(error, "reason", error), TimeoutError):
                raise
    return server.ask(path, headers=headers)


def reachable(server: Server) -> Finding:
    """Whether it answers, and says that it is well."""
    try:
        answer = server.ask(server.health)
    except OSError as error:
        why = getattr(error, "reason", None) or error
        return failed(f"nothing answers at {server.shown}: {why}", f"start it, or export {server.variable}=<its URL>")
    if answer.status != 200:
        return failed(
            f"{server.shown}{server.health} says {answer.status}",
            f"look at the server's log, or export {server.variable}=<its URL>",
        )
    return fine(server.shown)


def asks_who_calls(server: Server, *, mend: str) -> Finding:
    """Whether it refuses whoever gives no password, and whether the password goes over a line that others read."""
    status = server.ask(server.probe).status
    secure = server.url.startswith("https://")
    if status in (401, 403) and (secure or server.local):
        return fine(f"who gives no password is refused ({status})")
    if status in (401, 403):
        return warned(
            "who gives no password is refused, but passwords go over the network in the clear (http)",
            f"put a proxy with TLS before it and export {server.variable}=https://...",
        )
    if status != 200:
        return failed(f"{server.shown}{server.probe} says {status}", "look at the server's log")
    if server.local:
        return skipped("it answers to anybody, but only on this machine")
    return warned("it answers to anybody who reaches it", mend)


def clock(server: Server) -> Finding:
    """Whether its clock and ours tell the same time."""
    ahead = server.ask(server.health).ahead
    if ahead is None:
        return skipped("the server names no date")
    said = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    mend = "timedatectl set-ntp true   (on whichever of the two is wrong: compare with `date -u`)"
    if abs(ahead) > WRONG:
        return failed(said, mend)
    return warned(said, mend) if abs(ahead) > SLOW else fine(f"within {SLOW:.0f} s of this machine's")


def _bare(url: str) -> str:
    return without_password(url).rstrip("/")


def _ahead(date: str | None, began: float) -> float | None:
    """A Date header says whole seconds: half a second is its mean error, half the round trip its age."""
    try:
        return parsedate_to_datetime(date or "").timestamp() + 0.5 - (began + time.time()) / 2
    except ValueError:
        return None
