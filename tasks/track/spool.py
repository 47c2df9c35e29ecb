"""The spool: writes to runs that MLflow did not take, kept in order in a folder until it does."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tasks.errors import StoreUnreachable
from tasks.locks import file_lock

ENTRY, BLOB = "call.json", "blob"
REFUSED = "refused"  # the folder of what the server will not take, each with its answer
ANSWER = "answer.txt"
Perform = Callable[[str, Sequence[Any], Mapping[str, Any]], object]


@dataclass(frozen=True)
class Delivered:
    """What came of one delivery."""

    sent: int  # writes that the server has taken
    kept: frozenset[str]  # runs with writes that still lie in the spool
    refused: Mapping[str, str]  # by run: a write that the server will never take, and why
    failure: BaseException | None = None  # why what is kept could not be sent

    def __str__(self) -> str:
        """The outcome in one line."""
        told = f"{self.sent} delivered"
        told += f", refused: {'; '.join(self.refused.values())}" if self.refused else ""
        return told + (f", those of {len(self.kept)} runs still wait" if self.kept else "")


class Spool:
    """A folder of calls, each under a number that grows. Whole or not at all: a kill loses and doubles nothing.

    Several processes may append and deliver at once. A call leaves the folder when it has been made, so one that was
    made in the moment of a kill is made again: every call that is put here must come to the same when it is repeated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self._entries())

    def runs(self) -> frozenset[str]:
        """The runs that have writes here."""
        return frozenset(run for _, run in self._entries())

    def append(self, run_id: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Keep the call, behind all that is here. Raises StoreUnreachable where the folder cannot be written.

        args and kwargs may hold what JSON can, MLflow's entities, and files as Path, which are copied.
        """
        part = self.folder / f".part-{uuid4().hex}"
        try:
            part.mkdir(parents=True)
            named = {key: _plain(v, part) for key, v in kwargs.items()}
            values = {"name": name, "args": [_plain(v, part) for v in args], "kwargs": named}
            (part / ENTRY).write_text(json.dumps(values, default=str), encoding="utf-8")
            with file_lock(self.folder / "append.lock"):
                number = max((int(path.name.partition("-")[0]) for path, _ in self._entries()), default=0) + 1
                part.rename(self.folder / f"{number:012d}-{run_id}")
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise StoreUnreachable(
                f"MLflow does not answer, and its results cannot be kept in {self.folder} either: {error.strerror}. "
                "Make room there, then run the same command again."
            ) from error

    def deliver(self, perform: Perform, *, silent: Callable[[BaseException], bool]) -> Delivered:
        """Make the calls in order, each taken out once it is made. What fails keeps the later ones of its run waiting.

        silent: whether an error means that the server did not answer. Any other means that it will not take the call,
        which is then put into the folder `refused` with the answer.
        """
        sent, kept, refused = 0, set[str](), dict[str, str]()
        failure: BaseException | None = None
        with file_lock(self.folder / "deliver.lock"):
            for path, run_id in self._entries():
                if run_id in kept:
                    continue
                try:
                    perform(*_call(path))
                except Exception as error:
                    if silent(error):
                        kept.add(run_id)
                        failure = error
                    else:
                        refused[run_id] = self._refuse(path, error)
                    continue
                sent += 1
                _remove(path)
        return Delivered(sent, frozenset(kept), refused, failure)

    def _refuse(self, path: Path, error: Exception) -> str:
        (self.folder / REFUSED).mkdir(exist_ok=True)
        aside = self.folder / REFUSED / path.name
        with suppress(OSError):
            (path / ANSWER).write_text(str(error), encoding="utf-8")
        path.rename(aside)
        return f"{aside}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

    def _entries(self) -> list[tuple[Path, str]]:
        """The calls in order, each with the run that it writes to."""
        try:
            names = sorted(name for name in os.listdir(self.folder) if name[:1].isdigit())
        except FileNotFoundError:
            return []
        return [(self.folder / name, name.partition("-")[2]) for name in names]


def _remove(path: Path) -> None:
    gone = path.with_name(f".done-{uuid4().hex}")
    path.rename(gone)  # in one move, so that a kill leaves no half of it
    shutil.rmtree(gone, ignore_errors=True)


def _call(path: Path) -> tuple[str, list[Any], dict[str, Any]]:
    """The call that an entry keeps."""
    values = json.loads((path / ENTRY).read_text(encoding="utf-8"))
    kwargs = {key: _restored(value, path) for key, value in values["kwargs"].items()}
    return values["name"], [_restored(value, path) for value in values["args"]], kwargs


def _plain(value: Any, into: Path) -> Any:
    """The value as JSON holds it: entities by their fields, files by copies."""
    if isinstance(value, Path):
        number = sum(1 for _ in into.iterdir())
        (into / f"{BLOB}-{number}").mkdir()
        shutil.copyfile(value, into / f"{BLOB}-{number}" / value.name)
        return {"$file": f"{BLOB}-{number}/{value.name}"}
    if type(value).__module__.startswith("mlflow.entities"):
        return {"$entity": type(value).__name__, "fields": {key: _plain(v, into) for key, v in dict(value).items()}}
    if isinstance(value, (list, tuple)):
        return [_plain(item, into) for item in value]
    return value


def _restored(value: Any, at: Path) -> Any:
    if isinstance(value, list):
        return [_restored(item, at) for item in value]
    if not isinstance(value, dict):
        return value
    if "$file" in value:
        return str(at / value["$file"])
    if "$entity" in value:
        from mlflow import entities

        return getattr(entities, value["$entity"])(**{key: _restored(v, at) for key, v in value["fields"].items()})
    return value
