import base64
import hashlib
import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.attacks import SUITES, ThreatModel
from tasks.errors import EvidenceBroken, StoreUnreachable, WrongInput
from tasks.metrics import RobustnessReport, Share, Sign, Soundness, ThreatReport
from tasks.posture import Record, ThreatRecord
from tasks.posture.consistency import mismatches
from tasks.posture.evidence import (
    LATER,
    ChampionFacts,
    CodeFacts,
    DataFacts,
    Evidence,
    SuiteFacts,
    VerdictFacts,
    WeightsFacts,
    chain,
    digest,
    fooled_digest,
    parse,
    rows_digest,
    to_bytes,
)
from tasks.verdicts import Check, Policy, Verdict

N, RUN = 203, "5f0c"
THREATS = (ThreatModel(norm="linf", eps=0.1), ThreatModel(norm="l2", eps=1.5))
SUITE, POLICY = SUITES["quick"], Policy(floor=0.3)
WEIGHTS = b"\x08\x00\x00\x00\x00\x00\x00\x00{}      weights"
AT = "2026-01-31T12:00:00+00:00"


@dataclass(frozen=True)
class Kept:
    """What one evaluation has left behind."""

    evidence: Evidence
    files: Mapping[str, bytes]
    record: Record

    def found(self, *, expected: str | None = None, read: Callable[[str], bytes] | None = None) -> list[str]:
        """Every mismatch; expected by the registry is this very evidence unless another digest is given."""
        raw = to_bytes(self.evidence)
        record = self.record.model_copy(update={"evidence": digest(raw)})
        expected = digest(raw) if expected is None else expected
        return list(mismatches(raw, expected, read or self.files.__getitem__, record=record))

    def rewritten(self, path: str, change: Callable[[Any], Any], **facts: Any) -> "Kept":
        """With a JSON file changed and its new digest in the evidence: what was wrong when it was written down."""
        values = json.loads(self.files[path])
        changed = change(values)
        raw = json.dumps(values if changed is None else changed).encode()
        artifacts = {**self.evidence.artifacts, path: digest(raw)}
        evidence = self.evidence.model_copy(update={"artifacts": artifacts, **facts})
        return replace(self, evidence=evidence, files={**self.files, path: raw})


def under(threat: ThreatModel, right: np.ndarray, fooled: np.ndarray) -> ThreatReport:
    return ThreatReport(
        threat=threat,
        suite=SUITE.name,
        suite_digest=SUITE.digest,
        clean=Share.of(int(right.sum()), N),
        robust=Share.of(int((~fooled).sum()), N),
        attacks=(),
        standing=base64.b64encode(np.packbits(~fooled).tobytes()).decode(),
        forward_samples=4000,
        backward_samples=2000,
        seconds=1.25,
        soundness=Soundness(
            signs=(Sign(name="a sign", kind="masking", state="ok", says="it was looked at."),), passes=10, share=0.01
        ),
    )


def measured(threats: tuple[ThreatModel, ...] = THREATS, split: str = "test") -> Kept:
    """What an evaluation with a known outcome leaves, made of the parts that evaluations are made of."""
    rng = np.random.default_rng(3)
    rows, right = np.arange(N) * 2 + 1, rng.random(N) < 0.95
    fooled = {threat.name: ~right | (rng.random(N) < 0.4) for threat in threats}
    reports = tuple(under(threat, right, fooled[threat.name]) for threat in threats)
    report = RobustnessReport(
        stage="baseline",
        split=split,
        data="digits",
        data_digest="d" * 16,
        weights_digest=digest(WEIGHTS)[:16],
        clean=reports[0].clean,
        threats=reports,
        confidence=0.95,
        seed=7,
        measured_at=AT,
        device="cpu",
        versions={"torch": "2.13.0"},
        seconds=2.5,
    )
    checks = (Check(name="a", outcome="pass", reason="good"), Check(name="b", outcome="fail", reason="too low"))
    verdict = Verdict(outcome="fail", checks=checks)
    place = "" if split == "test" else f"{split}/"
    decided = {"verdict": verdict.model_dump(mode="json"), "policy": POLICY.model_dump(mode="json")}
    files = {
        f"{place}report.json": json.dumps(report.model_dump(mode="json"), indent=2).encode(),
        f"{place}verdict.json": json.dumps(decided, indent=2).encode(),
        "weights/model.safetensors": WEIGHTS,
    }
    for name, hit in fooled.items():
        files[f"outcomes/{place}{name}.json"] = table(rows, right, hit)
        files[f"adversarial/{place}{name}.npz"] = rng.bytes(400)
    evidence = witness(report, verdict, rows, fooled, files)
    return Kept(evidence, files, recorded(evidence, report))


def table(rows: np.ndarray, right: np.ndarray, fooled: np.ndarray) -> bytes:
    columns = ["row", "clean_correct", "fooled", "fooled_by", "prediction"]
    data = [[int(r), bool(c), bool(f), "", 0] for r, c, f in zip(rows, right, fooled, strict=True)]
    return json.dumps({"columns": columns, "data": data}).encode()


def witness(report, verdict, rows, fooled, files) -> Evidence:
    return Evidence(
        name="digits",
        version=3,
        stage="baseline",
        run_id=RUN,
        made_at=AT,
        data=DataFacts(name="digits", digest="d" * 16, split=report.split, rows=rows_digest(rows.tolist())),
        weights=WeightsFacts(
            model="digits-cnn",
            kind="weights",
            uri=f"runs:/{RUN}/weights/model.safetensors",
            digest=digest(WEIGHTS)[:16],
        ),
        code=CodeFacts(digest="c" * 16, version="0.1.0"),
        environment={"torch": "2.13.0", "python": "3.11.9", "device": "cpu"},
        config={"evaluation": {"seed": 7, "samples": N}, "policy": POLICY.model_dump(mode="json")},
        suite=SuiteFacts(
            name=SUITE.name,
            digest=SUITE.digest,
            attacks=tuple(json.loads(json.dumps(a.resolved(), default=str)) for a in SUITE.attacks),
        ),
        threats={threat.threat.name: threat.threat.digest for threat in report.threats},
        seed=7,
        verdict=VerdictFacts(outcome=verdict.outcome, reasons=verdict.reasons),
        outcomes={name: fooled_digest(hit.tolist()) for name, hit in fooled.items()},
        artifacts={path: digest(raw) for path, raw in files.items()},
    )


def recorded(evidence: Evidence, report: RobustnessReport) -> Record:
    return Record(
        name="digits",
        version=3,
        stage="baseline",
        run_id=RUN,
        measured_at=AT,
        verdict="fail",
        reason="too low",
        data="digits",
        data_digest="d" * 16,
        split=report.split,
        samples=N,
        seed=7,
        seeds=1,
        suite=SUITE.name,
        suite_digest=SUITE.digest,
        weights_digest=report.weights_digest,
        code="c" * 16,
        environment=evidence.environment,
        confidence=0.95,
        clean=report.clean,
        threats=tuple(
            ThreatRecord(
                name=t.threat.name,
                label=str(t.threat),
                digest=t.threat.digest,
                robust=t.robust,
                sound=True,
                floor=0.3,
                forward_samples=4000,
                backward_samples=2000,
                seconds=1.25,
            )
            for t in report.threats
        ),
    )


@pytest.fixture(scope="module")
def kept() -> Kept:
    return measured()


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


# --- the form ---


def test_the_bytes_do_not_depend_on_the_order_of_keys(kept):
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    raw = to_bytes(kept.evidence)
    assert list(turned(json.loads(raw))) != list(json.loads(raw))
    assert to_bytes(Evidence.model_validate(turned(json.loads(raw)))) == raw


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(config=st.dictionaries(st.text(max_size=5), JSON, max_size=4), rng=st.randoms())
def test_whatever_a_config_holds_comes_back_and_hashes_the_same(kept, config, rng):
    evidence = kept.evidence.model_copy(update={"config": config})
    raw = to_bytes(evidence)
    shuffled = list(config.items())
    rng.shuffle(shuffled)
    assert to_bytes(kept.evidence.model_copy(update={"config": dict(shuffled)})) == raw
    assert parse(raw).config == config
    assert to_bytes(parse(raw)) == raw


def test_format_1_is_written_in_these_very_bytes_for_ever(kept):
    facts = {
        "artifacts": {"report.json": "0" * 64},
        "outcomes": {"linf_0.1": "0" * 64},
        "config": {"é": [1, 0.5, None]},
    }
    facts |= {"threats": {"linf_0.1": "0" * 16}, "suite": SuiteFacts(name="s", digest="0" * 16, attacks=({"a": 1},))}
    facts |= {"data": DataFacts(name="d", digest="0" * 16, split="test", rows="0" * 64)}
    facts |= {"weights": WeightsFacts(model="m", kind="onnx", uri="u", digest="0" * 16)}
    zeros, sixteen = "0" * 64, "0" * 16
    assert to_bytes(kept.evidence.model_copy(update=facts)).decode() == (
        f'{{"artifacts":{{"report.json":"{zeros}"}},"code":{{"commit":"","digest":"cccccccccccccccc",'
        '"version":"0.1.0"},"config":{"é":[1,0.5,null]},"corpus":{},'
        f'"data":{{"digest":"{sixteen}","name":"d","rows":"{zeros}","split":"test"}},'
        '"environment":{"device":"cpu","python":"3.11.9","torch":"2.13.0"},"format":"redoubt-evidence/1",'
        '"made_at":"2026-01-31T12:00:00+00:00","model_code":"","name":"digits",'
        f'"outcomes":{{"linf_0.1":"{zeros}"}},"previous":"","run_id":"5f0c","seed":7,"seeds":1,"stage":"baseline",'
        f'"suite":{{"attacks":[{{"a":1}}],"digest":"{sixteen}","name":"s"}},"threats":{{"linf_0.1":"{sixteen}"}},'
        '"verdict":{"outcome":"fail","reasons":["too low"]},"version":3,'
        f'"weights":{{"digest":"{sixteen}","kind":"onnx","model":"m","uri":"u"}}}}\n'
    )


def test_samples_are_hashed_as_described():
    assert fooled_digest([True, False, True]) == hashlib.sha256(b"3:\xa0").hexdigest()
    assert fooled_digest([True, False, True]) != fooled_digest([True, False, True, False])
    assert rows_digest([0, 5, 2**40]) == hashlib.sha256(struct.pack("<3q", 0, 5, 2**40)).hexdigest()
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: raw.rstrip(), "canonical form"),
        (lambda raw: b" " + raw, "canonical form"),
        (lambda raw: json.dumps(json.loads(raw), indent=1).encode(), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":1,"seed":7,'), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":7.0,'), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":"7",'), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":7,"more":1,'), "more: Extra inputs are not permitted"),
        (lambda raw: raw.replace(b'"seed":7,', b""), "seed: Field required"),
        (lambda raw: raw.replace(b'"samples":203', b'"samples":NaN'), "cannot be written as JSON"),
        (lambda raw: raw.replace(b'"samples":203', b'"samples":1e999'), "cannot be written as JSON"),
        (lambda raw: raw.replace(b"evidence/1", b"evidence/2"), "format"),
        (lambda raw: raw.replace(b'"outcomes":{"l2_1.5"', b'"outcomes":{"l2_9"'), "outcomes are of"),
        (lambda raw: raw.replace(b'"adversarial/l2', b'"../adversarial/l2'), "is no path inside a run"),
        (lambda raw: raw.replace(b"+00:00", b""), "names no time zone"),
        (lambda raw: raw.replace(b"2026-01-31T", b"2026-31-01T"), "made_at"),
        (lambda raw: raw.replace(b"digits", b"dig\xffts"), "Invalid JSON"),
        (lambda raw: raw[: len(raw) // 2], "Invalid JSON"),
        (lambda raw: b"[" * 100_000, "Invalid JSON"),
        (lambda raw: b"", "Invalid JSON"),
        (lambda raw: b"null", "object"),
    ],
)  # fmt: skip
def test_what_is_not_exactly_an_evidence_file_is_refused_with_the_reason(kept, change, why):
    raw = to_bytes(kept.evidence)
    changed = change(raw)
    assert changed != raw
    with pytest.raises(EvidenceBroken, match=why):
        parse(changed)
    found = list(mismatches(changed, digest(changed), kept.files.__getitem__))
    assert len(found) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=["nan", "inf", "half a character"])
def test_a_config_that_json_cannot_hold_is_wrong_input(kept, value):
    with pytest.raises(WrongInput, match="cannot be written as JSON"):
        to_bytes(kept.evidence.model_copy(update={"config": {"policy": {"floor": value}}}))


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "a//b", "./a", "", "a\\b", "a\nb", "a/"])
def test_a_path_that_leaves_the_run_is_refused(kept, path):
    values = kept.evidence.model_dump() | {"artifacts": {path: "0" * 64}}
    with pytest.raises(ValueError, match="is no path inside a run"):
        Evidence.model_validate(values)


# --- the chain ---


@pytest.fixture
def links(kept) -> list[bytes]:
    """Four files of evidence of one version, the oldest first."""
    made: list[bytes] = []
    for day in range(1, 5):
        previous = digest(made[-1]) if made else ""
        facts = {"made_at": f"2026-02-0{day}T12:00:00+00:00", "previous": previous, "run_id": f"run-{day}"}
        made.append(to_bytes(kept.evidence.model_copy(update=facts)))
    return made


def shelf(*raw: bytes) -> dict[str, tuple[bytes, ...]]:
    return {digest(one): (one,) for one in raw}


def walked(head: str, there: Mapping[str, tuple[bytes, ...]]) -> tuple[list[str], str]:
    """The runs that were passed, the newest first, and what stopped the walk."""
    runs = []
    try:
        for evidence in chain(head, lambda wanted: there.get(wanted, ())):
            runs.append(evidence.run_id)
    except EvidenceBroken as broken:
        return runs, str(broken)
    return runs, ""


def test_the_chain_is_walked_from_the_head_to_the_start(links):
    assert walked(digest(links[-1]), shelf(*links)) == (["run-4", "run-3", "run-2", "run-1"], "")
    assert walked(digest(links[0]), shelf(*links)) == (["run-1"], "")


@pytest.mark.parametrize("gone", range(4))
def test_a_link_that_was_deleted_leaves_a_gap(links, gone):
    runs, why = walked(digest(links[-1]), shelf(*links[:gone], *links[gone + 1 :]))
    assert runs == [f"run-{number}" for number in range(4, gone + 1, -1)]
    assert digest(links[gone]) in why
    assert why.endswith("is missing: the chain has a gap.")


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (0, 3), (2, 3)])
def test_links_that_changed_places_are_found_out(links, a, b):
    there = shelf(*links)
    there[digest(links[a])], there[digest(links[b])] = (links[b],), (links[a],)
    runs, why = walked(digest(links[-1]), there)
    assert runs == [f"run-{number}" for number in range(4, b + 1, -1)]
    assert f"hashes to {digest(links[a])}: it was changed" in why


def test_a_link_that_was_put_between_two_others_is_found_out(links):
    new = to_bytes(parse(links[2]).model_copy(update={"run_id": "new", "previous": digest(links[1])}))
    behind = to_bytes(parse(links[2]).model_copy(update={"previous": digest(new)}))
    there = shelf(*links, new) | {digest(links[2]): (behind,)}
    runs, why = walked(digest(links[-1]), there)
    assert runs == ["run-4"]
    assert f"hashes to {digest(behind)}: it was changed" in why


@pytest.mark.parametrize("place", range(4))
def test_a_link_that_was_edited_in_place_is_found_out(links, place):
    edited = to_bytes(parse(links[place]).model_copy(update={"seed": 99}))
    runs, why = walked(digest(links[-1]), shelf(*links) | {digest(links[place]): (edited,)})
    assert len(runs) == 3 - place
    assert "it was changed" in why


def test_an_impostor_beside_the_true_file_changes_nothing(links):
    impostor = to_bytes(parse(links[1]).model_copy(update={"seed": 99}))
    there = shelf(*links) | {digest(links[1]): (impostor, links[1])}
    assert walked(digest(links[-1]), there)[1] == ""


def test_links_that_name_each_other_do_not_turn_in_a_circle(kept):
    a, b = "a" * 64, "b" * 64
    there = {
        a: (to_bytes(kept.evidence.model_copy(update={"previous": b})),),
        b: (to_bytes(kept.evidence.model_copy(update={"previous": a})),),
    }
    runs, why = walked(a, there)
    assert runs == []
    assert "it was changed" in why


@pytest.mark.parametrize("head", ["", "0" * 64, "latest"])
def test_a_head_that_names_nothing_is_a_gap_and_no_empty_chain(links, head):
    assert walked(head, shelf(*links)) == ([], f"evidence {head!r} is missing: the chain has a gap.")


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "letters"},
        {"version": 2},
        {"weights": WeightsFacts(model="m", kind="weights", uri="u", digest="0" * 16)},
    ],
    ids=["another model", "another version", "other weights"],
)
def test_a_chain_that_goes_over_to_another_version_is_refused(links, facts):
    other = to_bytes(parse(links[0]).model_copy(update=facts))
    head = to_bytes(parse(links[1]).model_copy(update={"previous": digest(other)}))
    runs, why = walked(digest(head), shelf(head, other))
    assert runs == ["run-2"]
    assert "A chain holds the evidence of one version only." in why


def test_the_first_link_may_be_older_than_its_versions_number(links):
    first = to_bytes(parse(links[0]).model_copy(update={"version": None}))
    head = to_bytes(parse(links[1]).model_copy(update={"previous": digest(first)}))
    assert walked(digest(head), shelf(head, first)) == (["run-2", "run-1"], "")


def test_a_link_that_is_no_evidence_is_refused(links):
    head = to_bytes(parse(links[1]).model_copy(update={"previous": digest(b"{}")}))
    runs, why = walked(digest(head), shelf(head, b"{}"))
    assert runs == ["run-2"]
    assert why.startswith("this is no evidence file")
