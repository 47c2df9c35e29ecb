"""Look whether what is kept still is what was measured, and measure it again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from tasks.errors import EvidenceBroken, RedoubtError, WrongInput
from tasks.parts import vouched
from tasks.posture import Record
from tasks.posture.consistency import mismatches
from tasks.posture.evidence import FILE, Evidence, chain, digest, parse, to_bytes
from tasks.posture.signing import verified
from tasks.prove import SIGNATURE
from tasks.results import WARM, load_outcomes
from tasks.track import (
    EVIDENCE,
    EVIDENCE_OF,
    MODEL_FILES,
    Version,
    artifacts,
    environment,
    known_run,
    load_bytes,
    load_stored,
    model_artifacts,
    registered,
)


@dataclass(frozen=True)
class Verified:
    """What was looked at of one version, and what does not match."""

    version: int
    evidences: int  # links of its chain that were read
    files: int  # artifacts that were hashed
    signed: int  # links with a signature that holds
    mismatches: tuple[str, ...]  # the first is the first thing that does not match
    notes: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """The outcome in one line."""
        looked = f"{self.evidences} links of evidence, {self.files} files" + (
            f", {self.signed} signed" if self.signed else ""
        )
        return f"version {self.version}: {'DOES NOT MATCH' if self.mismatches else 'matches'} ({looked})"


@dataclass(frozen=True)
class Reproduced:
    """An evaluation done again from its evidence alone: rows that came out otherwise, for each threat model."""

    run_id: str
    differing: dict[str, tuple[int, ...]]
    samples: int
    notes: tuple[str, ...] = field(default=())

    @property
    def same(self) -> bool:
        """Whether the very same samples were fooled."""
        return not any(self.differing.values())

    def lines(self) -> list[str]:
        """What a person reads."""
        told = []
        for threat, rows in self.differing.items():
            if rows:
                some = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
                told.append(f"{threat}: {len(rows)} of {self.samples} samples came out otherwise, rows {some}")
            else:
                told.append(f"{threat}: the very same of {self.samples} samples were fooled")
        return told + [f"  note: {note}" for note in self.notes]


def verify_model(name: str, number: int | None = None, *, public_key: Path | None = None) -> list[Verified]:
    """Every version of a registered model, or one: its chain of evidence, every file of it, its tags, its data.

    With public_key each link must bear a signature of that key. Raises WrongInput for what is not registered.
    """
    known = [version for version in registered(name) if number in (None, version.number)]
    if not known:
        raise WrongInput(f"{name!r} has no version{f' {number}' if number else ''} in the registry.")
    data: dict[str, str] = {}
    return [_verify_version(version, public_key, data) for version in known]


def _verify_version(version: Version, public_key: Path | None, data: dict[str, str]) -> Verified:
    head, records = version.tags.get(EVIDENCE), version.records()
    if head is None:
        lost = ("its record names evidence, but the tag that names the newest is gone.",) if records else ()
        return Verified(version.number, 0, 0, 0, lost, () if records else ("it was never evaluated",))
    wrong: list[str] = []
    notes: list[str] = []
    walked: set[str] = set()
    links = files = signed = 0
    try:
        for evidence in chain(head, lambda wanted: _kept(version, wanted)):
            raw = to_bytes(evidence)  # what chain() has read is in canonical form
            record = next((r for r in records if r.evidence == digest(raw)), None)
            read = _reader(evidence)
            wrong += [f"run {evidence.run_id}: {said}" for said in mismatches(raw, digest(raw), read, record=record)]
            signed += _signed(evidence, raw, public_key, wrong)
            wrong += _of_weights(evidence)
            walked.add(digest(raw))
            links, files = links + 1, files + len(evidence.artifacts)
            if links == 1:
                wrong += _of_data(evidence, data, notes)
                wrong += _of_registry(version, evidence, record)
                notes += _otherwise(evidence)
    except EvidenceBroken as broken:
        wrong.append(str(broken))
    for record in records:
        if record.evidence not in walked and not wrong:
            wrong.append(f"the record of run {record.run_id} names evidence {record.evidence!r}, which no link has.")
    return Verified(version.number, links, files, signed, tuple(wrong), tuple(notes))


def _kept(version: Version, wanted: str) -> Iterator[bytes]:
    run_id = version.tags.get(f"{EVIDENCE_OF}{wanted[:16]}")
    if run_id is not None and FILE in artifacts(run_id):
        yield load_bytes(f"runs:/{run_id}/{FILE}")


def _reader(evidence: Evidence) -> Callable[[str], bytes]:
    """What gives a file by its path in the run, or in the logged model where the path begins with `model:`."""

    @cache
    def served() -> dict[str, bytes]:
        return model_artifacts(load_stored(evidence.run_id).model_uri)

    def read(path: str) -> bytes:
        if path.startswith(MODEL_FILES):
            return served()[path.removeprefix(MODEL_FILES)]
        return load_bytes(f"runs:/{evidence.run_id}/{path}")

    return read


def _signed(evidence: Evidence, raw: bytes, public_key: Path | None, wrong: list[str]) -> int:
    """1 where the signature holds. What does not is added to `wrong`."""
    if public_key is None:
        return 0
    if SIGNATURE not in artifacts(evidence.run_id):
        wrong.append(f"run {evidence.run_id}: its evidence is not signed.")
        return 0
    try:
        verified(raw, load_bytes(f"runs:/{evidence.run_id}/{SIGNATURE}"), public_key)
    except EvidenceBroken as broken:
        wrong.append(f"run {evidence.run_id}: {broken}")
        return 0
    return 1


def _of_data(evidence: Evidence, known: dict[str, str], notes: list[str]) -> list[str]:
    """Whether the dataset still is what was measured on. One that is not here is noted."""
    from tasks.data import describe, load

    name = evidence.data.name
    if name not in known:
        try:
            known[name] = describe(name, load(vouched(name, "the evidence"))).digest
        except RedoubtError as error:
            known[name] = ""
            notes.append(f"the data could not be looked at: {error}")
    if known[name] in ("", evidence.data.digest):
        return []
    return [f"data {name!r} has digest {known[name]}, measured was on {evidence.data.digest}: it was changed."]


def _of_weights(evidence: Evidence) -> list[str]:
    """Whether the weights are those that were measured, wherever they are kept."""
    try:
        found = digest(load_bytes(evidence.weights.uri))
    except Exception as error:  # each store raises its own; any of them means that the file is not there
        return [f"run {evidence.run_id}: {evidence.weights.uri} cannot be read: {type(error).__name__}: {error}."]
    if found.startswith(evidence.weights.digest):
        return []
    return [f"{evidence.weights.uri} hashes to {found[:16]}, measured was {evidence.weights.digest}: it was changed."]


def _of_registry(version: Version, evidence: Evidence, record: Record | None) -> list[str]:
    """Whether the version's tags say what its newest evidence says."""
    said = {
        "redoubt.verdict": evidence.verdict.outcome,
        "redoubt.weights_digest": evidence.weights.digest,
        "redoubt.data_digest": evidence.data.digest,
        "redoubt.suite_digest": evidence.suite.digest,
    }
    if record is not None:
        said["redoubt.clean_accuracy"] = f"{record.clean.value:.4f}"
        said |= {f"redoubt.robust_accuracy.{threat.name}": f"{threat.robust.value:.4f}" for threat in record.threats}
    return [
        f"the tag {tag} says {version.tags.get(tag)!r}, its newest evidence {value!r}."
        for tag, value in said.items()
        if version.tags.get(tag) != value
    ]


def _otherwise(evidence: Evidence) -> list[str]:
    """What is another here than where it was measured: no mismatch, but a reason why numbers may come out otherwise."""
    from tasks.metrics.code import engine_code

    notes = []
    if evidence.code.digest != engine_code():
        notes.append(f"measured by other code of Redoubt ({evidence.code.digest}; here it is {engine_code()})")
    here = environment()
    other = [f"{k} {evidence.environment[k]}" for k in here if evidence.environment.get(k, here[k]) != here[k]]
    return notes + ([f"measured with {', '.join(other)}"] if other else [])


def reproduce_run(run_id: str) -> Reproduced:
    """Evaluate again from a run's evidence alone, without the store of cells. Raises EvidenceBroken or WrongInput."""
    from tasks.data import describe, load
    from tasks.evaluate import begin_warm
    from tasks.fetch import network_of
    from tasks.metrics import Corpus, EvaluationConfig, choose_rows, evaluate

    evidence, stored = evidence_of(run_id), load_stored(run_id)
    told = (evidence.data.name, dict(evidence.config), stored.model if stored.kind == "weights" else "")
    vouched(told, f"the evidence of run {run_id}")
    if stored.digest != evidence.weights.digest:
        raise EvidenceBroken(f"model.json names weights {stored.digest}, the evidence {evidence.weights.digest}.")
    splits = load(evidence.data.name)
    now = describe(evidence.data.name, splits)
    if now.digest != evidence.data.digest:
        raise EvidenceBroken(f"data {now.name!r} has digest {now.digest}, measured was on {evidence.data.digest}.")
    config = EvaluationConfig.model_validate(evidence.config["evaluation"])
    if config.resolved_suite().digest != evidence.suite.digest:
        raise EvidenceBroken(
            f"suite {config.suite!r} has digest {config.resolved_suite().digest} here, measured was with "
            f"{evidence.suite.digest}: its attacks or their code have changed since"
            f"{f' commit {evidence.code.commit}' if evidence.code.commit else ''}. Check that out to reproduce it."
        )
    x, y = splits["test"]
    rows = choose_rows(len(y), config.samples, config.seed)
    network = network_of(stored)
    began = (path for path in artifacts(run_id) if path.startswith(f"{WARM}/"))
    corpora = {Path(path).stem: Corpus.from_bytes(load_bytes(f"runs:/{run_id}/{path}")) for path in began}
    warm = begin_warm(corpora, network, x[rows], y[rows], rows=rows, seed=config.seed)
    _, outcomes = evaluate(network, x[rows], y[rows], config, stage=stored.stage, warm=warm)
    differing = {}
    for found in outcomes:
        before = load_outcomes(run_id, found.threat.name)
        other = before["fooled"].astype(bool) != found.fooled.numpy()
        differing[found.threat.name] = tuple(before["row"][np.flatnonzero(other)].tolist())
    return Reproduced(run_id, differing, len(rows), tuple(_otherwise(evidence)))


def evidence_of(run_id: str) -> Evidence:
    """The evidence that a run keeps. Raises WrongInput where it keeps none."""
    known_run(run_id)
    if FILE not in artifacts(run_id):
        raise WrongInput(f"run {run_id!r} keeps no evidence. Name the run of an evaluation: `redoubt history NAME`.")
    return parse(load_bytes(f"runs:/{run_id}/{FILE}"))
