"""What the watch says of what has become old, and how often; and data that changed between two watches."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.plans import adopt
from flows.watch import Watched, watch
from tasks.announce import TOLD
from tasks.data import describe, load
from tasks.ledger import write_findings
from tasks.posture import Record
from tasks.recall import known_of
from tasks.track import registered, set_alias, tag_model, tag_version
from tests.flows.registering import register_weak
from tests.flows.test_watch import events

pytestmark = [pytest.mark.server, pytest.mark.nightly]
NAME = "grown old"
QUICK = ("evaluation.suite=quick", "evaluation.samples=100")
OLD = ("policy.max_age_days=7", "policy.max_finding_days=60")


def aged_record(days: float) -> Record:
    """The only record of the champion, as if it had been measured so many days ago."""
    (version,) = registered(NAME)
    (record,) = version.records()
    then = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    aged = record.model_copy(update={"measured_at": then})
    tag_version(NAME, 1, {f"redoubt.record.{aged.key}": aged.model_dump_json()})
    return aged


def aged_finding(days: float) -> str:
    """The id of the only finding, as if it had been found so many days ago."""
    (finding,) = known_of(NAME).findings
    then = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    write_findings(NAME, [finding.model_copy(update={"found_at": then})])
    return finding.id


def said_before(event: str, subject: str) -> None:
    """Make it as if this had been said yesterday."""
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    tag_model(NAME, {f"{TOLD}{event}.{subject}": yesterday.isoformat()})


def test_old_evidence_is_said_once_a_day_and_measured_again_each_time(prefect_server, home, monkeypatch):
    heard = events(monkeypatch)
    register_weak(NAME)
    set_alias(NAME, "champion", 1)
    adopt(NAME, "two-kinds", (*QUICK, *OLD))
    assert watch().stale == ()
    assert watch() == Watched(looked_at=(NAME,))  # it is measured, and neither old nor overdue

    first, finding = aged_record(8), aged_finding(61)
    heard.clear()
    found = watch()
    assert (found.stale, found.overdue) == ((f"models:/{NAME}/1",), (finding,))
    (anew,) = registered(NAME)[0].records()
    assert datetime.now(UTC) - datetime.fromisoformat(anew.measured_at) < timedelta(minutes=5)
    assert (anew.key, anew.run_id == first.run_id) == (first.key, False)
    second = aged_record(9)
    found = watch()
    assert (found.stale, [one.measured for one in found.measured]) == ((f"models:/{NAME}/1",), [True])
    assert known_of(NAME).records[0].run_id not in (first.run_id, second.run_id)

    (stale,) = (told for event, told in heard if event == "evidence.stale")
    assert (stale["resource"], stale["version"]) == (f"redoubt.model.{NAME}", 1)
    assert stale["reasons"] == [f"version 1 was last measured at {first.measured_at}; allowed are 7 days"]
    (late,) = (told for event, told in heard if event == "findings.overdue")
    assert (late["version"], late["finding"]) == (1, finding)
    assert f"{finding} is open for 61 days, allowed are 60: " in late["reasons"][0]

    for event, subject in (("evidence.stale", "1"), ("findings.overdue", finding)):
        said_before(event, subject)
    heard.clear()
    assert watch().measured == ()  # what is overdue is said on another day; what was measured meanwhile is not stale
    assert [event for event, _ in heard] == ["findings.overdue", "watch.done"]


def table(path: Path, *, flipped: int = 0) -> str:
    """Write a CSV with rows of two-kinds, the first labels turned over; the digest of what is read from it."""
    x, y = (part[:400] for part in load("two-kinds")["test"])
    y = torch.cat([1 - y[:flipped], y[flipped:]])
    rows = [",".join([*(f"{value:.5f}" for value in row), str(int(label))]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join([",".join([*(f"f{number}" for number in range(x.shape[1])), "Class"]), *rows]))
    return describe(str(path), load(str(path))).digest


def records() -> list[Any]:
    return [(record.data_digest, record.verdict) for record in registered(NAME)[0].records()]


def test_data_that_changed_between_two_watches_is_measured_anew_and_both_records_stay(
    prefect_server, home, tmp_path, monkeypatch
):
    file = tmp_path / "rows.csv"
    before = table(file)
    register_weak(NAME)
    set_alias(NAME, "champion", 1)
    contract = ("contract.min_class_share=0.3", "evaluation.samples=50", "evaluation.suite=quick")
    adopt(NAME, "two-kinds", (f"dataset={file}", *contract))
    (one,) = watch().measured
    assert one.measured, one.says
    assert [digest for digest, _ in records()] == [before]
    assert watch() == Watched(looked_at=(NAME,))

    after = table(file, flipped=1)
    assert before != after
    (other,) = watch().measured
    assert (other.measured, other.version) == (True, 1), other.says
    assert sorted(digest for digest, _ in records()) == sorted([before, after])
    assert other.run_id != one.run_id
    assert watch() == Watched(looked_at=(NAME,))

    table(file)  # what was measured before stands, now that the data is what it was
    assert watch() == Watched(looked_at=(NAME,))
    assert len(records()) == 2
