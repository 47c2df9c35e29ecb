"""The servers that an installation names: do they answer, do they ask who calls, and what time is it there."""

import base64
import http.client
import importlib.metadata
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

from packaging.version import InvalidVersion, Version

from tasks.health.finding import Finding, failed, fine, skipped, warned
from tasks.health.trust import Trust

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

    @property
    def told(self) -> str:
        """The status and the first words of the body."""
        return f"{self.status} {self.body[:40].decode(errors='replace').strip()}".strip()


@dataclass(frozen=True)
class Server:
    """A server by its name and URL, and the variables that name it and the password for it."""

    name: str
    url: str
    variable: str
    credentials: str
    probe: str  # a path that only a known user may read
    health: str  # a path that answers to everybody
    well: bytes  # what it says there
    version: str  # a path that tells its version
    like: str  # what such a URL looks like
    trust: Trust

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
        began = time.time()
        try:
            request = urllib.request.Request(
                _bare(self.url) + path, data=body, headers=kind | dict(headers or {}), method=method or None
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT, context=self.trust.context()) as response:
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
        mend = server.trust.mend(why) or f"start it, or export {server.variable}={server.like}"
        return failed(f"nothing answers at {server.shown}: {why}", mend)
    elsewhere = f"export {server.variable}={server.like}"
    if answer.status == 404 or (answer.status == 200 and answer.body.strip(b'\n "') != server.well):
        return failed(f"{server.shown} is not the URL of {server.name}: {server.health} says {answer.told}", elsewhere)
    if answer.status != 200:
        return failed(f"{server.shown}{server.health} says {answer.status}", f"look at its log, or {elsewhere}")
    return fine(server.shown)


def fits(answer: Answer, package: str) -> Finding:
    """Whether the server that gave this answer and the package here are of one major version, and it not older."""
    ours, told = Version(importlib.metadata.version(package)), answer.body.decode(errors="replace").strip().strip('"')
    try:
        theirs = Version(told)
    except InvalidVersion:
        return skipped(f"the server does not tell its version ({answer.told})")
    said = f"the server is {package} {theirs}, here is {ours}"
    if theirs.major != ours.major:
        return failed(said, f"pip install '{package}=={ours}'   (where the server runs)")
    if theirs < ours:
        return warned(f"{said}: an older server may not know what it is asked", f"pip install '{package}=={ours}'")
    return fine(said)


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
