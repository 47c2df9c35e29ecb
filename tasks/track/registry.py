"""The model registry: versions, their aliases, and the tags that carry what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tasks.errors import EvidenceBroken, Forbidden, WrongInput
from tasks.posture import Record
from tasks.posture.changes import measured_at
from tasks.track.failures import visitor
from tasks.track.store import abreast, client, patient

if TYPE_CHECKING:
    from tasks.models import StoredModel

RECORD = "redoubt.record."  # one tag for each group of comparable measurements, on the version
EVIDENCE = "redoubt.evidence"  # the SHA-256 of the version's newest evidence
APPENDIX_OF = "redoubt.appendix."  # likewise: the SHA-256 of the appendix on what tells of this evidence
CROWNED = "redoubt.crowned"  # on a version that became champion: the run in which it passed
WRITING, WRITTEN = "redoubt.writing", "-"  # on a model: the run that is being recorded, a colon, its evidence
TRAINED_ON = "redoubt.trained_on"  # on a version: name and digest of the data that it was trained on
PAGE_OF = "redoubt.page."  # likewise: the run that keeps the page, a colon, the SHA-256 of the appendix there
EVIDENCE_OF = "redoubt.evidence."  # with sixteen digits of a SHA-256: the run that keeps this evidence


@dataclass(frozen=True)
class Version:
    """One registered version, as the registry knows it."""

    name: str
    number: int
    run_id: str  # that it was logged in; may be empty for one that others have registered
    source: str  # URI of the logged model
    created_at: float  # seconds since 1970
    tags: Mapping[str, str]

    def records(self) -> list[Record]:
        """What was measured of it: the newest of each comparable group. Raises EvidenceBroken for a changed tag."""
        return [self._record(key, value) for key, value in self.tags.items() if key.startswith(RECORD)]

    def _record(self, key: str, value: str) -> Record:
        try:
            found = Record.model_validate_json(value)
        except ValidationError as error:
            raise EvidenceBroken(
                f"the tag {key} on version {self.number} of {self.name!r} is no record: it was changed, or written by "
                f"another version of Redoubt. Measure it again: redoubt reattack, after the tag was deleted."
            ) from error
        if (found.name, found.version) != (self.name, self.number):
            raise EvidenceBroken(
                f"the tag {key} on version {self.number} of {self.name!r} is the record of version {found.version} of "
                f"{found.name!r}: it was copied. Delete the tag, and measure this version itself: redoubt reattack."
            )
        if measured_at(found) > datetime.now(UTC) + timedelta(days=1):
            raise EvidenceBroken(
                f"the tag {key} on version {self.number} of {self.name!r} says that it was measured in the future "
                f"({found.measured_at}): it was changed, or a clock is wrong. Delete the tag, and measure it again: "
                f"mlflow.MlflowClient().delete_model_version_tag({self.name!r}, '{self.number}', {key!r})"
            )
        return found


def own_source(version: Version) -> str:
    """The URI of the logged model that the version serves; empty where what it serves is no logged model."""
    return version.source if version.source.startswith("models:/m-") else ""


def register(name: str, stored: "StoredModel", tags: Mapping[str, str]) -> int:
    """The number of the new version of the registered model."""
    store = client()
    make_model(name)
    model_id = stored.model_uri.removeprefix("models:/")
    made = store.create_model_version(
        name, source=stored.model_uri, run_id=stored.run_id, tags=dict(tags), model_id=model_id
    )
    return int(made.version)


def make_model(name: str) -> None:
    """Register the model without a version, if it is not there."""
    from mlflow.exceptions import MlflowException

    store = client()
    if store.search_registered_models(_named(name)):
        return
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        raise Forbidden(
            f"a model {name!r} is registered, and {visitor() or 'whoever asks'} may not see it. Whoever may MANAGE it, "
            "or an admin, grants that; or take another name."
        ) from error


def model_facts(name: str) -> tuple[dict[str, int], dict[str, str]]:
    """The versions that bear an alias, and the tags of the registered model; both empty where it is not registered."""
    from mlflow.exceptions import MlflowException

    store, _ = patient(), _named(name)
    try:
        found = store.ask(lambda: store.registry().get_registered_model(name))
    except (MlflowException, Forbidden) as error:
        if isinstance(error, MlflowException) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        if client().search_registered_models(_named(name)):  # MLflow's auth app forbids what is not there as well
            raise
        return {}, {}
    return {alias: int(number) for alias, number in found.aliases.items()}, dict(found.tags)


def aliases(name: str) -> dict[str, int]:
    """The versions that bear an alias, e.g. {"champion": 2}; empty for a model that is not registered."""
    return model_facts(name)[0]


def registered(name: str) -> tuple[Version, ...]:
    """Every version of the registered model in ascending order; none for a model that is not registered."""
    store, found, token = client(), list[Version](), None
    while True:
        page = store.search_model_versions(_named(name), max_results=1000, page_token=token)
        for made in page:
            at = float(made.creation_timestamp) / 1000
            tags = dict(made.tags)
            found.append(Version(name, int(made.version), made.run_id or "", made.source or "", at, tags))
        token = page.token
        if not token:
            return tuple(sorted(found, key=lambda version: version.number))


def names() -> tuple[str, ...]:
    """Every registered model."""
    store, found, token = client(), list[str](), None
    while True:
        page = store.search_registered_models(max_results=1000, page_token=token)
        found += [model.name for model in page]
        token = page.token
        if not token:
            return tuple(sorted(found))


def versions(name: str) -> tuple[int, ...]:
    """The numbers of the registered model's versions, in ascending order; none for a model that is not registered."""
    return tuple(version.number for version in registered(name))


def set_alias(name: str, alias: str, number: int) -> None:
    """Let the alias point at the version."""
    client().set_registered_model_alias(name, alias, str(number))


def tag_version(name: str, number: int, tags: Mapping[str, str]) -> None:
    """Set tags on a version, one after another."""
    store = patient()
    for key, value in tags.items():
        store.ask(partial(store.registry().set_model_version_tag, name, str(number), key, value))


def tag_abreast(name: str, number: int, tags: Mapping[str, str]) -> None:
    """Set tags on a version, in no order."""
    abreast(lambda one: tag_version(name, number, dict([one])), tags.items())


def tag_model(name: str, tags: Mapping[str, str]) -> None:
    """Set tags on the registered model itself, in no order."""
    store = patient()
    abreast(lambda one: store.ask(partial(store.registry().set_registered_model_tag, name, *one)), tags.items())


def _named(name: str) -> str:
    """The filter that finds a registered model. Raises WrongInput for a name that none can have."""
    if not name or set(name) & set("'\"/:"):
        raise WrongInput(
            f"{name!r} is no name of a registered model: it holds a quote, a slash or a colon, or nothing."
        )
    return f"name = '{name}'"
