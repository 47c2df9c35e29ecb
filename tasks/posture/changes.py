"""What changed from one measurement to the next, and whether the model changed or only the measuring."""

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, Field

from tasks.errors import WrongInput
from tasks.posture.mending import alike
from tasks.posture.record import FACTS, Record
from tasks.statistics import Share

CLEAN = "clean accuracy"  # what a change names where no threat model is concerned

Kind = Literal[  # the gravest first
    "weights changed",
    "unsound",
    "regression",
    "verdict changed",
    "not comparable",
    "measurement",
    "sound again",
    "improvement",
    "within chance",
]


class Change(BaseModel, frozen=True, extra="forbid"):
    """One difference between two measurements. Shares are absent where numbers were not held against each other."""

    kind: Kind
    version: int
    against: int = Field(description="the earlier version; the same one where it was measured again")
    threat: str = Field("", description="label of the threat model, or clean accuracy; empty for the whole version")
    before: Share | None = None
    after: Share | None = None
    key: str = Field(description="of the comparable group that the later number belongs to")
    before_key: str = Field(description="of the group of the earlier one")
    says: str = Field(description="a whole sentence")


def measured_at(record: Record) -> datetime:
    """When the record was measured, UTC. Raises WrongInput where it does not say so in ISO 8601."""
    try:
        moment = datetime.fromisoformat(record.measured_at)
    except ValueError as error:
        raise WrongInput(
            f"version {record.version} of {record.name!r} does not say when it was measured "
            f"({record.measured_at!r}). Write e.g. 2026-07-01T12:00:00+00:00, or measure it again."
        ) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def differences(a: Record, b: Record) -> str:
    """Every fact that keeps the two from being compared, in words; empty where they may be."""
    return " and ".join(said for fact, said in FACTS.items() if getattr(a, fact) != getattr(b, fact))


def across_versions(groups: Sequence[Sequence[Record]]) -> list[Change]:
    """From each version to the next one of the same group, by version; and where no group holds both.

    groups are lists of comparable records, one for each version and in the order of the versions, the newest group
    first. What a newer group says of two versions stands: an older one is not asked about them.
    """
    found: list[Change] = []
    newer: list[set[int]] = []
    for records in groups:
        steps = [*_verdicts(records), *_numbers(records)]
        found += [step for step in steps if not any({step.against, step.version} <= known for known in newer)]
        newer.append({record.version for record in records})
    found += _incomparable(groups)
    return sorted(found, key=lambda change: change.version)


def same_version(records: Sequence[Record]) -> list[Change]:
    """From one measurement of a version to the next: the same weights, so a difference is one of measuring.

    records are all of one version, in the order of their measuring. Of each group the newest one is held against the
    newest one of the group before it; within a group the newest two are held against each other.
    """
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key[record.key] = [*by_key.pop(record.key, []), record]  # taken out and put back: the newest group is last
    newest = [group[-1] for group in by_key.values()]
    pairs = [*pairwise(newest), *(group[-2:] for group in by_key.values() if len(group) > 1)]
    return [change for before, after in pairs for change in _measured_again(before, after)]


def _numbers(records: Sequence[Record]) -> Iterator[Change]:
    """Of clean accuracy and of each threat model, along the versions of one group."""
    yield from _along(records, None)
    for place in range(len(records[-1].threats)):
        yield from _along(records, place)


def _along(records: Sequence[Record], place: int | None) -> Iterator[Change]:
    """Moves of one number. A void one is held against nothing; level is where the number last moved to."""
    last: Record | None = None
    before: Record | None = None
    level: Record | None = None
    for record in records:
        if last is not None and _sound(last, place) != _sound(record, place):
            yield _belief(record, last, place)
        last = record
        if not _sound(record, place):
            continue
        if before is None or level is None:
            before = level = record
            continue
        share = _share(record, place)
        against = before if _direction(_share(before, place), share) else level
        kind = _direction(_share(against, place), share)
        if kind:
            level = record
            yield _move(kind, record, against, place, drifted=against is not before)
        elif _share(before, place).value != share.value:
            yield _move("within chance", record, before, place)
        before = record


def _share(record: Record, place: int | None) -> Share:
    return record.clean if place is None else record.threats[place].robust


def _sound(record: Record, place: int | None) -> bool:
    return place is None or record.threats[place].sound


def _label(record: Record, place: int | None) -> str:
    return CLEAN if place is None else record.threats[place].label


def _direction(before: Share, after: Share) -> Literal["regression", "improvement"] | None:
    """None where the intervals overlap: a rule that is slower to speak than a paired test of the same samples."""
    if after.hi < before.lo:
        return "regression"
    return "improvement" if after.lo > before.hi else None


def _move(
    kind: Literal["regression", "improvement", "within chance"],
    record: Record,
    against: Record,
    place: int | None,
    *,
    drifted: bool = False,
) -> Change:
    what, before, after = _label(record, place), _share(against, place), _share(record, place)
    way = "fell" if after.value < before.value else "rose"
    figures = f"from {_percent(before)} in version {against.version} to {_percent(after)} in version {record.version}"
    says = f"{subject(what)} {way} {figures}"
    if kind == "within chance":
        pair = f"redoubt compare {shlex.quote(record.name)} {against.version} {record.version}"
        says += f": within chance, as far as intervals tell; `{pair}` pairs the samples."
    else:
        says += " in small steps, each of them within chance" if drifted else ""
        says += "; the intervals do not overlap."
    return _change(kind, record, against, what, before, after, says=says)


def _belief(record: Record, last: Record, place: int | None) -> Change:
    """A number that became void, or that may be believed again."""
    what = _label(record, place)
    number = f"The number of version {record.version} under {what}"
    if _sound(record, place):
        return _change("sound again", record, last, what, says=f"{number} may be believed again.")
    alarms = record.threats[place].alarms if place is not None else ()
    why = f"alarms: {', '.join(alarms)}" if alarms else "it was not checked, or an attack broke"
    return _change("unsound", record, last, what, says=f"{number} is void ({why}): it is held against no other.")


def _verdicts(records: Sequence[Record]) -> Iterator[Change]:
    for before, after in pairwise(records):
        if before.verdict != after.verdict:
            yield _verdict(before, after)


def _verdict(before: Record, after: Record) -> Change:
    was = f"version {before.version}" if before.version != after.version else "an earlier measurement"
    says = f"The verdict on version {after.version} is {after.verdict}, that on {was} was {before.verdict}"
    if before.policy and after.policy and before.policy != after.policy:
        says += f", under another policy ({policies(before, after)})"
    return _change("verdict changed", after, before, "", says=f"{says}: {after.reason.rstrip('.')}.")


def floors(record: Record) -> str:
    """The floors of the policy, in words."""
    asked = {threat.label: threat.floor for threat in record.threats}
    if len(set(asked.values())) == 1:
        return f"floor {next(iter(asked.values())):g}"
    return f"floors {', '.join(f'{floor:g} under {label}' for label, floor in asked.items())}"


def policies(before: Record, after: Record) -> str:
    """What the two policies ask for, in words; by their digests where it is not the floors that differ."""
    then, now = floors(before), floors(after)
    if then != now:
        return f"{then}, then {now}"
    return f"{now} in both, other numbers differ: {before.policy[:8]}, then {after.policy[:8]}"


def _incomparable(groups: Sequence[Sequence[Record]]) -> Iterator[Change]:
    """Neighbours among the measured versions that no group holds both of."""
    newest: dict[int, Record] = {}
    for record in sorted((record for records in groups for record in records), key=measured_at):
        newest[record.version] = record
    held = [{record.version for record in records} for records in groups]
    versions = sorted(newest)
    for old, new in pairwise(versions):
        if any({old, new} <= group for group in held):
            continue
        before, after = newest[old], newest[new]
        command = alike(*sorted((before, after), key=measured_at))
        says = (
            f"Versions {old} and {new} cannot be compared; what differs: {differences(before, after)}"
            f"{_suites(before, after)}. Measure both alike: `{command}`"
        )
        yield _change("not comparable", after, before, "", says=says)


def _measured_again(before: Record, after: Record) -> Iterator[Change]:
    """The same version, measured twice."""
    version = after.version
    if before.weights_digest != after.weights_digest:
        digests = f"{before.weights_digest[:12]}, then {after.weights_digest[:12]}"
        says = (
            f"Version {version} was measured twice, with different weights ({digests}): a regression cannot be "
            f"told from another way of measuring. A registered version must not change."
        )
        yield _change("weights changed", after, before, "", says=says)
        return
    if before.clean.value != after.clean.value:
        yield _measurement(before, after, None, None)
    places = {threat.digest: place for place, threat in enumerate(before.threats)}
    for place, threat in enumerate(after.threats):
        old = places.get(threat.digest)
        if old is not None and before.threats[old].robust.value != threat.robust.value:
            yield _measurement(before, after, old, place)
    if before.verdict != after.verdict:
        yield _verdict(before, after)


def _measurement(before: Record, after: Record, old: int | None, new: int | None) -> Change:
    """One number of the same weights, at place old before and at place new after."""
    what, facts = _label(after, new), differences(before, after)
    reason = f"what differs: {facts}{_suites(before, after)}" if facts else "the same question was asked twice"
    if not facts and before.code != after.code:
        reason += f", with other code ({before.code[:12]}, then {after.code[:12]})"
    ends = [(before, old), (after, new)]
    figures = [_percent(_share(*end)) + ("" if _sound(*end) else " (void)") for end in ends]
    says = (
        f"{subject(what)} of version {after.version}: {figures[0]} became {figures[1]} with the same weights, a "
        f"change of measurement and not of the model; {reason}."
    )
    return _change("measurement", after, before, what, _share(before, old), _share(after, new), says=says)


def _suites(before: Record, after: Record) -> str:
    if before.suite_digest == after.suite_digest:
        return ""
    names = [f"{record.suite} {record.suite_digest[:8]}" for record in (before, after)]
    return f" ({names[0]}, then {names[1]})"


def _change(
    kind: Kind,
    record: Record,
    against: Record,
    threat: str,
    before: Share | None = None,
    after: Share | None = None,
    *,
    says: str,
) -> Change:
    keys = {"key": record.key, "before_key": against.key}
    versions = {"version": record.version, "against": against.version}
    return Change(kind=kind, threat=threat, before=before, after=after, says=says, **versions, **keys)


def subject(what: str) -> str:
    """What a sentence about a change begins with."""
    return "Clean accuracy" if what == CLEAN else f"Robust accuracy under {what}"


def _percent(share: Share) -> str:
    return f"{share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]"
