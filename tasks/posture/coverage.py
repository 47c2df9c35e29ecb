"""coverage(): which entries of the threat catalogue were tested on a model, by what, and which were not."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from tasks.posture.catalogue import (
    BLACK_BOX,
    BY_GRADIENTS,
    BY_QUERIES,
    BY_TRANSFER,
    CATALOGUE,
    TRANSFER,
    Entry,
    entry,
)
from tasks.posture.record import Record, ThreatRecord

ASKING = frozenset({"quick", "standard", "deep"})  # suites that hold an attack without gradients under every norm
HARDENING = "AML.M0003"


class MeasuredBy(BaseModel, frozen=True, extra="forbid"):
    """The newest measurement that tested an entry."""

    threats: tuple[str, ...] = Field(description="labels of the threat models")
    suite: str
    version: int
    at: str = Field(description="ISO 8601, UTC")
    run_id: str

    def __str__(self) -> str:
        return f"suite {self.suite} under {', '.join(self.threats)} on version {self.version}, {self.at[:10]}"


class Covered(BaseModel, frozen=True, extra="forbid"):
    """One entry of the catalogue, and whether it was tested: by what, or why not."""

    entry: Entry
    by: MeasuredBy | None = None
    why_not: str = Field("", description="empty where it was tested")
    claimed: bool = Field(False, description="whether the config names it")

    @property
    def tested(self) -> bool:
        """Whether a number that may be believed stands behind it."""
        return self.by is not None

    def __str__(self) -> str:
        return f"{self.entry.id} {self.entry.name}: {f'tested by {self.by}' if self.by else self.why_not}"


def coverage(records: Sequence[Record], extra: Sequence[str] = ()) -> tuple[Covered, ...]:
    """Each entry of the catalogue, in its order, with what tested it last or why nothing did.

    records are a model's measurements, in any order; a number that is not sound tests nothing, nor does one under no
    bound. extra: ids that the config claims; only evidence from outside tests those that Redoubt does not. Raises
    UnknownPart for an id that is not in the catalogue.
    """
    claimed = {entry(id).id for id in extra}
    newest_first = sorted(records, key=lambda record: (record.version, record.measured_at), reverse=True)
    return tuple(_covered(one, newest_first, one.id in claimed) for one in CATALOGUE)


def _covered(one: Entry, newest_first: Sequence[Record], claimed: bool) -> Covered:
    for record in newest_first:
        labels = tuple(threat.label for threat in record.threats if _tests(one, record, threat))
        if labels:
            facts = {"suite": record.suite, "version": record.version, "run_id": record.run_id}
            by = MeasuredBy(threats=labels, at=record.measured_at, **facts)
            return Covered(entry=one, by=by, claimed=claimed)
    return Covered(entry=one, why_not=_why_not(one, claimed), claimed=claimed)


def _tests(one: Entry, record: Record, threat: ThreatRecord) -> bool:
    """Whether this number says something about the entry, and may be believed."""
    if not (one.measured_by and threat.sound) or threat.name == "unbounded":
        return False
    parts = set(record.suite.split("+"))  # a suite, and a user's own attacks behind it
    if one.id in BY_GRADIENTS:
        return threat.backward_samples > 0
    if one.id in BY_QUERIES:
        return bool(parts & (ASKING | BLACK_BOX))
    if one.id in BY_TRANSFER:
        return threat.replay is not None or bool(parts & TRANSFER)
    return one.id != HARDENING or record.stage.startswith("hardened")


def _why_not(one: Entry, claimed: bool) -> str:
    if one.measured_by:
        return "not run on any version, or no number of it may be believed"
    if one.retired_into:
        return f"retired into {one.retired_into}; Redoubt does not measure this"
    if claimed:
        return "the config claims it, but Redoubt does not measure this: only evidence from outside tests it"
    return "Redoubt does not measure this"
