"""What does not match: an evidence file, the files that it names, what they say of one another, and the record."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, JsonValue, ValidationError, model_validator
from pydantic_core import to_json

from tasks.errors import EvidenceBroken
from tasks.posture.evidence import Evidence, digest, first_wrong, fooled_digest, parse, rows_digest
from tasks.posture.record import Record
from tasks.statistics import Share

Read = Callable[[str], bytes]
Pairs = Iterable[tuple[str, object, object]]


def mismatches(raw: bytes, expected: str, read: Read, *, record: Record | None = None) -> Iterator[str]:
    """A sentence for each thing that is not what it should be, in this order: the evidence file against the digest
    that the registry expects, its form, each artifact, the files against one another, the record against the files.

    read gives the bytes of a file by its path in the run; whatever it raises becomes a sentence. Files whose bytes
    are not the recorded ones are named once and not looked into.
    """
    found = digest(raw)
    if found != expected:
        yield f"the evidence file hashes to {found}, the registry expects {expected or 'none'}."
    try:
        evidence = parse(raw)
    except EvidenceBroken as broken:
        yield str(broken)
        return
    files = dict[str, bytes]()
    for path, recorded in evidence.artifacts.items():
        try:
            content = read(path)
        except Exception as error:  # each store raises its own; any of them means that the file is not there
            yield f"{path} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}."
            continue
        if digest(content) == recorded:
            files |= {path: content} if path.endswith(".json") else {}
        else:
            yield f"{path} hashes to {digest(content)}, the evidence says {recorded}: the file was changed."
    held = dict[str, _Part]()
    yield from _unreadable(evidence, files, held)
    report = held.get(_report_path(evidence))
    if isinstance(report, _Report):
        yield from _of_report(evidence, report, held)
    if record is not None:
        yield from _of_record(record, evidence, found, report if isinstance(report, _Report) else None)


class _Part(BaseModel, frozen=True, extra="ignore"):
    """What is looked at in a file that an evaluation has left; the rest is not read."""


class _Sign(_Part):
    name: str
    state: str


class _Soundness(_Part):
    signs: tuple[_Sign, ...]


class _Threat(_Part):
    threat: dict[str, JsonValue]
    suite_digest: str
    robust: Share
    standing: str
    problems: tuple[str, ...] = ()
    soundness: _Soundness | None = None

    @property
    def digest(self) -> str:
        """As ThreatModel.digest computes it, from the fields in the order in which they were written."""
        return hashlib.sha256(to_json(self.threat)).hexdigest()[:16]

    @property
    def alarms(self) -> tuple[str, ...]:
        return tuple(sign.name for sign in self.soundness.signs if sign.state == "alarm") if self.soundness else ()

    @property
    def sound(self) -> bool:
        return self.soundness is not None and not self.alarms and not self.problems


class _Report(_Part):
    split: str
    data: str
    data_digest: str
    weights_digest: str
    seed: int
    seeds: int = 1
    confidence: float
    measured_at: str = ""
    clean: Share
    threats: tuple[_Threat, ...]


class _Check(_Part):
    outcome: str
    reason: str


class _Verdict(_Part):
    outcome: str
    checks: tuple[_Check, ...]


class _Decision(_Part):
    verdict: _Verdict
    champion: dict[str, JsonValue] | None = None
    policy: dict[str, JsonValue]


class _Table(_Part):
    columns: tuple[str, ...]
    data: tuple[tuple[JsonValue, ...], ...]

    @model_validator(mode="after")
    def _holds_rows_and_flags(self) -> Self:
        if any(len(row) != len(self.columns) for row in self.data):
            raise ValueError(f"a row does not hold {len(self.columns)} values")
        if not all(type(row) is int and 0 <= row < 2**63 for row in self.column("row")):
            raise ValueError("column 'row' holds what is no place in a split")
        if not all(type(flag) is bool for name in ("clean_correct", "fooled") for flag in self.column(name)):
            raise ValueError("a flag is neither true nor false")
        return self

    def column(self, name: str) -> list[Any]:
        """Its values [N]. Raises ValueError where there is no such column."""
        place = self.columns.index(name)
        return [row[place] for row in self.data]


def _report_path(evidence: Evidence) -> str:
    return f"{_place(evidence)}report.json"


def _table_path(evidence: Evidence, threat: str) -> str:
    return f"outcomes/{_place(evidence)}{threat}.json"


def _place(evidence: Evidence) -> str:
    return "" if evidence.data.split == "test" else f"{evidence.data.split}/"


def _unreadable(evidence: Evidence, files: Mapping[str, bytes], held: dict[str, _Part]) -> Iterator[str]:
    """A sentence for each file that is not named or does not parse; what does goes to held."""
    weights, inside = evidence.weights, evidence.weights.uri.removeprefix(f"runs:/{evidence.run_id}/")
    kept = evidence.artifacts.get(inside, "missing")
    if inside != weights.uri and not kept.startswith(weights.digest):
        yield f"the evidence says that weights {weights.digest} lie at {inside}, where its own list says {kept}."
    kinds: dict[str, type[_Part]] = {
        _report_path(evidence): _Report,
        f"{_place(evidence)}verdict.json": _Decision,
        **{_table_path(evidence, threat): _Table for threat in evidence.threats},
    }
    for path, kind in kinds.items():
        if path not in evidence.artifacts:
            yield f"the evidence names no {path}, so nothing shows what the verdict rests on."
        elif path in files:
            try:
                held[path] = kind.model_validate_json(files[path])
            except ValidationError as error:
                yield f"{path} is not what an evaluation writes: {first_wrong(error)}."


def _of_report(evidence: Evidence, report: _Report, held: Mapping[str, _Part]) -> Iterator[str]:
    """What report, verdict and outcomes say that the evidence, or one of the others, does not."""
    of_threats = {threat.digest: threat for threat in report.threats}
    facts: Pairs = [
        ("split", report.split, evidence.data.split),
        ("data", (report.data, report.data_digest), (evidence.data.name, evidence.data.digest)),
        ("weights", report.weights_digest, evidence.weights.digest),
        ("seed", (report.seed, report.seeds), (evidence.seed, evidence.seeds)),
        ("suite", {threat.suite_digest for threat in report.threats}, {evidence.suite.digest}),
        ("threat models", sorted(of_threats), sorted(evidence.threats.values())),
    ]
    yield from _differences(_report_path(evidence), facts, "the evidence")
    decision = held.get(f"{_place(evidence)}verdict.json")
    if isinstance(decision, _Decision):
        verdict = decision.verdict
        reasons = tuple(check.reason for check in verdict.checks if check.outcome == verdict.outcome)
        facts = [
            ("verdict", verdict.outcome, evidence.verdict.outcome),
            ("reasons", reasons, evidence.verdict.reasons),
            *_each("policy", decision.policy, evidence.config.get("policy")),
        ]
        if evidence.complete:
            compared = evidence.champion.model_dump() if evidence.champion else {}
            facts = [*facts, *_each("champion", decision.champion or {}, compared)]
        yield from _differences(f"{_place(evidence)}verdict.json", facts, "the evidence")
    for name, threat_digest in evidence.threats.items():
        table, threat = held.get(_table_path(evidence, name)), of_threats.get(threat_digest)
        if isinstance(table, _Table) and threat is not None:
            yield from _of_table(evidence, name, table, threat, report.clean)


def _of_table(evidence: Evidence, name: str, table: _Table, threat: _Threat, clean: Share) -> Iterator[str]:
    path, fooled, right = _table_path(evidence, name), table.column("fooled"), table.column("clean_correct")
    facts: Pairs = [
        ("rows hash to", rows_digest(table.column("row")), evidence.data.rows),
        ("fooled samples hash to", fooled_digest(fooled), evidence.outcomes[name]),
    ]
    yield from _differences(path, facts, "the evidence")
    n, standing = len(fooled), np.packbits(~np.asarray(fooled, dtype=bool)).tobytes()
    facts = [
        ("number of samples", (n, n), (threat.robust.n, clean.n)),
        ("robust accuracy", fooled.count(False) / max(n, 1), threat.robust.value),
        ("clean accuracy", right.count(True) / max(n, 1), clean.value),
        ("standing samples hash to", digest(base64.b64encode(standing)), digest(threat.standing.encode())),
    ]
    yield from _differences(path, facts, "report.json")


def _of_record(record: Record, evidence: Evidence, found: str, report: _Report | None) -> Iterator[str]:
    """What the record says that the evidence or the report does not."""
    reasons = evidence.verdict.reasons
    facts: list[tuple[str, object, object]] = [
        ("evidence", record.evidence, found),
        ("name", record.name, evidence.name),
        ("version", record.version, evidence.version or record.version),
        ("stage", record.stage, evidence.stage),
        ("run", record.run_id, evidence.run_id),
        ("verdict", record.verdict, evidence.verdict.outcome),
        ("reason", record.reason, record.reason if record.reason in reasons else reasons[0]),
        ("data", (record.data, record.data_digest), (evidence.data.name, evidence.data.digest)),
        ("split", record.split, evidence.data.split),
        ("seed", (record.seed, record.seeds), (evidence.seed, evidence.seeds)),
        ("suite", (record.suite, record.suite_digest), (evidence.suite.name, evidence.suite.digest)),
        ("weights", record.weights_digest, evidence.weights.digest),
        ("code", record.code, evidence.code.digest),
        *_each("environment", record.environment, evidence.environment),
        *_each("threat model", {threat.name: threat.digest for threat in record.threats}, evidence.threats),
    ]
    yield from _differences("the record", facts, "the evidence")
    if report is None:
        return
    of_threats = {threat.digest: threat for threat in report.threats}
    facts = [
        ("time of measurement", record.measured_at, report.measured_at),
        ("number of samples", record.samples, report.clean.n),
        ("confidence", record.confidence, report.confidence),
        ("clean accuracy", record.clean, report.clean),
    ]
    for kept in record.threats:
        threat = of_threats.get(kept.digest)
        if threat is not None:
            facts += [
                (f"robust accuracy under {kept.name}", kept.robust, threat.robust),
                (f"soundness under {kept.name}", (kept.sound, kept.alarms), (threat.sound, threat.alarms)),
            ]
    yield from _differences("the record", facts, "report.json")


def _differences(where: str, facts: Pairs, other: str) -> Iterator[str]:
    for what, said, expected in facts:
        if said != expected:
            yield f"{where}: {what} {_shown(said)}, but {other} says {_shown(expected)}."


def _shown(value: object) -> str:
    """The value as a sentence holds it: every digit of a share and its interval, several values side by side."""
    if isinstance(value, Share):
        return f"{value.value!r} [{value.lo!r}, {value.hi!r}] of {value.n}"
    if isinstance(value, tuple | list | set):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)


def _each(what: str, said: Mapping[str, object], recorded: object) -> Pairs:
    """A fact for each key, so that the one that differs is named."""
    expected = recorded if isinstance(recorded, Mapping) else {}
    return [(f"{what}.{key}", said.get(key), expected.get(key)) for key in sorted({*said, *expected})]
