"""What an evaluation with a known outcome leaves behind, made without one."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.attacks import SUITES, ThreatModel
from tasks.metrics import RobustnessReport, Share, Sign, Soundness, ThreatReport
from tasks.posture import Record, ThreatRecord
from tasks.posture.consistency import mismatches
from tasks.posture.evidence import (
    CodeFacts,
    DataFacts,
    Evidence,
    SuiteFacts,
    VerdictFacts,
    WeightsFacts,
    digest,
    fooled_digest,
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
