"""The files that a run keeps: written, read again, listed."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from tasks.track.places import MODEL, RUN, checked, location, place_of_run
from tasks.track.store import abreast, client, patient

LARGEST = 64 * 2**20  # bytes of files that are remembered while a run is open


class _Memory:
    """Files of runs that this process has written or read while a run of its own is open: each is asked for once.

    A run's files are written by the process that opened it. What others read later, as `redoubt verify` does, comes
    from the store.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], bytes] = {}  # by the store and the URI of the file
        self._made: dict[tuple[str, str], set[str]] = {}  # by the store and the run: what was written to it, all of it
        self._open, self._size, self._lock = 0, 0, Lock()

    @contextmanager
    def open(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._files.clear()
                    self._made.clear()
                    self._size = 0

    def begin(self, run_id: str) -> None:
        """A run that this process has just made, and that nobody else writes to."""
        key = client().tracking_uri, run_id
        with self._lock:
            self._made[key] = set()

    def note(self, run_id: str, path: str) -> None:
        key = client().tracking_uri, run_id
        with self._lock:
            self._made.get(key, set()).add(path)

    def written(self, run_id: str) -> set[str] | None:
        return self._made.get((client().tracking_uri, run_id))

    def keep(self, uri: str, raw: bytes) -> None:
        key = client().tracking_uri, uri
        with self._lock:
            self._size -= len(self._files.pop(key, b""))
            if self._open and self._size + len(raw) <= LARGEST:
                self._files[key] = raw
                self._size += len(raw)

    def get(self, uri: str) -> bytes | None:
        return self._files.get((client().tracking_uri, uri)) if self._files else None


_MEMORY = _Memory()
remembered, begin = _MEMORY.open, _MEMORY.begin


def log_text(run_id: str, text: str, path: str) -> None:
    """Keep a text as an artifact."""
    log_bytes(run_id, text.encode(), path)


def log_dict(run_id: str, values: Mapping[str, Any], path: str) -> None:
    """Keep a mapping as a JSON artifact."""
    log_bytes(run_id, as_json(values), path)


def as_json(values: Mapping[str, Any]) -> bytes:
    """A mapping as it is kept."""
    return json.dumps(dict(values), indent=2, default=str).encode()


def log_bytes(run_id: str, raw: bytes, path: str) -> None:
    """Keep bytes as an artifact."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / Path(path).name
        file.write_bytes(raw)
        parent = str(Path(path).parent)
        client().log_artifact(run_id, str(file), None if parent == "." else parent)
    _MEMORY.note(run_id, path)
    _MEMORY.keep(f"runs:/{run_id}/{path}", raw)


def log_files(run_id: str, files: Mapping[str, bytes]) -> None:
    """Keep several files as artifacts, by their paths."""
    abreast(lambda one: log_bytes(run_id, one[1], one[0]), files.items())


def load_bytes(uri: str) -> bytes:
    """The bytes of an artifact, e.g. runs:/<run>/<path>. Raises EvidenceBroken for what is no place in this store."""
    known = _MEMORY.get(uri)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory() as scratch:
        if placed(checked(uri)).startswith("models:"):  # of a registered version, whose place only the registry knows
            raw = download(uri, scratch).read_bytes()
        else:
            raw = _fetched(uri, Path(scratch) / "file")
    if uri.startswith("runs:/"):
        _MEMORY.keep(uri, raw)
    return raw


def _fetched(uri: str, into: Path) -> bytes:
    """The bytes of a file whose place is known, without asking first whether it is a folder, as download() does."""
    store = patient()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder, _, name = placed(uri).rpartition("/")
    fetch: Any = get_artifact_repository(folder)._download_file
    store.ask(lambda: fetch(name, str(into)))
    return into.read_bytes()


def download(uri: str, into: str) -> Path:
    """The folder or file of an artifact, e.g. of a logged model, copied below the folder `into`.

    Raises EvidenceBroken for what is no place in this store.
    """
    store = patient()
    import mlflow

    def copied() -> str:
        return mlflow.artifacts.download_artifacts(artifact_uri=placed(uri), dst_path=tempfile.mkdtemp(dir=into))

    checked(uri)
    return Path(store.ask(copied))


def placed(uri: str) -> str:
    """Where runs:/<run>/<path> or models:/m-ID/<path> lies; any other URI as it is.

    MLflow asks the server where, and what models the run has logged, for each file anew; neither place ever changes.
    """
    run, model = RUN.fullmatch(uri), MODEL.fullmatch(uri)
    if run:
        return f"{place_of_run(run['run']).artifacts.rstrip('/')}/{run['path']}"
    if model and model["id"]:
        return f"{location('models:/' + model['id']).rstrip('/')}/{model['path'] or ''}"
    return uri


def artifacts(run_id: str, folder: str = "") -> tuple[str, ...]:
    """The paths of every file that the run keeps below the folder."""
    found: list[str] = []
    for path, is_folder in _listed(run_id, folder):
        found += artifacts(run_id, path) if is_folder else [path]
    return tuple(sorted(found))


def written(run_id: str) -> tuple[str, ...]:
    """The paths of every file that this process has written to a run of its own; of another run, all that it keeps."""
    known = _MEMORY.written(run_id)
    return artifacts(run_id) if known is None else tuple(sorted(known))


def keeps(run_id: str, path: str) -> bool:
    """Whether the run keeps a file of that path."""
    return (path, False) in _listed(run_id, path.rpartition("/")[0])


def _listed(run_id: str, folder: str) -> list[tuple[str, bool]]:
    """The path of each entry of a folder of the run, and whether it is a folder."""
    store = patient()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = get_artifact_repository(place_of_run(run_id).artifacts)  # the client would look for logged models as well
    return [(entry.path, bool(entry.is_dir)) for entry in store.ask(lambda: place.list_artifacts(folder or None))]
