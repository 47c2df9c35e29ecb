"""Tie a verdict to everything that it rests on: one evidence file in the run, its digest on the version."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.data import Data
from tasks.metrics import EvaluationConfig, RobustnessReport, choose_rows
from tasks.metrics.code import engine_code
from tasks.metrics.replayed import ReplayReport
from tasks.models import StoredModel
from tasks.posture.evidence import (
    FILE,
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
from tasks.posture.signing import sign
from tasks.track import MODEL_FILES, commit, environment, log_bytes, model_artifacts
from tasks.verdicts import Verdict

SIGNATURE = f"{FILE}.sig"


def prove(
    name: str,
    version: int | None,
    model: StoredModel,
    data: Data,
    report: RobustnessReport,
    verdict: Verdict,
    asked: Mapping[str, Any],
    *,
    replays: Sequence[ReplayReport],
    previous: str,
) -> tuple[Evidence, str]:
    """The evidence, and the SHA-256 of its file, which is kept in the model's run.

    asked is the config of the evaluation. It is signed where REDOUBT_SIGNING_KEY names a private key. Raises
    WrongInput for a key that cannot be used.
    """
    suite = EvaluationConfig.model_validate(asked["evaluation"]).resolved_suite()
    rows = choose_rows(data.sizes[report.split], report.clean.n, report.seed)
    evidence = Evidence(
        name=name,
        version=version,
        stage=model.stage,
        run_id=model.run_id,
        made_at=report.measured_at,
        data=DataFacts(name=data.name, digest=data.digest, split=report.split, rows=rows_digest(rows.tolist())),
        weights=WeightsFacts(model=model.model, kind=model.kind, uri=model.weights, digest=model.digest),
        model_code=report.model_code,
        code=CodeFacts(digest=engine_code(), commit=commit(), version=environment()["redoubt"]),
        environment=environment() | {"device": report.device},
        config=json.loads(json.dumps(asked)),
        suite=SuiteFacts(
            name=suite.name,
            digest=suite.digest,
            attacks=tuple(json.loads(json.dumps(attack.resolved())) for attack in suite.attacks),
        ),
        threats={threat.threat.name: threat.threat.digest for threat in report.threats},
        seed=report.seed,
        seeds=report.seeds,
        verdict=VerdictFacts(outcome=verdict.outcome, reasons=verdict.reasons),
        outcomes={threat.threat.name: fooled_digest((~threat.held()).tolist()) for threat in report.threats},
        artifacts=_files(model),
        corpus={replay.threat.name: replay.corpus for replay in replays},
        previous=previous,
    )
    raw = to_bytes(evidence)
    log_bytes(model.run_id, raw, FILE)
    key = os.environ.get("REDOUBT_SIGNING_KEY")
    if key:
        log_bytes(model.run_id, sign(raw, Path(key)), SIGNATURE)
    return evidence, digest(raw)


def _files(model: StoredModel) -> dict[str, str]:
    """The SHA-256 of every file that the run keeps, and of the logged model that others load from the registry."""
    kept = {path: digest(raw) for path, raw in model_artifacts(f"runs:/{model.run_id}/").items()}
    kept = {path: found for path, found in kept.items() if path not in (FILE, SIGNATURE)}
    if model.model_uri:
        kept |= {f"{MODEL_FILES}{path}": digest(raw) for path, raw in model_artifacts(model.model_uri).items()}
    return kept
