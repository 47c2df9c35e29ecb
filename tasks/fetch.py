"""Find the model that a name means, wherever it comes from, and load it without running what came with it."""

import getpass
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import EvidenceBroken, ModelRejected, StoreUnreachable, WrongInput
from tasks.lookup import REGISTERED, imported
from tasks.parts import vouched
from tasks.posture.changes import measured_at
from tasks.redact import veiled
from tasks.track import (
    STORED,
    WEIGHTS,
    Version,
    aliases,
    download,
    keep_stored,
    keeps,
    load_bytes,
    load_stored,
    log_bytes,
    open_stage,
    own_source,
    registered,
    set_tags,
)

if TYPE_CHECKING:
    from torch import nn

    from tasks.models import StoredModel

PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")  # what torch.save is told to write


@task(name="fetch", cache_policy=NO_CACHE)
@veiled
def fetch_model(name: str, *, run_id: str, shape: Sequence[int] = ()) -> "tuple[StoredModel, int | None]":
    """The model that the name means, kept in a stage of the run, and its number where it is a registered version.

    shape: of one sample, by which a pickle that the user has consented to becomes a graph.
    """
    if name.startswith("models:"):
        version = version_named(name)
        stage = open_stage(run_id, f"version-{version.number}")
        return fetch_version(version, run_id=stage, shape=shape), version.number
    stage = open_stage(run_id, "model")
    if ":" in name:
        return fetch_function(name, run_id=stage), None
    return fetch_file(Path(name), run_id=stage, shape=shape), None


def check_named(name: str) -> None:
    """Raise WrongInput for the name of a model that is not there. Nothing is loaded yet."""
    if name.startswith("models:"):
        version_named(name)
    elif ":" in name:
        imported("model", name)
    elif Path(name).suffix.lower() not in (*PICKLED, ".onnx") or not Path(name).is_file():
        raise no_file(name)


def no_file(name: str) -> WrongInput:
    """The error for a name that means no model; it tells apart what was nearly right."""
    if Path(name).suffix.lower() in (*PICKLED, ".onnx"):
        return WrongInput(f"{name!r} does not exist. Name an ONNX file, models:/NAME/3, or 'package.module:function'.")
    found = REGISTERED.fullmatch(f"models:/{name}") or REGISTERED.fullmatch(f"models:/{name}/1")
    held: dict[str, int] = {}
    if found:
        with suppress(StoreUnreachable):  # nothing is registered there, then
            held = aliases(found["name"]) if registered(found["name"]) else {}
    if found and held:
        there = [f"models:/{found['name']}@{alias}" for alias in held]
        asked = f"models:/{name}"
        return WrongInput(
            f"{name!r} is no file. For the registered model write {asked if asked in there else there[0]}."
        )
    return WrongInput(
        f"{name!r} is no ONNX file. Name one, or models:/NAME/3, or 'package.module:function' for a function "
        "that returns the model with its weights."
    )


def network_of(stored: "StoredModel") -> "nn.Module":
    """The model behind a StoredModel, in evaluation mode. Raises EvidenceBroken where its file was changed."""
    from tasks.models import device_of, from_bytes

    network = from_bytes(stored.model, load_bytes(stored.weights), stored.digest, stored.kind)
    return network.to(device_of("auto"))


def version_named(name: str) -> Version:
    """The registered version that models:/NAME/3 or models:/NAME@champion means. Raises WrongInput."""
    found = REGISTERED.fullmatch(name)
    if found is None:
        raise WrongInput(f"{name!r} names no registered model. Write models:/NAME/3 or models:/NAME@champion.")
    number = int(found["number"]) if found["number"] else aliases(found["name"]).get(found["alias"])
    known = {version.number: version for version in registered(found["name"])}  # later: the alias may be brand-new
    if number not in known:
        held = aliases(found["name"])
        names = [*map(str, known), *(f"@{alias}" for alias in held)]
        raise WrongInput(f"{name!r} is not registered. Known of {found['name']!r}: {', '.join(names) or 'none'}.")
    return known[number]


def fetch_version(version: Version, *, run_id: str = "", shape: Sequence[int] = ()) -> "StoredModel":
    """A registered version as a stored model, whoever has trained it.

    With run_id it is kept in that run as what the run is about. Raises ModelRejected where loading would run
    code, and EvidenceBroken where the weights are not those that were evaluated.
    """
    stored = _ours(version) or _kept(version) or _foreign(version, run_id, shape)
    recorded = version.tags.get("redoubt.weights_digest", stored.digest)
    if recorded != stored.digest:
        raise EvidenceBroken(
            f"the weights of models:/{version.name}/{version.number} hash to {stored.digest}, but {recorded} was "
            "evaluated: the file or the registry was changed. Register what you trust as a new version."
        )
    stored = stored.model_copy(update={"stage": f"version-{version.number}", "run_id": run_id or stored.run_id})
    if run_id:
        keep_stored(run_id, stored)
    return stored


def fetch_file(path: Path, *, run_id: str, shape: Sequence[int] = ()) -> "StoredModel":
    """An ONNX file as a stored model, kept in the run; or a pickle that was consented to, as a graph.

    Raises WrongInput where there is none, and ModelRejected for a pickle without consent.
    """
    from tasks.models import StoredModel, digest_of

    if path.suffix.lower() in PICKLED and path.is_file():
        return _unpickled(path.read_bytes(), path.name, path.stem, run_id, shape)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        raise no_file(str(path))
    raw = path.read_bytes()
    log_bytes(run_id, raw, "weights/model.onnx")
    uri = f"runs:/{run_id}/weights/model.onnx"
    stored = StoredModel(
        stage=path.stem, model=path.name, weights=uri, digest=digest_of(raw), run_id=run_id, model_uri="", kind="onnx"
    )
    keep_stored(run_id, stored)
    return stored


def _unpickled(raw: bytes, where: str, stage: str, run_id: str, shape: Sequence[int]) -> "StoredModel":
    """The graph of a pickle that the user has consented to, kept in the run, with who consented to what and when.

    The bytes that were hashed are those that are loaded. Raises ModelRejected without consent.
    """
    from tasks.models import INSTEAD, StoredModel, consented, digest_of, graph_of

    digest = consented(raw, where, INSTEAD)
    if not run_id or not shape:
        raise ModelRejected(f"{where} is a pickle that no run has loaded yet. Evaluate it once: redoubt evaluate.")
    graph = graph_of(raw, where, shape)
    set_tags(run_id, {"redoubt.consent": digest, "redoubt.consent.by": _user(), "redoubt.consent.at": _now()})
    log_bytes(run_id, graph, "weights/model.pt2")
    uri = f"runs:/{run_id}/weights/model.pt2"
    stored = StoredModel(
        stage=stage, model=where, weights=uri, digest=digest_of(graph), run_id=run_id, model_uri="", kind="graph"
    )
    keep_stored(run_id, stored)
    return stored


def _user() -> str:
    """Who runs this, as the operating system says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fetch_function(name: str, *, run_id: str) -> "StoredModel":
    """What 'package.module:function' returns, its weights kept in the run. Raises UnknownPart or ModelRejected."""
    from tasks.models import StoredModel, build, digest_of, to_bytes

    raw = to_bytes(build(name))
    log_bytes(run_id, raw, WEIGHTS)
    uri, stage = f"runs:/{run_id}/{WEIGHTS}", name.rpartition(":")[2]
    stored = StoredModel(stage=stage, model=name, weights=uri, digest=digest_of(raw), run_id=run_id, model_uri="")
    keep_stored(run_id, stored)
    return stored


def load_model(name: str, shape: Sequence[int] = ()) -> "nn.Module":
    """A model by 'package.module:function', models:/NAME/3, models:/NAME@champion, or the path of an ONNX file.

    Also a pickle that the user has consented to: shape is that of one sample. Raises ModelRejected without consent.
    """
    from tasks.models import INSTEAD, build, consented, from_exported, from_onnx, graph_of

    if name.startswith("models:"):
        return network_of(fetch_version(version_named(name))).cpu()
    if Path(name).suffix.lower() in PICKLED and Path(name).is_file():
        raw = Path(name).read_bytes()
        consented(raw, name, INSTEAD)
        return from_exported(graph_of(raw, name, shape))
    if ":" in name:
        return build(name)
    if not name.lower().endswith(".onnx") or not Path(name).is_file():
        raise no_file(name)
    return from_onnx(Path(name).read_bytes())


def _ours(version: Version) -> "StoredModel | None":
    """The version as it was stored when Redoubt trained it; None for one from elsewhere."""
    if not version.run_id or not keeps(version.run_id, STORED):
        return None
    stored = load_stored(version.run_id)
    return _vouched(stored) if stored.model_uri == version.source else None


def _kept(version: Version) -> "StoredModel | None":
    """The version as its newest evaluation kept it, where that holds its weights; None otherwise.

    Raises EvidenceBroken where the version serves another model now.
    """
    newest = max(version.records(), key=measured_at, default=None)
    stored = load_stored(newest.run_id) if newest else None
    if stored is not None and stored.model_uri != own_source(version):
        raise EvidenceBroken(
            f"models:/{version.name}/{version.number} serves {version.source!r}, but "
            f"{stored.model_uri or 'a model from elsewhere'} was evaluated: the registry was changed. Register what "
            "you trust as a new version."
        )
    return _vouched(stored) if stored and stored.weights.startswith("runs:/") else None


def _vouched(stored: "StoredModel") -> "StoredModel":
    """The stored model, if what builds it is a network of ours or vouched for. Raises PartRefused."""
    if stored.kind == "weights":
        vouched(stored.model, f"model.json of run {stored.run_id}")
    return stored


def _foreign(version: Version, run_id: str, shape: Sequence[int]) -> "StoredModel":
    """A version that others have logged: its exported graph or ONNX file, found without running anything.

    Weights that lie beside an ONNX file are put back into it, and the whole is kept in the run.
    """
    from tasks.models import StoredModel, bytes_in, digest_of, found_in, pickle_in

    where = f"models:/{version.name}/{version.number}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = download(where, scratch)
        pickled = pickle_in(folder)
        if pickled is not None:
            made = _unpickled(pickled, where, f"version-{version.number}", run_id, shape)
            return made.model_copy(update={"model_uri": own_source(version)})
        try:
            kind, raw = bytes_in(folder)
        except ModelRejected as refused:
            raise ModelRejected(f"{where} is not loaded: {refused}") from refused
        file = found_in(folder)[1]
        uri, whole = f"{where}/{file.relative_to(folder).as_posix()}", raw == file.read_bytes()
    if not whole:
        if not run_id:
            raise ModelRejected(
                f"{where} keeps its weights beside the file. Evaluate it once: redoubt evaluate {where}"
            )
        log_bytes(run_id, raw, "weights/model.onnx")
        uri = f"runs:/{run_id}/weights/model.onnx"
    return StoredModel(
        stage=f"version-{version.number}",
        model=where,
        weights=uri,
        digest=digest_of(raw),
        run_id=version.run_id,
        model_uri=own_source(version),
        kind=kind,
    )
