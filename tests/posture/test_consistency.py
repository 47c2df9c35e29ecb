"""What was changed, forged or taken away among the evidence, its files and the record is named."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tasks.attacks import ThreatModel
from tasks.errors import StoreUnreachable
from tasks.metrics import Share
from tasks.posture.consistency import mismatches
from tasks.posture.evidence import (
    LATER,
    ChampionFacts,
    CodeFacts,
    DataFacts,
    VerdictFacts,
    digest,
    fooled_digest,
    parse,
    to_bytes,
)
from tests.posture.left_behind import AT, THREATS, N, measured

LINF = "outcomes/linf_0.1.json"


# --- the whole ---


@pytest.mark.parametrize("split", ["test", "select"])
def test_what_nobody_touched_has_no_mismatch(split):
    assert measured(split=split).found() == []


@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel(norm="linf", eps="8/255"),
        ThreatModel(norm="l2", eps=1e-7),
        ThreatModel(norm="l1", eps=12, bounds=(-1e20, 1e20), scale=(1.0, 1e-9, 3)),
        ThreatModel(norm="l0", eps=3, mask=(True, False)),
        ThreatModel.model_validate({"norm": "unbounded"}),
    ],
    ids=str,
)
def test_a_threat_models_digest_is_that_of_the_fields_in_the_report(threat):
    assert measured(threats=(threat,)).found() == []


# --- one byte ---


def test_one_flipped_byte_names_the_file_and_both_digests(kept):
    rng = random.Random(1)
    for path, raw in kept.files.items():
        for place in {0, len(raw) - 1, *rng.sample(range(len(raw)), min(len(raw), 40))}:
            changed = raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]
            found = kept.found(read={**kept.files, path: changed}.__getitem__)
            assert found == [
                f"{path} hashes to {digest(changed)}, the evidence says {digest(raw)}: the file was changed."
            ]


@pytest.mark.parametrize("cut", [b"", b"\n"], ids=["cut short", "made longer"])
def test_a_file_of_another_length_is_named(kept, cut):
    for path, raw in kept.files.items():
        found = kept.found(read={**kept.files, path: raw + cut if cut else raw[:-1]}.__getitem__)
        assert found[0].startswith(f"{path} hashes to")


def test_one_flipped_byte_of_the_evidence_is_found_against_the_registry_first(kept):
    raw, rng = to_bytes(kept.evidence), random.Random(2)
    for place in {0, len(raw) - 1, *rng.sample(range(len(raw)), 60)}:
        changed = raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]
        first = next(mismatches(changed, digest(raw), kept.files.__getitem__))
        assert first == f"the evidence file hashes to {digest(changed)}, the registry expects {digest(raw)}."


def test_a_registry_that_expects_nothing_is_a_mismatch(kept):
    assert kept.found(expected="")[0].endswith("the registry expects none.")


def test_a_missing_artifact_is_named_whatever_the_store_raises(kept):
    def unreachable(path: str) -> bytes:
        raise StoreUnreachable("no server answers\nat all")

    fewer = {path: raw for path, raw in kept.files.items() if path != LINF}
    assert kept.found(read=fewer.__getitem__) == [f"{LINF} cannot be read: KeyError: '{LINF}'."]
    found = kept.found(read=unreachable)
    assert len(found) == len(kept.files)
    assert found[0].endswith("cannot be read: StoreUnreachable: no server answers at all.")


def test_mismatches_come_in_the_order_evidence_artifacts_contents(kept):
    forged = kept.evidence.model_copy(update={"seed": 8})
    read = {**kept.files, "weights/model.safetensors": b"other"}.__getitem__
    found = list(mismatches(to_bytes(forged), digest(to_bytes(kept.evidence)), read))
    assert [said.split(" ")[0] for said in found] == ["the", "weights/model.safetensors", "report.json:"]


# --- fields that older evidence does not have ---


def test_evidence_from_before_the_later_fields_reads_as_it_was_written(kept):
    raw = to_bytes(kept.evidence)
    assert not any(name.encode() in raw for name in LATER)
    assert to_bytes(parse(raw)) == raw
    assert not parse(raw).complete


def test_evidence_without_a_champion_says_so_and_is_not_taken_for_older(kept):
    later = {"written_at": AT, "champion": None, "recalled": (), "ledger": {}, "corpora": {}}
    raw = to_bytes(kept.evidence.model_copy(update=later))
    assert b'"champion":null' in raw
    assert parse(raw).complete
    assert parse(raw).champion is None


def test_a_champion_that_verdict_and_evidence_name_otherwise_is_found(kept):
    champion = ChampionFacts(version=2, evidence="a" * 64, weights_digest="b" * 16)
    later = {"written_at": AT, "recalled": (), "ledger": {}, "corpora": {}}

    def put(values):
        values["champion"] = champion.model_dump()

    assert kept.rewritten("verdict.json", put, champion=champion, **later).found() == []
    found = kept.rewritten("verdict.json", put, champion=None, **later).found()
    assert "verdict.json: champion.version 2, but the evidence says None." in found
    other = champion.model_copy(update={"version": 1})
    assert kept.rewritten("verdict.json", put, champion=other, **later).found() == [
        "verdict.json: champion.version 2, but the evidence says 1."
    ]


# --- evidence that was edited ---


def test_evidence_edited_and_hashed_again_does_not_fit_the_registry(kept):
    verdict = VerdictFacts(outcome="pass", reasons=("all good",))
    forged = replace(kept, evidence=kept.evidence.model_copy(update={"verdict": verdict}))
    assert "the registry expects" in forged.found(expected=digest(to_bytes(kept.evidence)))[0]
    with_its_tag = forged.found()
    assert with_its_tag[0] == "verdict.json: verdict fail, but the evidence says pass."
    assert "the record: verdict fail, but the evidence says pass." in with_its_tag


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": DataFacts(name="digits", digest="e" * 16, split="test", rows="0" * 64)}, "report.json: data"),
    "seed": ({"seed": 8}, "report.json: seed 7, 1, but the evidence says 8, 1."),
    "threats": ({"threats": {t.name: "0" * 16 for t in THREATS}}, "report.json: threat models"),
    "outcomes": ({"outcomes": {t.name: "0" * 64 for t in THREATS}}, f"{LINF}: fooled samples hash to"),
    "policy": ({"config": {"policy": {}}}, "verdict.json: policy."),
    "no policy": ({"config": {}}, "verdict.json: policy."),
    "run": ({"run_id": "0000"}, "the record: run 5f0c, but the evidence says 0000."),
    "version": ({"version": 4}, "the record: version 3, but the evidence says 4."),
    "name": ({"name": "letters"}, "the record: name"),
    "stage": ({"stage": "hardened-1"}, "the record: stage"),
    "code": ({"code": CodeFacts(digest="b" * 16, version="0.1.0")}, "the record: code"),
    "environment": (
        {"environment": {"torch": "2.0"}},
        "the record: environment.torch 2.13.0, but the evidence says 2.0.",
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_evidence_that_contradicts_its_files_or_the_record_is_named(kept, forged):
    changes, sentence = FORGED[forged]
    found = replace(kept, evidence=kept.evidence.model_copy(update=changes)).found()
    assert any(said.startswith(sentence) for said in found), found


def test_evidence_without_a_number_yet_fits_the_record_of_any_version(kept):
    assert replace(kept, evidence=kept.evidence.model_copy(update={"version": None})).found() == []


def test_weights_that_are_not_the_file_beside_them_are_named(kept):
    weights = kept.evidence.weights.model_copy(update={"digest": "a" * 16})
    found = replace(kept, evidence=kept.evidence.model_copy(update={"weights": weights})).found()
    assert found[0].startswith(f"the evidence says that weights {'a' * 16} lie at weights/model.safetensors")


@pytest.mark.parametrize("path", ["report.json", "verdict.json", LINF, "weights/model.safetensors"])
def test_evidence_that_leaves_out_what_it_rests_on_is_named(kept, path):
    artifacts = {name: sha for name, sha in kept.evidence.artifacts.items() if name != path}
    found = replace(kept, evidence=kept.evidence.model_copy(update={"artifacts": artifacts})).found()
    assert len(found) == 1
    assert path in found[0]


# --- files that contradict one another, their digests all in order ---


def put(*where: str | int, value: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in where[:-1]:
            values = values[key]
        values[where[-1]] = value

    return change


def drop(*where: str | int) -> Callable[[Any], None]:
    """Without the last one of the list there."""

    def change(values: Any) -> None:
        for key in where:
            values = values[key]
        values.pop()

    return change


def exchange(values: dict[str, Any]) -> None:
    """One sample that fell stands, and one that stood falls: every count stays as it was."""
    place = values["columns"].index("fooled")
    flags = [row[place] for row in values["data"]]
    for there in (flags.index(True), flags.index(False)):
        values["data"][there][place] = not flags[there]


SHARE = {"value": 0.9, "lo": 0.8, "hi": 0.95, "n": N}
CONTRADICTIONS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "data": ("report.json", put("data_digest", value="e" * 16), "report.json: data digits, eeee"),
    "weights": ("report.json", put("weights_digest", value="e" * 16), "report.json: weights"),
    "split": ("report.json", put("split", value="train"), "report.json: split train"),
    "seeds": ("report.json", put("seeds", value=2), "report.json: seed 7, 2"),
    "suite": ("report.json", put("threats", 1, "suite_digest", value="e" * 16), "report.json: suite"),
    "radius": ("report.json", put("threats", 0, "threat", "eps", value=0.01), "report.json: threat models"),
    "a threat left out": ("report.json", drop("threats"), "report.json: threat models"),
    "robust": ("report.json", put("threats", 0, "robust", value=SHARE), f"{LINF}: robust accuracy"),
    "clean": ("report.json", put("clean", value=SHARE), f"{LINF}: clean accuracy"),
    "standing": ("report.json", put("threats", 0, "standing", value="AAAA"), f"{LINF}: standing samples"),
    "not a report": ("report.json", lambda _: [], "report.json is not what an evaluation writes"),
    "outcome": ("verdict.json", put("verdict", "outcome", value="pass"), "verdict.json: verdict pass"),
    "reasons": ("verdict.json", put("verdict", "checks", 1, "reason", value="x"), "verdict.json: reasons x, but"),
    "policy": (
        "verdict.json",
        put("policy", "floor", value=0.0),
        "verdict.json: policy.floor 0.0, but the evidence says 0.3.",
    ),
    "no verdict": ("verdict.json", lambda _: {"policy": {}}, "verdict.json is not what an evaluation writes: verdict"),
    "row": (LINF, put("data", 5, 0, value=9999), f"{LINF}: rows hash to"),
    "row of no split": (LINF, put("data", 5, 0, value=10**30), f"{LINF} is not what an evaluation writes"),
    "fewer rows": (LINF, drop("data"), f"{LINF}: number of samples"),
    "no rows": (LINF, put("data", value=[]), f"{LINF}: number of samples 0, 0"),
    "right": (LINF, put("data", 5, 1, value=False), f"{LINF}: clean accuracy"),
    "exchanged": (LINF, exchange, f"{LINF}: standing samples hash to"),
    "a number for a flag": (LINF, put("data", 5, 2, value=1), f"{LINF} is not what an evaluation writes: a flag"),
    "a row cut short": (
        LINF,
        drop("data", 5),
        f"{LINF} is not what an evaluation writes: a row",
    ),
    "no flags": (LINF, put("columns", 2, value="other"), f"{LINF} is not what an evaluation writes"),
}


@pytest.mark.parametrize("planted", CONTRADICTIONS)
def test_files_that_contradict_the_evidence_or_one_another_are_named(kept, planted):
    path, change, sentence = CONTRADICTIONS[planted]
    found = kept.rewritten(path, change).found()
    assert any(said.startswith(sentence) for said in found), found


def test_outcomes_that_agree_with_the_evidence_still_must_agree_with_the_report(kept):
    flags = [bool(row[2]) for row in json.loads(kept.files[LINF])["data"]]
    flags[flags.index(True)] = False
    outcomes = kept.evidence.outcomes | {"linf_0.1": fooled_digest(flags)}

    def spared(values: dict[str, Any]) -> None:
        for row, flag in zip(values["data"], flags, strict=True):
            row[2] = flag

    found = kept.rewritten(LINF, spared, outcomes=outcomes).found()
    assert [said.split(" ")[1] for said in found] == ["robust", "standing"]
    assert all(said.startswith(f"{LINF}: ") and "but report.json says" in said for said in found)


# --- the record ---


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"verdict": "pass"}, "verdict pass"),
        ({"reason": "fine"}, "reason fine"),
        ({"clean": Share(**SHARE)}, "clean accuracy 0.9"),
        ({"samples": N + 1}, "number of samples"),
        ({"confidence": 0.99}, "confidence 0.99"),
        ({"measured_at": "2027-01-31T12:00:00+00:00"}, "time of measurement"),
        ({"weights_digest": "0" * 16}, "weights"),
        ({"data_digest": "0" * 16}, "data"),
        ({"suite_digest": "0" * 16}, "suite"),
        ({"split": "train"}, "split"),
        ({"seeds": 3}, "seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_record_that_says_something_else_is_named(kept, changes, what):
    found = replace(kept, record=kept.record.model_copy(update=changes)).found()
    assert len(found) == 1
    assert found[0].startswith(f"the record: {what}")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"robust": Share(**SHARE)}, "robust accuracy under linf_0.1 0.9"),
        ({"sound": False}, "soundness under linf_0.1 False"),
        ({"alarms": ("a sign",)}, "soundness under linf_0.1 True, a sign"),
        ({"digest": "0" * 16}, "threat model.linf_0.1"),
    ],
)
def test_a_record_that_says_something_else_of_a_threat_model_is_named(kept, changes, what):
    threats = (kept.record.threats[0].model_copy(update=changes), kept.record.threats[1])
    found = replace(kept, record=kept.record.model_copy(update={"threats": threats})).found()
    assert len(found) == 1
    assert found[0].startswith(f"the record: {what}")


@pytest.mark.parametrize(
    "change",
    [
        put("threats", 0, "soundness", "signs", 0, "state", value="alarm"),
        put("threats", 0, "soundness", value=None),
        put("threats", 0, "problems", value=["an attack raised"]),
    ],
    ids=["an alarm", "unchecked", "a problem"],
)
def test_a_record_that_calls_a_number_sound_that_is_not_is_named(kept, change):
    found = kept.rewritten("report.json", change).found()
    assert len(found) == 1
    assert found[0].startswith("the record: soundness under linf_0.1 True, none, but report.json says False")


def test_a_record_of_other_evidence_is_named(kept):
    raw = to_bytes(kept.evidence)
    other = kept.record.model_copy(update={"evidence": "0" * 64})
    found = list(mismatches(raw, digest(raw), kept.files.__getitem__, record=other))
    assert found == [f"the record: evidence {'0' * 64}, but the evidence says {digest(raw)}."]
