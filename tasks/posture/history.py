"""History: what was measured of a registered model, version by version. Only what may be compared stands together."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from pydantic import BaseModel, Field

from tasks.errors import WrongInput
from tasks.posture.changes import Change, Kind, across_versions, floors, measured_at, same_version
from tasks.posture.mending import catch_up, first_time
from tasks.posture.record import Record, ThreatRecord
from tasks.posture.sentences import numbered, sentences

FORMULA = tuple("=+-@\t\r\n'")  # a spreadsheet takes a cell that begins so for a formula; ' hides itself


class Group(BaseModel, frozen=True, extra="forbid"):
    """Measurements that may be compared with each other: of each version the newest one, by version."""

    key: str = Field(description="that its records share")
    records: tuple[Record, ...] = Field(min_length=1)

    @property
    def newest(self) -> Record:
        """The one that was measured last."""
        return max(self.records, key=measured_at)

    @property
    def versions(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(record.version for record in self.records)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the threat models, which are the same in every record."""
        return tuple(threat.label for threat in self.newest.threats)

    def by_version(self) -> dict[int, Record]:
        """Each version's record."""
        return {record.version: record for record in self.records}

    def series(self, place: int, versions: Sequence[int]) -> list[ThreatRecord | None]:
        """The numbers under the threat model at that place, one for each of the versions; None where there is none."""
        known = self.by_version()
        return [known[version].threats[place] if version in known else None for version in versions]

    @property
    def title(self) -> str:
        """What it was measured with, e.g. suite standard (1a2b3c4d) on 500 samples of digits test, seed 0."""
        record = self.newest
        seeds = f"seed {record.seed}" if record.seeds == 1 else f"{record.seeds} seeds from {record.seed}"
        warm = ", begun at earlier examples" if record.warm else ""
        where = f"{record.samples:,} samples of {record.data} {record.split} ({record.data_digest[:8]})"
        return f"suite {record.suite} ({record.suite_digest[:8]}) on {where}, {seeds}{warm}"


class History(BaseModel, frozen=True, extra="forbid"):
    """All that was measured of a registered model. The first group, which holds the newest measurement, is the main."""

    name: str = Field(description="of the registered model")
    aliases: dict[str, int] = Field(description="e.g. {champion: 3}")
    registered: tuple[int, ...] = Field(description="every version in the registry, ascending")
    groups: tuple[Group, ...] = Field(description="the most recently measured first")
    changes: tuple[Change, ...] = Field(description="by version")
    notes: tuple[str, ...] = Field(description="what may matter to a reader of the main group, a sentence each")

    @classmethod
    def of(
        cls, name: str, records: Sequence[Record], aliases: Mapping[str, int], registered: Sequence[int]
    ) -> "History":
        """The history that these records tell. Raises WrongInput for a record of another model, or without a time."""
        stranger = next((record.name for record in records if record.name != name), None)
        if stranger is not None:
            raise WrongInput(f"a record of {stranger!r} stands among those of {name!r}. Give records of one model.")
        ordered = sorted(records, key=lambda record: (measured_at(record), record.version, record.run_id))
        groups = _grouped(ordered)
        of_version: dict[int, list[Record]] = {}
        for record in ordered:
            of_version.setdefault(record.version, []).append(record)
        again = [change for group in of_version.values() for change in same_version(group)]
        steps = across_versions([group.records for group in groups])
        return cls(
            name=name,
            aliases=dict(aliases),
            registered=tuple(sorted(set(registered))),
            groups=groups,
            changes=tuple(sorted([*steps, *again], key=lambda change: change.version)),
            notes=(*_doubted(aliases.get("champion"), ordered), *_notes(groups, ordered, registered)),
        )

    @property
    def main(self) -> Group | None:
        """The group of the newest measurement; None where nothing was measured."""
        return self.groups[0] if self.groups else None

    @property
    def versions(self) -> tuple[int, ...]:
        """Those that are registered, and those that the main group holds."""
        return tuple(sorted({*self.registered, *(self.main.versions if self.main else ())}))

    @property
    def unmeasured(self) -> tuple[int, ...]:
        """Registered versions without a measurement in the main group."""
        known = set(self.main.versions if self.main else ())
        return tuple(version for version in self.registered if version not in known)

    @property
    def told(self) -> list[tuple[Kind, str]]:
        """The changes as people read them, a sentence each with its kind: the newest version first."""
        return sentences(self.changes, self.name)

    @property
    def command(self) -> str:
        """What measures the unmeasured versions; empty where there are none."""
        if not self.unmeasured:
            return ""
        return catch_up(self.main.newest, self.unmeasured) if self.main else first_time(self.name, self.unmeasured[-1])

    def named(self, version: int) -> tuple[str, ...]:
        """The aliases that a version bears."""
        return tuple(alias for alias, number in sorted(self.aliases.items()) if number == version)

    def rows(self) -> list[dict[str, Any]]:
        """Every fact of every number: one row for each group, version and threat model, the main group first."""
        return [
            _row(record, threat, self.named(record.version), group.key)
            for group in self.groups
            for record in group.records
            for threat in record.threats
        ]

    def to_json(self) -> str:
        """The whole history as one JSON object; `main` names the key of the main group."""
        groups = [
            {"key": group.key, "title": group.title, "threats": group.labels, "versions": group.versions}
            for group in self.groups
        ]
        told = {
            "name": self.name,
            "aliases": self.aliases,
            "registered": self.registered,
            "main": self.main.key if self.main else None,
            "groups": groups,
            "unmeasured": self.unmeasured,
            "command": self.command or None,
            "changes": [change.model_dump(mode="json") for change in self.changes],
            "notes": self.notes,
            "rows": self.rows(),
        }
        return json.dumps(told, indent=2, ensure_ascii=False)

    def to_csv(self) -> str:
        """The rows as CSV with a header. A text that a spreadsheet would run has an apostrophe before it."""
        rows, output = self.rows(), io.StringIO()
        writer = csv.DictWriter(  # every text quoted: a lone carriage return would end a row
            output, fieldnames=COLUMNS, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        return output.getvalue()


COLUMNS = (
    *("version", "aliases", "stage", "verdict", "reason", "threat", "label"),
    *("clean", "clean_lo", "clean_hi", "robust", "robust_lo", "robust_hi", "confidence", "floor", "sound", "alarms"),
    *("replay", "replay_lo", "replay_hi", "suite", "suite_digest", "data", "data_digest", "split", "threat_digest"),
    *("seed", "seeds", "samples", "warm", "code", "environment", "weights_digest", "measured_at", "run_id", "key"),
    *("forward_samples", "backward_samples", "seconds", "policy", "evidence"),
)
OF_RECORD = (
    *("version", "stage", "verdict", "reason", "confidence", "suite", "suite_digest", "data", "data_digest", "split"),
    *("seed", "seeds", "samples", "warm", "code", "environment", "weights_digest", "measured_at", "run_id"),
    *("policy", "evidence"),
)
OF_THREAT = ("label", "floor", "sound", "alarms", "forward_samples", "backward_samples", "seconds")


def _row(record: Record, threat: ThreatRecord, aliases: Sequence[str], key: str) -> dict[str, Any]:
    """One number with every fact, in the order of COLUMNS."""
    facts: dict[str, Any] = {name: getattr(record, name) for name in OF_RECORD}
    facts |= {name: getattr(threat, name) for name in OF_THREAT}
    facts |= {"aliases": aliases, "threat": threat.name, "threat_digest": threat.digest, "key": key}
    for name, share in (("clean", record.clean), ("robust", threat.robust), ("replay", threat.replay)):
        ends = (None, None, None) if share is None else (share.value, share.lo, share.hi)
        facts |= dict(zip((name, f"{name}_lo", f"{name}_hi"), ends, strict=True))
    return {name: facts[name] for name in COLUMNS}


def _cell(value: Any) -> Any:
    """A value as it stands in CSV: text never begins like a formula; numbers stay numbers."""
    if isinstance(value, dict):
        value = "; ".join(f"{name} {number}" for name, number in sorted(value.items()))
    elif isinstance(value, tuple | list):
        value = "; ".join(value)
    if isinstance(value, str) and normalize("NFKC", value).lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return value


def _grouped(ordered: Sequence[Record]) -> tuple[Group, ...]:
    """The groups of records that stand in the order of their measuring, the most recently measured group first."""
    found: dict[str, dict[int, Record]] = {}
    for record in ordered:
        key = record.key
        found[key] = {**found.pop(key, {}), record.version: record}  # taken out and put back: the newest is last
    return tuple(
        Group(key=key, records=tuple(group[version] for version in sorted(group)))
        for key, group in reversed(found.items())
    )


def _doubted(champion: int | None, ordered: Sequence[Record]) -> list[str]:
    """A note where the champion's newest verdict is no pass, or where it has none."""
    if champion is None:
        return []
    newest = next((record for record in reversed(ordered) if record.version == champion), None)
    if newest is None:
        return [f"Version {champion} is champion, but was never measured."]
    told = f"Version {champion} is champion, but its newest verdict is {newest.verdict}, not pass."
    return [] if newest.verdict == "pass" else [told]


def _notes(groups: Sequence[Group], ordered: Sequence[Record], registered: Sequence[int]) -> list[str]:
    """What may matter beside the facts that are equal within the main group."""
    if not groups:
        return []
    records = groups[0].records
    notes = _uneven("Redoubt's own code", {record.version: record.code[:12] for record in records})
    asked = {r.version: f"{floors(r)} ({r.policy[:8]})" for r in records if r.policy}
    notes += _uneven("The verdicts' policy", asked)
    for package in sorted({package for record in records for package in record.environment}):
        notes += _uneven(package, {record.version: record.environment.get(package, "unknown") for record in records})
    gone = {record.version for record in ordered} - set(registered)
    if gone:
        notes.append(f"No longer in the registry: {numbered(gone)}.")
    counts = [sum(r.version == record.version and r.key == groups[0].key for r in ordered) for record in records]
    often = [record.version for record, count in zip(records, counts, strict=True) if count > 1]
    if often:
        notes.append(f"Measured more than once under this suite, of which the newest counts: {numbered(often)}.")
    return notes


def _uneven(what: str, values: Mapping[int, str]) -> list[str]:
    """A sentence where a fact is not the same for all versions; it may move a number a little, or more."""
    held: dict[str, list[int]] = {}
    for version, value in values.items():
        held.setdefault(value, []).append(version)
    if len(held) < 2:
        return []
    told = "; ".join(f"{value} for {numbered(versions)}" for value, versions in held.items())
    return [f"{what} is not the same in all measurements, which may matter: {told}."]
