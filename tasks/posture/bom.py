"""The bill of materials of a version: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/."""

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from tasks.posture.card import evidence_digest, limits
from tasks.posture.evidence import FILE, Evidence
from tasks.posture.record import Record
from tasks.statistics import Share

ELSEWHERE = {"python", "device", "redoubt"}  # keys of an environment that are no packages of PyPI's


def ml_bom(record: Record, evidence: Evidence, packages: Mapping[str, str]) -> dict[str, Any]:
    """The bill of materials as what JSON holds: the model with its card, the data, and each package with its version.

    packages: name of a distribution: its version; an environment as a record holds it will do. The same evidence
    gives the same serial number. Digests that are SHA-256 cut short stand under properties, for a hash must be whole.
    Raises EvidenceBroken where the evidence is not the record's.
    """
    found = evidence_digest(record, evidence)
    model = f"model:{record.name}@{record.version}"
    data = f"data:{record.data_digest}"
    rows = [_library(name, packages[name]) for name in sorted({*packages} - ELSEWHERE)]
    libraries = {row["bom-ref"]: row for row in rows}
    component = {
        "type": "machine-learning-model",
        "bom-ref": model,
        "name": record.name,
        "version": str(record.version),
        **_hashes(_weights_hash(evidence)),
        "modelCard": _card(record, evidence, data),
        "externalReferences": [_evidence_file(record, found)],
        "properties": _properties(record, evidence, found),
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'redoubt-evidence:{found}')}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromisoformat(evidence.made_at).isoformat(),
            "tools": {"components": [{"type": "application", "name": "redoubt", "version": evidence.code.version}]},
            "component": component,
        },
        "components": [_dataset(record, data), *libraries.values()],
        "dependencies": [
            {"ref": model, "dependsOn": [data, *libraries]},
            *({"ref": ref} for ref in (data, *libraries)),
        ],
    }


def _card(record: Record, evidence: Evidence, data: str) -> dict[str, Any]:
    metrics = [_metric("accuracy", "inputs as they are", record.clean)]
    metrics += [_metric("robust accuracy", threat.label, threat.robust) for threat in record.threats if threat.sound]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "classification",
            "modelArchitecture": evidence.weights.model,
            "datasets": [{"ref": data}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {"technicalLimitations": limits(record)},
    }


def _metric(kind: str, piece: str, share: Share) -> dict[str, Any]:
    interval = {"lowerBound": repr(share.lo), "upperBound": repr(share.hi)}
    return {"type": kind, "value": repr(share.value), "slice": piece, "confidenceInterval": interval}


def _weights_hash(evidence: Evidence) -> str | None:
    """The whole SHA-256 of the weights' file, where it is one of the artifacts: the digest is its beginning."""
    return next((sha for sha in evidence.artifacts.values() if sha.startswith(evidence.weights.digest)), None)


def _hashes(sha256: str | None) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def _evidence_file(record: Record, sha256: str) -> dict[str, Any]:
    return {"type": "evidence", "url": f"runs:/{quote(record.run_id, safe='')}/{FILE}", **_hashes(sha256)}


def _properties(record: Record, evidence: Evidence, found: str) -> list[dict[str, str]]:
    values = {
        "verdict": record.verdict,
        "reason": record.reason,
        "evidence": found,
        "run": record.run_id,
        "weights_digest": record.weights_digest,
        "weights_kind": evidence.weights.kind,
        "suite": record.suite,
        "suite_digest": record.suite_digest,
        "code_digest": record.code,
        "commit": evidence.code.commit,
        "confidence": repr(record.confidence),
        "seed": str(record.seed),
        "seeds": str(record.seeds),
        "device": evidence.environment.get("device", ""),
        "python": evidence.environment.get("python", ""),
    }
    values |= {f"threat/{threat.name}": threat.digest for threat in record.threats}
    return _named(values)


def _dataset(record: Record, ref: str) -> dict[str, Any]:
    about = f"Split {record.split}, {record.samples} samples, was measured."
    return {
        "type": "data",
        "bom-ref": ref,
        "name": record.data,
        "version": record.data_digest,
        "data": [{"type": "dataset", "name": record.data, "description": about}],
        "properties": _named({"data_digest": record.data_digest, "split": record.split}),
    }


def _library(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{quote(_normal(name), safe='')}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _normal(name: str) -> str:
    """The name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _named(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Properties under our own name, without the empty ones."""
    return [{"name": f"redoubt:{name}", "value": value} for name, value in values.items() if value]
