"""The pinned threat catalogue, the ids that a weakness carries, and what of the catalogue was tested."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tasks.attacks import ATTACKS, SUITES
from tasks.attacks.threat import Norm
from tasks.errors import UnknownPart
from tasks.posture.catalogue import (
    BLACK_BOX,
    CATALOGUE,
    EVASION,
    TRANSFER,
    WHITE_BOX,
    entry,
    ids_of,
    warnings_for,
)
from tasks.posture.coverage import ASKING, Covered, coverage
from tasks.posture.record import Record, ThreatRecord
from tasks.statistics import Share

TECHNIQUES = """
    T0015 T0043 T0043.000 T0043.001 T0043.002 T0043.003 T0043.004 T0005 T0005.000 T0005.001 T0005.002 T0020 T0018.000
    T0024 T0024.000 T0024.001 T0024.002 T0040 T0047 T0041 T0044 T0010.002 T0010.003 T0011.000 T0019 T0058 T0115
"""
MITIGATIONS = "M0002 M0003 M0004 M0006 M0007 M0008 M0010 M0014 M0015 M0024"
TAXONOMY = "022 025 013 023 024 031 032 033 05"


def test_the_catalogue_holds_exactly_the_ids_that_were_read_each_once():
    expected = [f"AML.{id}" for id in (TECHNIQUES + MITIGATIONS).split()]
    expected += [f"NISTAML.{id}" for id in TAXONOMY.split()] + [f"ML{place:02}:2023" for place in range(1, 11)]
    assert sorted(one.id for one in CATALOGUE) == sorted(expected)
    assert len({one.id for one in CATALOGUE}) == len({one.key for one in CATALOGUE}) == len(CATALOGUE) == 56
    assert {source: sum(one.source == source for one in CATALOGUE) for source in ("ATLAS", "NIST", "OWASP")} == {
        "ATLAS": 37,
        "NIST": 9,
        "OWASP": 10,
    }
    assert [one.id for one in CATALOGUE if one.mitigation] == [f"AML.{id}" for id in MITIGATIONS.split()]


def test_every_entry_has_a_name_and_the_version_that_it_was_taken_from():
    assert all(one.name for one in CATALOGUE)
    versions = {"ATLAS": {"2026.04"}, "NIST": {"AI 100-2 E2025"}, "OWASP": {"2023 draft"}}
    for one in CATALOGUE:
        assert one.version in versions[one.source] or (one.id, one.version) == ("AML.T0115", "2026.07")
    assert entry("AML.T0020").name == "Poison Training Data"
    assert "since 2026.07 Training Data Poisoning" in str(entry("AML.T0020"))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("AML.T0051", "AML.T0015"), ("aml.t0043.00", "AML.T0043.000"), ("ML1:2023", "ML01:2023"), ("NISTAML.22", "022")],
)
def test_an_unknown_id_is_an_error_that_knows_what_was_meant(wrong, meant):
    with pytest.raises(UnknownPart, match=rf"unknown threat id '{wrong}'\. Did you mean '.*'\?") as error:
        entry(wrong)
    assert meant.split(".")[0] in str(error.value)
    with pytest.raises(UnknownPart):
        warnings_for(["AML.T0015", wrong])
    with pytest.raises(UnknownPart):
        coverage([], [wrong])


def test_a_retired_id_is_accepted_with_a_warning_that_names_its_successor():
    assert entry("AML.T0019").retired_into == entry("AML.T0058").retired_into == "AML.T0115"
    first, second = warnings_for(["AML.T0058", "AML.T0015", "AML.T0019", "AML.T0058"])
    assert first.startswith("AML.T0058 (Publish Poisoned Models) was retired")
    assert second.startswith("AML.T0019 (Publish Poisoned Datasets) was retired")
    assert "write AML.T0115 (Publish Poisoned AI Artifacts) instead" in first
    assert warnings_for([one.id for one in CATALOGUE if not one.retired_into]) == ()


WHITE, ASKED = {"AML.T0043.000", "AML.T0044"}, {"AML.T0043.001", "AML.T0040", "NISTAML.025"}


@pytest.mark.parametrize(
    ("attacks", "more"),
    [
        ([], set()),
        (["margin"], WHITE),
        (["apgd-ce", "pgd"], WHITE),
        (["escalation: more restarts"], WHITE),
        (["square"], ASKED),
        (["hopskipjump"], ASKED),
        (["escalation: without gradients"], ASKED),
        (["transfer"], {"AML.T0043.002"}),
        (["noise", "signs", "acme.attacks:sticker"], set()),
        (["transfer", "square", "fab"], WHITE | ASKED | {"AML.T0043.002"}),
    ],
)
def test_a_weakness_carries_the_ids_of_how_it_was_found(attacks, more):
    found = ids_of("linf", attacks)
    assert set(found) == set(EVASION) | more
    assert list(found) == [one.id for one in CATALOGUE if one.id in found]
    assert found == ids_of("l0-pixels", attacks)


def test_no_bound_is_a_control_and_no_threat():
    assert ids_of("unbounded", ["margin"]) == ()
    assert "unbounded" in get_args(Norm)


def test_the_access_of_every_attack_is_known_and_of_one_kind():
    assert WHITE_BOX | BLACK_BOX | TRANSFER | {"noise"} >= set(ATTACKS)
    assert not WHITE_BOX & BLACK_BOX


def test_the_suites_that_are_said_to_ask_without_gradients_do_under_every_norm():
    def asks(suite, norm):
        return any(a.name in BLACK_BOX and (a.norms is None or norm in a.norms) for a in suite.attacks)

    assert {name for name, suite in SUITES.items() if all(asks(suite, norm) for norm in get_args(Norm))} == ASKING


# --- coverage


def share(value: float = 0.5) -> Share:
    return Share.of(round(100 * value), 100)


def threat(**other) -> ThreatRecord:
    facts = {
        "name": "linf_0.15",
        "label": "L-inf 0.15",
        "digest": "d",
        "robust": share(),
        "sound": True,
        "floor": 0.5,
        "forward_samples": 10,
        "backward_samples": 10,
        "seconds": 1.0,
    }
    return ThreatRecord(**(facts | other))


def record(version: int = 1, **other) -> Record:
    facts = {
        "name": "digits",
        "version": version,
        "stage": "baseline",
        "run_id": f"run{version}",
        "measured_at": f"2026-01-{version:02}T00:00:00+00:00",
        "verdict": "pass",
        "reason": "r",
        "data": "digits",
        "data_digest": "d",
        "split": "test",
        "samples": 100,
        "seed": 0,
        "seeds": 1,
        "suite": "standard",
        "suite_digest": "s",
        "weights_digest": "w",
        "code": "c",
        "environment": {},
        "confidence": 0.95,
        "clean": share(),
        "threats": (threat(),),
    }
    return Record(**(facts | other))


def ids_covered_by(*records: Record) -> set[str]:
    return {one.entry.id for one in coverage(records) if one.tested}


BY_ANY = {*EVASION, "AML.M0008"}


def test_without_a_record_nothing_is_tested_and_each_entry_says_why():
    rows = coverage([])
    assert [row.entry for row in rows] == list(CATALOGUE)
    assert not any(row.tested for row in rows)
    said = {row.entry.id: row.why_not for row in rows}
    assert said["AML.T0015"].startswith("not run on any version")
    assert said["AML.T0024.002"] == "Redoubt does not measure this"
    assert said["AML.T0019"].startswith("retired into AML.T0115")


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (record(), BY_ANY | WHITE | ASKED),
        (record(suite="warm"), BY_ANY | WHITE),
        (record(suite="custom", threats=(threat(backward_samples=0),)), BY_ANY),
        (record(suite="custom+square", threats=(threat(backward_samples=0),)), BY_ANY | ASKED),
        (record(suite="warm+transfer"), BY_ANY | WHITE | {"AML.T0043.002"}),
        (record(threats=(threat(replay=share()),)), BY_ANY | WHITE | ASKED | {"AML.T0043.002"}),
        (record(stage="hardened-1"), BY_ANY | WHITE | ASKED | {"AML.M0003"}),
        (record(threats=(threat(sound=False),)), set()),
        (record(threats=(threat(name="unbounded"),)), set()),
    ],
    ids=["standard", "warm", "no gradients", "square", "transfer", "replay", "hardened", "unsound", "unbounded"],
)
def test_an_entry_is_tested_by_what_ran_and_may_be_believed(one, expected):
    assert ids_covered_by(one) == expected


def test_every_entry_that_is_said_to_be_measured_can_be_tested_and_no_other():
    everything = record(stage="hardened-1", threats=(threat(replay=share()),))
    assert ids_covered_by(everything) == {one.id for one in CATALOGUE if one.measured_by}


def test_the_newest_sound_measurement_is_named():
    unsound = record(4, threats=(threat(sound=False),))
    both = record(3, threats=(threat(), threat(name="l2_0.5", label="L2 0.5"), threat(label="void", sound=False)))
    row = next(row for row in coverage([both, record(1), unsound, record(2)]) if row.entry.id == "AML.T0015")
    assert row.by is not None
    assert (row.by.version, row.by.suite, row.by.at, row.by.run_id) == (3, "standard", both.measured_at, "run3")
    assert row.by.threats == ("L-inf 0.15", "L2 0.5")
    assert str(row).endswith("tested by suite standard under L-inf 0.15, L2 0.5 on version 3, 2026-01-03")


def test_what_a_config_claims_is_tested_by_outside_evidence_only():
    rows = {row.entry.id: row for row in coverage([record()], ["AML.T0024.002", "AML.T0015", "AML.T0058"])}
    outside: Covered = rows["AML.T0024.002"]
    assert outside.claimed
    assert not outside.tested
    assert "only evidence from outside" in outside.why_not
    assert rows["AML.T0015"].claimed
    assert rows["AML.T0015"].tested
    assert rows["AML.T0058"].claimed
    assert not rows["ML05:2023"].claimed


def test_findings_and_coverage_load_nothing_heavy():
    heavy = ("torch", "pandas", "prefect", "mlflow", "sklearn", "matplotlib")
    code = (
        f"import sys, tasks.posture.findings, tasks.posture.coverage; print([m for m in {heavy} if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert ran.stdout.strip() == "[]"
