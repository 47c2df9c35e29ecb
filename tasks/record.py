"""Write down what one evaluation found: on the version, in the ledger, in the corpus, and as evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.announce import announce
from tasks.data import Data
from tasks.ledger import advanced, finding_tags, observed, with_reproducers
from tasks.metrics import RobustnessReport, ThreatReport
from tasks.metrics.code import engine_code
from tasks.metrics.corpus import Corpus
from tasks.metrics.replayed import ReplayReport
from tasks.models import StoredModel
from tasks.posture import Record, ThreatRecord
from tasks.posture.bom import ml_bom
from tasks.posture.card import model_card
from tasks.posture.coverage import coverage
from tasks.posture.finding import Finding
from tasks.posture.findings import crowned, ledger_metrics
from tasks.posture.lost import lost
from tasks.posture.standing import facts_of
from tasks.prove import append, prove
from tasks.recall import Known, known_of
from tasks.redact import veiled
from tasks.replay import corpora_of, corpus_place, corpus_tag, load_corpus
from tasks.reserve import reserved
from tasks.results import ASKED, BOM, CARD, load_adversarial
from tasks.track import (
    APPENDIX_OF,
    EVIDENCE,
    EVIDENCE_OF,
    RECORD,
    TRAINED_ON,
    WRITING,
    WRITTEN,
    as_json,
    environment,
    log_dict,
    log_files,
    log_metrics,
    set_tags,
    tag_abreast,
    tag_model,
    tag_version,
    timed,
)
from tasks.verdicts import Champion, Policy, Verdict


@task(name="record", task_run_name="record-{model.stage}", cache_policy=NO_CACHE)
@veiled
def record(
    name: str,
    version: int | None,
    model: StoredModel,
    data: Data,
    report: RobustnessReport,
    verdict: Verdict,
    asked: Mapping[str, Any],
    *,
    replays: Sequence[ReplayReport] = (),
    champion: Champion | None = None,
    crowning: bool = False,
    run_id: str,
) -> str:
    """The SHA-256 of the evidence on this verdict, which ties together all that is kept of it.

    asked is the config of the evaluation. A registered version gets its record and its evidence as tags, its findings
    go to the ledger, and what fooled it to the corpus. What is not registered keeps all of it in its run alone.
    crowning: it becomes champion next, which closes what it has mended.
    """
    with timed(run_id, f"record/{model.stage}"):
        log_dict(model.run_id, dict(asked), ASKED)
        if version is None:
            _, sha = prove(
                name, None, model, data, report, verdict, asked, replays=replays, previous="", champion=champion
            )
            set_tags(model.run_id, {"redoubt.model": name, "redoubt.evidence": sha})
            return sha
        with reserved(name):  # what others add meanwhile must not be lost
            sha, reasons = _recorded(name, version, model, data, report, verdict, asked, replays, champion, crowning)
        if reasons:
            announce("posture.regressed", name, version=version, run_id=run_id, reasons=reasons)
        return sha


def _recorded(
    name: str,
    version: int,
    model: StoredModel,
    data: Data,
    report: RobustnessReport,
    verdict: Verdict,
    asked: Mapping[str, Any],
    replays: Sequence[ReplayReport],
    champion: Champion | None,
    crowning: bool,
) -> tuple[str, tuple[str, ...]]:
    """Read what is kept of the model, add what was found, write it back.

    The SHA-256 of the evidence, and a sentence for each thing that held before and no longer does.
    """
    policy, before = Policy.model_validate(asked["policy"]), known_of(name)
    ledger = _ledger(before, version, model, data, report, verdict, policy, replays)
    if crowning or before.aliases.get("champion") == version:
        ledger = [crowned(finding, version, report.measured_at) for finding in ledger]
    to_write = finding_tags(ledger, before.findings) | _grown_corpus(before, version, model, data, report)
    known = replace(before, tags={**before.tags, **to_write})  # nobody else writes while it is reserved
    evidence, sha = prove(
        name,
        version,
        model,
        data,
        report,
        verdict,
        asked,
        replays=replays,
        previous=known.version(version).tags.get(EVIDENCE, ""),
        champion=champion,
        ledger={finding.id: facts_of(finding) for finding in known.findings},
        corpora=corpora_of(known),
    )
    kept = _record(name, version, model, report, verdict, policy, replays, sha)
    trained_on = before.version(version).tags.get(TRAINED_ON, "")
    card = model_card(kept, evidence, ledger, coverage([kept]), trained_on=trained_on)
    bom = ml_bom(kept, evidence, evidence.environment)
    beside = {CARD: card.encode(), BOM: as_json(bom)}
    log_files(model.run_id, beside)
    # In this order: a kill in between leaves a version that verifies, and that the same command records.
    appendix, there = append(model.run_id, (sha,), beside), before.version(version).tags
    tag_model(name, {WRITING: f"{model.run_id}:{sha}"})
    tag_model(name, to_write)
    tag_version(name, version, {f"{EVIDENCE_OF}{sha[:16]}": model.run_id})
    told = version_tags(report, verdict) | {f"{APPENDIX_OF}{sha[:16]}": appendix}
    tag_abreast(name, version, {key: value for key, value in told.items() if there.get(key) != value})
    tag_version(name, version, {EVIDENCE: sha, f"{RECORD}{kept.key}": kept.model_dump_json()})
    on_run = {"redoubt.model": name, "redoubt.version": str(version), "redoubt.key": kept.key}
    on_run["redoubt.evidence"] = sha  # evidence on a run must be in a chain
    log_metrics(model.run_id, ledger_metrics(ledger, datetime.now(UTC)), tags=on_run)
    tag_model(name, {WRITING: WRITTEN})
    return sha, lost(before.version(version).records(), kept, before.findings, ledger)


def version_tags(report: RobustnessReport, verdict: Verdict) -> dict[str, str]:
    """What people and other tools read on a version: the newest verdict and its numbers."""
    tags = {
        "redoubt.verdict": verdict.outcome,
        "redoubt.data_digest": report.data_digest,
        "redoubt.weights_digest": report.weights_digest,
        "redoubt.suite_digest": report.threats[0].suite_digest,
        "redoubt.clean_accuracy": f"{report.clean.value:.4f}",
    }
    return tags | {f"redoubt.robust_accuracy.{t.threat.name}": f"{t.robust.value:.4f}" for t in report.threats}


def _ledger(
    known: Known,
    version: int,
    model: StoredModel,
    data: Data,
    report: RobustnessReport,
    verdict: Verdict,
    policy: Policy,
    replays: Sequence[ReplayReport],
) -> list[Finding]:
    """The ledger after this evaluation."""
    name = known.name
    seen = with_reproducers(observed(name, version, model.run_id, data, report, verdict, policy, replays), report)
    return advanced(known.findings, seen)


def _grown_corpus(
    known: Known, version: int, model: StoredModel, data: Data, report: RobustnessReport
) -> dict[str, str]:
    """The tags of the stored examples with what fooled this version besides, which is kept in its run."""
    files, tags = dict[str, bytes](), dict[str, str]()
    for threat in report.threats:
        found = load_adversarial(model.run_id, threat.threat.name)
        corpus = load_corpus(known.name, known.tags, threat.threat, data)
        corpus = corpus or Corpus.empty(data.shape, data_digest=data.digest, threat=threat.threat)
        rows, x_adv, y = (torch.from_numpy(found[key]) for key in ("rows", "x_adv", "y"))
        corpus = corpus.with_found(version, rows, x_adv, y)
        path = f"corpus/{threat.threat.name}.npz"
        files[path] = corpus.to_bytes()
        tags[corpus_tag(threat.threat, data)] = corpus_place(model.run_id, path, corpus)
    log_files(model.run_id, files)
    return tags


def _record(
    name: str,
    version: int,
    model: StoredModel,
    report: RobustnessReport,
    verdict: Verdict,
    policy: Policy,
    replays: Sequence[ReplayReport],
    sha: str,
) -> Record:
    replayed = {replay.threat: replay.standing for replay in replays}
    first = report.threats[0]
    return Record(
        name=name,
        version=version,
        stage=model.stage,
        run_id=model.run_id,
        measured_at=report.measured_at,
        verdict=verdict.outcome,
        reason=_reason(report, verdict),
        data=report.data,
        data_digest=report.data_digest,
        split=report.split,
        samples=report.clean.n,
        seed=report.seed,
        seeds=report.seeds,
        suite=first.suite,
        suite_digest=first.suite_digest,
        warm=report.warm,
        weights_digest=report.weights_digest,
        code=engine_code(),
        environment=environment() | {"device": report.device},
        confidence=report.confidence,
        clean=report.clean,
        threats=tuple(
            _of_threat(t, policy).model_copy(update={"replay": replayed.get(t.threat)}) for t in report.threats
        ),
        policy=policy.digest,
        evidence=sha,
    )


def _reason(report: RobustnessReport, verdict: Verdict) -> str:
    """Why it is no pass; for a pass, what its lowest number showed."""
    lowest = min(report.threats, key=lambda threat: threat.robust.value)
    shown = (c.reason for c in verdict.checks if c.name == f"robust accuracy under {lowest.threat}")
    return next(shown, verdict.reasons[0]) if verdict.outcome == "pass" else verdict.reasons[0]


def _of_threat(threat: ThreatReport, policy: Policy) -> ThreatRecord:
    soundness = threat.soundness
    return ThreatRecord(
        name=threat.threat.name,
        label=str(threat.threat),
        digest=threat.threat.digest,
        robust=threat.robust,
        sound=soundness is not None and soundness.sound and not threat.problems,
        alarms=tuple(sign.name for sign in soundness.alarms) if soundness else (),
        floor=policy.floors.get(threat.threat.name, policy.floor),
        forward_samples=threat.forward_samples,
        backward_samples=threat.backward_samples,
        seconds=threat.seconds,
    )
