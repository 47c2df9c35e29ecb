"""Where an artifact may be read from: a run or a logged model of this store, and nowhere else."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

from tasks.errors import EvidenceBroken
from tasks.track.store import client, patient

if TYPE_CHECKING:
    from mlflow.entities import Run

MOST = 1000  # places that are remembered
RUN = re.compile(r"runs:/(?P<run>[A-Za-z0-9]{1,64})/(?P<path>.*)", re.DOTALL)
MODEL = re.compile(
    r"models:/(?:(?P<id>m-[A-Za-z0-9]{1,64})|(?P<name>[^/@']+)/(?P<number>\d+))(?:/(?P<path>.+))?", re.DOTALL
)


def checked(uri: str) -> str:
    """The same URI, if it names a file or folder inside a run or a logged model of this store.

    What stands in tags and artifacts may be anybody's word: a path that climbs, another scheme (file:, http:, s3:) or
    a link in a folder on this machine would make us read what its author cannot. Raises EvidenceBroken.
    """
    found = RUN.fullmatch(uri) or MODEL.fullmatch(uri)
    path = (found["path"] or "") if found else ""
    if found is None or not _stays(path):
        raise EvidenceBroken(
            f"{uri[:200]!r} is no place in this store: artifacts are read from runs:/RUN/PATH and models:/NAME/3/PATH "
            "only, and a path neither climbs nor hides what it names. Somebody has changed what was stored."
        )
    root = _on_this_machine(uri.removesuffix(f"/{path}") if path else uri)
    linked = _link(root, path) if root else None
    if linked:
        raise EvidenceBroken(
            f"{uri[:200]!r} holds a link ({linked.name!r}), which leads elsewhere. It is not followed."
        )
    return uri


def _stays(path: str) -> bool:
    """Whether a path is plain: relative, downwards, without what another reader would read otherwise."""
    plain, before = path, ""
    while plain != before:  # %252e is %2e once, and a point twice decoded
        plain, before = unquote(plain), plain
    parts = plain.split("/")
    strange = any(not letter.isprintable() or letter in "\\?#" for letter in plain)
    return not strange and ".." not in parts and not plain.startswith(("/", "~"))


@dataclass(frozen=True)
class RunPlace:
    """What a run never changes: its experiment, and the URI below which its files are."""

    experiment: str
    artifacts: str


_PLACES: dict[tuple[str, str], RunPlace] = {}  # by the store and the run; a run's place never changes


def keep_place(run: "Run") -> RunPlace:
    """Where a run stands that the store has just told of, so that it need not be asked again."""
    place = RunPlace(str(run.info.experiment_id), str(run.info.artifact_uri))
    if len(_PLACES) >= MOST:
        _PLACES.clear()
    _PLACES[client().tracking_uri, str(run.info.run_id)] = place
    return place


def place_of_run(run_id: str) -> RunPlace:
    """Where a run stands in this store."""
    known = _PLACES.get((client().tracking_uri, run_id))
    return known or keep_place(client().get_run(run_id))


def location(root: str) -> str:
    """Where the files of runs:/RUN, models:/m-ID or models:/NAME/3 lie; two names of one folder have one location."""
    return _location(client().tracking_uri, root)


@lru_cache(maxsize=MOST)  # a place never moves, and a server with passwords takes 0.2 s to tell it
def _location(uri: str, root: str) -> str:  # noqa: ARG001  # another store, another answer
    found = RUN.fullmatch(f"{root}/x") or MODEL.fullmatch(root)
    assert found is not None
    known = found.groupdict()
    if known.get("run"):
        return place_of_run(known["run"]).artifacts
    if known.get("id"):
        return client().get_logged_model(known["id"]).artifact_location or ""
    store = patient()
    return store.ask(lambda: store.registry().get_model_version_download_uri(known["name"], known["number"])) or ""


def _on_this_machine(root: str) -> Path | None:
    """The folder of a run or of a logged model, where it is one of this machine."""
    parsed = urlparse(location(root))
    return Path(url2pathname(parsed.path)) if parsed.scheme in ("file", "") and parsed.path else None


def _link(root: Path, path: str) -> Path | None:
    """The first link on the way from the root to the path, or below it."""
    way = [root.joinpath(*Path(path).parts[:end]) for end in range(1, len(Path(path).parts) + 1)]
    return next((step for step in (*way, *root.joinpath(path).rglob("*")) if step.is_symlink()), None)
