"""The posture page: what is known of a registered model over its versions, as one self-contained HTML file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from tasks.posture.charts import version_chart
from tasks.posture.console import count
from tasks.posture.coverage import Covered
from tasks.posture.finding import Finding
from tasks.posture.history import Group, History
from tasks.posture.listing import by_age
from tasks.posture.paper import render
from tasks.posture.record import Record
from tasks.posture.sentences import ranges

SEEN = 12  # rows of a long table, and changes, that stand outside a fold
PANELS = 4  # older groups that are drawn; the others are told


@dataclass(frozen=True)
class Chart:
    """One line over the versions, and its caption."""

    label: str
    svg: Markup


@dataclass(frozen=True)
class Panel:
    """The charts of one older group, each on its own paper: its numbers share a line with no other group's."""

    title: str
    versions: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Paid:
    """What measuring one version took, over all threat models."""

    record: Record
    forward: int
    backward: int
    seconds: float

    @classmethod
    def of(cls, record: Record) -> "Paid":
        """The sums over the record's threat models."""
        forward = sum(threat.forward_samples for threat in record.threats)
        backward = sum(threat.backward_samples for threat in record.threats)
        return cls(record, forward, backward, sum(threat.seconds for threat in record.threats))


def posture_page(
    history: History,
    findings: Sequence[Finding] = (),
    coverage: Sequence[Covered] = (),
    *,
    now: datetime,
    max_days: float | None = None,
) -> str:
    """The posture of a registered model as one HTML page, which loads nothing.

    max_days: how long a finding may stand before it is overdue; None, and none is. Names and messages are shown as
    text, whatever they hold.
    """
    listed = by_age(findings, now, max_days=max_days)
    paid = [Paid.of(record) for group in history.groups for record in group.records]
    records = list(reversed(history.main.records)) if history.main else []
    return render(
        "posture.html.jinja",
        history=history,
        main=history.main,
        now=now,
        shown=shown_record(history),
        headline=headline(history),
        findings=listed,
        standing=[one for one in listed if one.stands],
        settled=[one for one in listed if not one.stands],
        charts=_charts(history.main, history) if history.main else (),
        panels=list(_panels(history)),
        untold=history.groups[1 + PANELS :],
        records=records,
        void=[(record, threat) for record in records for threat in record.threats if not threat.sound],
        numbers=sum(len(record.threats) for record in records),
        sources=_sources(coverage),
        untested=_untested(coverage),
        coverage=coverage,
        paid=sorted(paid, key=lambda one: one.record.measured_at, reverse=True),
        seen=SEEN,
    )


def shown_record(history: History) -> Record | None:
    """The measurement that the page is headed by: the champion's, else the highest version's; None without any."""
    if history.main is None:
        return None
    known = history.main.by_version()
    return known.get(history.aliases.get("champion", 0)) or known[max(known)]


def headline(history: History) -> list[str]:
    """What a reader must know first, in sentences: of the champion, then of the newest version where it is another."""
    shown = shown_record(history)
    if shown is None or history.main is None:
        return ["No version of this model was measured, so nothing is known of what it withstands."]
    told = [_withstands(history, shown)]
    champion = history.aliases.get("champion")
    if champion is None:
        told.append("No version bears the alias champion.")
    elif champion not in history.main.versions:
        told.append(f"The champion, version {champion}, was not measured in this way.")
    newest = history.main.records[-1]
    if newest.version != shown.version:
        told.append(_withstands(history, newest))
    return told


def _withstands(history: History, record: Record) -> str:
    names = f" ({', '.join(history.named(record.version))})" if history.named(record.version) else ""
    void = [threat.label for threat in record.threats if not threat.sound]
    doubt = f" Void, so not to be believed: its number under {', '.join(void)}." if void else ""
    sound = [threat for threat in record.threats if threat.sound]
    if not sound:
        return f"Version {record.version}{names} has no number that can be believed; its verdict is {record.verdict}."
    worst = min(sound, key=lambda threat: threat.robust.value)
    share = f"{worst.robust.value:.1%} of the samples under {worst.label}"
    more = ", the lowest of its numbers" if len(sound) > 1 else ""
    return (
        f"Version {record.version}{names} withstands the attacks on {share}{more}; its verdict is {record.verdict}."
        f"{doubt}"
    )


def _charts(group: Group, history: History) -> tuple[Chart, ...]:
    """One chart for each threat model, over all versions that are registered or measured, so that gaps show."""
    main, first, last = group is history.main, group.versions[0], group.versions[-1]
    known = (version for version in history.versions if main or first <= version <= last)
    versions = sorted({*known, *group.versions})
    champion = history.aliases.get("champion")
    return tuple(
        Chart(label, Markup(version_chart(group, place, versions, champion=champion)))
        for place, label in enumerate(group.labels)
    )


def _panels(history: History) -> Iterator[Panel]:
    """The older groups, each drawn by itself."""
    for group in history.groups[1 : 1 + PANELS]:
        told = f"{count(len(group.records), 'version')} ({ranges(group.versions)})"
        yield Panel(group.title, told, _charts(group, history))


def _sources(coverage: Sequence[Covered]) -> list[dict[str, Any]]:
    """Each source of the catalogue with its counts and its tested entries."""
    names = dict.fromkeys(row.entry.source for row in coverage)
    found = []
    for name in names:
        rows = [row for row in coverage if row.entry.source == name]
        tested = [row for row in rows if row.tested]
        found.append({"name": name, "version": rows[0].entry.version, "rows": rows, "tested": tested})
    return found


def _untested(coverage: Sequence[Covered]) -> dict[str, list[Covered]]:
    """The entries that nothing tested, by the reason."""
    found: dict[str, list[Covered]] = {}
    for row in coverage:
        if not row.tested:
            found.setdefault(row.why_not, []).append(row)
    return found
