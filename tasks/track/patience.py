"""Patience: a client that waits for an MLflow that does not answer, and keeps what was to be written meanwhile."""

import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.request import urlopen
from uuid import uuid4

from tasks.errors import StoreUnreachable, WrongInput
from tasks.health.servers import without_password
from tasks.health.trust import MLFLOW
from tasks.home import folder
from tasks.track.failures import short, sick, silent, understood
from tasks.track.spool import Delivered, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
log = logging.getLogger("redoubt")

PATIENCE = 300.0  # seconds; REDOUBT_PATIENCE names another number
SPOOLED = (  # to a run that this process alone writes to, and the same when it is repeated
    *("log_batch", "log_dict", "log_text", "log_artifact", "log_inputs"),
    "set_terminated",
)
ASKED = "redoubt.asked"  # a tag that tells whether what was asked for was made, where the answer was lost
TWIN = re.compile(r"UNIQUE constraint failed|duplicate key value|Duplicate entry")
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries; each pause is twice the one before


def patience() -> float:
    """How many seconds a server that does not answer is waited for. Raises WrongInput for what is no such number."""
    words = os.environ.get("REDOUBT_PATIENCE") or str(PATIENCE)
    with suppress(ValueError):
        if 0 <= float(words) < float("inf"):
            return float(words)
    raise WrongInput(f"REDOUBT_PATIENCE={words}: write a number of seconds, e.g. 300, or leave it out.")


def spool_of(uri: str) -> Spool:
    """The spool of a server, by its address without a password in it."""
    bare = without_password(uri).rstrip("/")
    return Spool(folder("spool") / hashlib.sha256(bare.encode()).hexdigest()[:16])


class Patient:
    """MLflow's client, patient. It has every method of that.

    What is read, registered or made waits until the server answers, at most REDOUBT_PATIENCE seconds; what was made
    without an answer is looked for before it is made again. What is written to a run does not wait: it goes to the
    spool, in order, and is delivered before anything else is asked. Tags and aliases of the registry wait as well,
    because others may change them meanwhile, and a late one would undo that.
    """

    def __init__(self, client: "MlflowClient", uri: str) -> None:
        self._client, self.uri = client, without_password(uri)  # as it is shown, and asked for its health
        client.log_inputs = _once_more(client.log_inputs)  # type: ignore[method-assign]
        self.left_over = Delivered(0, frozenset(), {})  # what came of the writes that earlier runs had left
        self.spool = spool_of(uri) if uri.startswith(("http://", "https://")) else None
        self._store = "the store" if self.spool is None else f"MLflow at {self.uri}"
        self._mine: set[str] = set()  # the runs for which this process has put writes into the spool
        self._pause, self._next = FIRST_PAUSE, 0.0
        self._lost = False  # it did not answer within the patience: until it does, one try must do
        self._waiting = False  # somebody was told that it is waited for
        self._spooling = RLock()  # several threads may write at the same time

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if not callable(call):
            return call
        if name in SPOOLED and self.spool is not None:
            return functools.partial(self._write, name)
        if name in MADE:
            return functools.partial(self._make, name)
        return functools.wraps(call)(lambda *args, **kwargs: self.ask(lambda: call(*args, **kwargs)))

    def registry(self) -> Any:
        """MLflow's client of the registry alone, to be asked through ask().

        The whole client asks the server before each tag whether the model is a prompt.
        """
        return self._client._get_registry_client()  # type: ignore[no-untyped-call]

    def ask(self, call: Callable[[], T]) -> T:
        """What the call returns, after whatever this process has in the spool. Raises StoreUnreachable."""
        failure: BaseException | None = None
        for _ in self._tries():
            try:
                failure = self._deliver_mine()
                if failure is None:
                    answer = call()
                    self._lost = self._waiting = False
                    return answer
                self._waiting = True  # which was said when the first write was spooled
            except Exception as error:
                failure = understood(error)
                if not self._waiting and not self._lost:
                    self._waiting = True
                    log.warning(
                        "%s does not answer (%s). It is waited for, at most %g seconds (REDOUBT_PATIENCE).",
                        self._store,
                        short(failure),
                        patience(),
                    )
        self._lost, self._waiting = True, False
        raise self._gave_up(failure) from failure

    def deliver(self) -> Delivered:
        """One try to deliver all that the spool holds, whoever put it there."""
        if self.spool is None or not len(self.spool):
            return Delivered(0, frozenset(), {})
        return self.spool.deliver(
            lambda name, args, kwargs: getattr(self._client, name)(*args, **kwargs), silent=silent
        )

    def settle(self) -> None:
        """Wait until all that this process has written is delivered. Raises StoreUnreachable past the patience."""
        if self.spool is not None and self._mine:
            self.ask(lambda: None)

    def hurry(self) -> None:
        """Wait no longer than one try: whoever asked is ending."""
        self._lost = True

    def _write(self, what: str, run_id: str, /, *args: Any, **kwargs: Any) -> None:
        """Write to a run, now or from the spool."""
        assert self.spool is not None
        if what == "log_artifact":
            args = (Path(args[0]), *args[1:])
        if what == "set_terminated":
            kwargs = {"end_time": int(time.time() * 1000)} | kwargs
        self._deliver_mine(soon=True)
        failure: Exception | None = None
        if not self._mine:
            try:
                getattr(self._client, what)(run_id, *(str(a) if isinstance(a, Path) else a for a in args), **kwargs)
                return
            except Exception as error:
                failure = understood(error)
        with self._spooling:
            if failure and not self._mine:  # the first of those that write at the same time
                log.warning(
                    "%s does not answer (%s). What is to be logged is kept in %s, and delivered when it does, at the "
                    "latest by `redoubt deliver`.",
                    self._store,
                    short(failure),
                    self.spool.folder,
                )
                self._later()
            self._mine.add(run_id)
            self.spool.append(run_id, what, (run_id, *args), kwargs)

    def _deliver_mine(self, *, soon: bool = False) -> BaseException | None:
        """Deliver the spool if this process has anything in it; why its own could not be delivered, or None.

        soon: only if the last try is long enough ago.
        """
        with self._spooling:
            if not self._mine or (soon and time.monotonic() < self._next):
                return None
            return self._delivered_mine()

    def _delivered_mine(self) -> BaseException | None:
        done = self.deliver()
        if done.refused:
            told = f"MLflow at {self.uri} refuses what was kept for it: {'; '.join(done.refused.values())}"
            log.warning(told)
            if self._mine & done.refused.keys():
                raise StoreUnreachable(told)
        if done.kept & self._mine:
            self._later()
            return done.failure
        log.warning("MLflow at %s answers again: %s.", self.uri, done)
        self._mine.clear()
        self._pause, self._next = FIRST_PAUSE, 0.0
        return None

    def _later(self) -> None:
        self._next = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _make(self, what: str, /, *args: Any, **kwargs: Any) -> Any:
        """Make something once: a try whose answer was lost may have made it."""
        make, find = getattr(self._client, what), MADE[what]
        token, tried = uuid4().hex, False
        if what in TAGGED and self.spool is not None:  # a database that is asked directly has made it or has not
            kwargs["tags"] = dict(kwargs.get("tags") or {}) | {ASKED: token}

        def once() -> Any:
            nonlocal tried
            if tried and (found := find(self._client, token, *args, **kwargs)) is not None:
                return found
            tried = True
            try:
                return make(*args, **kwargs)
            except Exception as error:
                if _is_there(error) and (found := find(self._client, token, *args, **kwargs)) is not None:
                    return found  # by us, or by another process at the same moment
                raise

        return self.ask(once)

    def _tries(self) -> Iterator[None]:
        """A try at once, then one whenever the server answers, until the patience is over."""
        deadline, pause = time.monotonic() + (0 if self._lost else patience()), FIRST_PAUSE
        yield
        while time.monotonic() < deadline and not self._lost:  # another thread may have lost it meanwhile
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)
            if self.spool is None or _answers(self.uri):
                yield

    def _gave_up(self, failure: BaseException | None) -> StoreUnreachable:
        waited = f"{patience():g} seconds"
        if self.spool is None:
            return StoreUnreachable(
                f"the store {self.uri} was locked for {waited}: {short(failure)}. See which process holds it, then "
                "run the same command again."
            )
        count = len(self.spool)
        kept = (
            f" {count} writes are kept in {self.spool.folder}; when it answers again, `redoubt deliver` delivers them."
            if count
            else ""
        )
        why = " Its own log says why: look at the store behind it, which may deny access." if sick(failure) else ""
        return StoreUnreachable(
            f"MLflow at {self.uri} has not answered for {waited} (REDOUBT_PATIENCE): {short(failure)}.{why}{kept}"
        )


def _find_run(client: "MlflowClient", token: str, experiment_id: str, *_: Any, **__: Any) -> Any:
    return next(iter(client.search_runs([experiment_id], f"tags.`{ASKED}` = '{token}'")), None)


def _find_logged_model(client: "MlflowClient", token: str, experiment_id: str, *_: Any, **__: Any) -> Any:
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{ASKED}` = '{token}'")
    return next(iter(found), None)


def _find_version(client: "MlflowClient", token: str, name: str, *_: Any, **__: Any) -> Any:
    return next(iter(client.search_model_versions(f"name = '{name}' and tags.`{ASKED}` = '{token}'")), None)


def _find_model(client: "MlflowClient", _token: str, name: str, *_: Any, **__: Any) -> Any:
    return next(iter(client.search_registered_models(f"name = '{name}'")), None)


def _find_experiment(client: "MlflowClient", _token: str, name: str, *_: Any, **__: Any) -> Any:
    found = client.get_experiment_by_name(name)
    return None if found is None else found.experiment_id


MADE: dict[str, Callable[..., Any]] = {
    "create_run": _find_run,
    "create_logged_model": _find_logged_model,
    "create_model_version": _find_version,
    "create_registered_model": _find_model,
    "create_experiment": _find_experiment,
}
TAGGED = ("create_run", "create_logged_model", "create_model_version")


def _once_more(call: Callable[..., T]) -> Callable[..., T]:
    """The call, repeated where another process makes the same row at that moment: this time MLflow finds it.

    So it is with the dataset of two evaluations that start at once; nothing of the first try is kept.
    """

    @functools.wraps(call)
    def once_more(*args: Any, **kwargs: Any) -> T:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not TWIN.search(str(error)):
                raise
            return call(*args, **kwargs)

    return once_more


def _is_there(error: Exception) -> bool:
    return getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS"


def _answers(uri: str) -> bool:
    try:
        urlopen(f"{uri.rstrip('/')}/health", timeout=5, context=MLFLOW.context()).close()
    except (OSError, ValueError):
        return False
    return True
