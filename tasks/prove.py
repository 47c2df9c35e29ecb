"""Tie a verdict to everything that it rests on: one evidence file in the run, its digest on the version."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.data import Data
from tasks.errors import EvidenceBroken
from tasks.metrics import EvaluationConfig, RobustnessReport, choose_rows
from tasks.metrics.code import engine_code
from tasks.metrics.replayed import ReplayReport
from tasks.models import StoredModel
from tasks.posture.appendix import APPENDIX, Appendix
from tasks.posture.evidence import (
    FILE,
    ChampionFacts,
    CodeFacts,
    DataFacts,
    Evidence,
    FindingFacts,
    SuiteFacts,
    VerdictFacts,
    WeightsFacts,
    digest,
    fooled_digest,
    rows_digest,
    to_bytes,
)
from tasks.posture.signing import sign
from tasks.results import BOM, CARD
from tasks.track import MODEL_FILES, commit, environment, load_bytes, location, log_bytes, model_artifacts, written
from tasks.verdicts import Champion, Verdict

SIGNED = ".sig"  # after the path of a file, that of its signature
SIGNATURE = f"{FILE}{SIGNED}"
LATER = (FILE, SIGNATURE, CARD, BOM, APPENDIX, f"{APPENDIX}{SIGNED}")  # what the evidence cannot hold the digest of


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
    champion: Champion | None = None,
    ledger: Mapping[str, FindingFacts] | None = None,
    corpora: Mapping[str, str] | None = None,
) -> tuple[Evidence, str]:
    """The evidence, and the SHA-256 of its file, which is kept in the model's run.

    asked is the config of the evaluation; ledger and corpora are what the registered model's tags say after it. It is
    signed where REDOUBT_SIGNING_KEY names a private key. Raises
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
        artifacts=_files(name, version, model),
        corpus={replay.threat.name: replay.corpus for replay in replays},
        previous=previous,
        written_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        champion=ChampionFacts(**champion.facts) if champion else None,
        recalled=report.recalled,
        ledger=dict(ledger or {}),
        corpora=dict(corpora or {}),
    )
    raw = to_bytes(evidence)
    _keep(model.run_id, raw, FILE)
    return evidence, digest(raw)


def append(run_id: str, evidence: Sequence[str], files: Mapping[str, bytes]) -> str:
    """The SHA-256 of a new appendix in the run: digests of its files that tell of the evidence. Signed likewise."""
    artifacts = {path: digest(raw) for path, raw in files.items()}
    raw = Appendix(run_id=run_id, evidence=tuple(evidence), artifacts=artifacts).to_bytes()
    _keep(run_id, raw, APPENDIX)
    return digest(raw)


def _keep(run_id: str, raw: bytes, path: str) -> None:
    """Keep the file, and beside it its signature where there is a key."""
    log_bytes(run_id, raw, path)
    key = os.environ.get("REDOUBT_SIGNING_KEY")
    if key:
        log_bytes(run_id, sign(raw, Path(key)), f"{path}{SIGNED}")


def _files(name: str, version: int | None, model: StoredModel) -> dict[str, str]:
    """The SHA-256 of every file that the run keeps, and of the model that others load from the registry."""
    paths = [path for path in written(model.run_id) if path not in LATER]
    kept = {path: digest(load_bytes(f"runs:/{model.run_id}/{path}")) for path in paths}
    return kept | {f"{MODEL_FILES}{path}": found for path, found in _served(name, version, model).items()}


def _served(name: str, version: int | None, model: StoredModel) -> dict[str, str]:
    """The SHA-256 of every file of the model that others load. Raises EvidenceBroken where that is another one."""
    places = [model.model_uri] if model.model_uri else []
    places += [f"models:/{name}/{version}"] if version is not None else []
    if len({location(place) for place in places}) == 1:
        places = places[:1]  # one folder under two names
    found = [{path: digest(raw) for path, raw in model_artifacts(place).items()} for place in places]
    if len(found) == 2 and found[0] != found[1]:
        raise EvidenceBroken(
            f"{places[1]} serves other files than {places[0]}, which was evaluated: the registry was changed. Register "
            "what you trust as a new version."
        )
    return found[0] if found else {}
