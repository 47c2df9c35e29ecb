"""What of the stores does not fit a version's evidence: files, weights, data, tags, signatures. A sentence for each."""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from tasks.errors import EvidenceBroken, RedoubtError
from tasks.metrics import RobustnessReport
from tasks.metrics.code import engine_code
from tasks.parts import vouched
from tasks.posture import Record
from tasks.posture.appendix import APPENDIX, parse_appendix
from tasks.posture.evidence import FILE, Evidence, digest, parse, to_bytes
from tasks.posture.signing import verified
from tasks.posture.standing import decisions, departures, facts_of
from tasks.prove import SIGNATURE, SIGNED
from tasks.recall import Known, known_of
from tasks.redact import told
from tasks.replay import CORPUS, corpora_of
from tasks.results import PAGE, REPORT, STORY
from tasks.track import (
    APPENDIX_OF,
    EVIDENCE,
    EVIDENCE_OF,
    MODEL_FILES,
    PAGE_OF,
    STORED,
    WRITING,
    Version,
    artifacts,
    environment,
    finished,
    load_bytes,
    load_stored,
    model_artifacts,
    own_source,
    parent_of,
    run_metrics,
    run_tags,
)

CLOCKS_DIFFER = timedelta(days=1)  # a moment further ahead than this is a wrong one


def kept(version: Version, wanted: str) -> Iterator[bytes]:
    """The file that the version's tags name for this digest of evidence; none where they name none."""
    run_id = version.tags.get(f"{EVIDENCE_OF}{wanted[:16]}")
    if run_id is not None and FILE in artifacts(run_id):
        yield load_bytes(f"runs:/{run_id}/{FILE}")


def served(version: Version) -> Callable[[], dict[str, bytes]]:
    """What gives every file that a deployer downloads as models:/NAME/N, once for all links of the version."""
    return cache(lambda: model_artifacts(f"models:/{version.name}/{version.number}"))


def reader(evidence: Evidence, model: Callable[[], dict[str, bytes]]) -> Callable[[str], bytes]:
    """What gives a file by its path in the run, or in the served model where the path begins with `model:`."""

    def read(path: str) -> bytes:
        if path.startswith(MODEL_FILES):
            return model()[path.removeprefix(MODEL_FILES)]
        return load_bytes(f"runs:/{evidence.run_id}/{path}")

    return read


def of_version(version: Version, evidence: Evidence) -> list[str]:
    """Whether a link of the version's chain is evidence on this very version, and on the model that it serves."""
    if (evidence.name, evidence.version) != (version.name, version.number):
        of = f"version {evidence.version or 'without a number'} of {evidence.name!r}"
        return [f"run {evidence.run_id}: its evidence is of {of}: it was copied to version {version.number}."]
    try:
        stored = load_stored(evidence.run_id)
    except Exception as error:  # each store raises its own; any of them means that the file is not there
        return [f"run {evidence.run_id}: {STORED} cannot be read: {told(error)}."]
    if stored.model_uri == own_source(version):
        return []
    said = stored.model_uri or "a model from elsewhere"
    return [
        f"version {version.number} serves {version.source!r}, measured was {said}: the registry was changed. "
        "Register what you trust as a new version."
    ]


def of_signatures(
    links: Sequence[Evidence], public_key: Path | None, wrong: list[str], notes: list[str]
) -> tuple[int, int]:
    """How many of the links, the newest first, bear a signature, and how many of these hold by the key.

    What does not hold, and what is not signed though it is newer than a signed one, is added to `wrong`.
    """
    bears = [SIGNATURE in artifacts(link.run_id) for link in links]
    holds = 0
    for link in (link for link, there in zip(links, bears, strict=True) if there and public_key is not None):
        try:
            verified(to_bytes(link), load_bytes(f"runs:/{link.run_id}/{SIGNATURE}"), public_key)  # type: ignore[arg-type]
            holds += 1
        except EvidenceBroken as broken:
            wrong.append(f"run {link.run_id}: {broken}")
    oldest = max((place for place, there in enumerate(bears) if there), default=-1)
    for place, link in enumerate(links):
        if bears[place] or (oldest < 0 and public_key is None):
            continue
        if place < oldest or oldest < 0:
            though = ", though older evidence of the version is" if place < oldest else ""
            wrong.append(f"run {link.run_id}: its evidence is not signed{though}.")
    before = len(links) - oldest - 1
    if oldest >= 0 and before:
        notes.append(f"the oldest {before} of its evidence bear no signature; the signed ones name them by digest")
    return sum(bears), holds


def of_metrics(evidence: Evidence) -> list[str]:
    """Whether the numbers that MLflow shows for the run are those of its report."""
    try:
        report = RobustnessReport.model_validate_json(load_bytes(f"runs:/{evidence.run_id}/{REPORT}"))
    except Exception:  # a report that is gone or changed is told by its digest
        return []
    kept = run_metrics(evidence.run_id)
    said = report.metrics()
    if evidence.code.digest != engine_code():  # whose names may be others
        said = {key: value for key, value in said.items() if key in kept}
    return [
        f"run {evidence.run_id}: MLflow shows {key} {kept.get(key)}, {REPORT} says {value!r}."
        for key, value in said.items()
        if kept.get(key) != value
    ]


def of_appendices(version: Version, evidence: Evidence, public_key: Path | None, notes: list[str]) -> list[str]:
    """Whether card, bill and page, which tell of the evidence, are those that were written with it.

    A page is vouched for before it is written: where the run did not come to its end, one that is absent is noted.
    """
    if not evidence.complete:
        return []  # from before there were appendices
    sha = digest(to_bytes(evidence))
    signed = public_key is not None and SIGNATURE in artifacts(evidence.run_id)
    key = public_key if signed else None
    wrong = _of_appendix(evidence.run_id, version.tags.get(f"{APPENDIX_OF}{sha[:16]}", ""), sha, key, notes)
    run_id, _, expected = version.tags.get(f"{PAGE_OF}{sha[:16]}", "").partition(":")
    parent = parent_of(evidence.run_id)
    if run_id or (parent and PAGE in artifacts(parent)):
        wrong += _of_appendix(run_id or parent, expected, sha, key, notes)
    return wrong


def _of_appendix(run_id: str, expected: str, evidence: str, public_key: Path | None, notes: list[str]) -> list[str]:
    try:
        raw = load_bytes(f"runs:/{run_id}/{APPENDIX}")
        if digest(raw) != expected:
            return [f"run {run_id}: {APPENDIX} hashes to {digest(raw)}, the registry expects {expected or 'none'}."]
        found = parse_appendix(raw)
        if evidence not in found.evidence:
            return [f"run {run_id}: {APPENDIX} does not tell of evidence {evidence}."]
        if public_key is not None:
            verified(raw, load_bytes(f"runs:/{run_id}/{APPENDIX}{SIGNED}"), public_key)
        absent = {path for path in (PAGE, STORY) if path in found.artifacts} - set(artifacts(run_id))
        stopped = absent if absent and not finished(run_id) else set()
        there = {path: digest(load_bytes(f"runs:/{run_id}/{path}")) for path in found.artifacts.keys() - stopped}
    except Exception as error:  # each store raises its own
        return [f"run {run_id}: {APPENDIX} or what it names does not hold: {told(error)}"]
    if stopped:
        what = ", ".join(sorted(stopped))
        notes.append(f"run {run_id} did not end: {what} was not written, or was deleted since")
    return [
        f"run {run_id}: {path} hashes to {sha}, {APPENDIX} says {found.artifacts[path]}: the file was changed."
        for path, sha in sorted(there.items())
        if sha != found.artifacts[path]
    ]


def of_model(name: str, evidence: Evidence, public_key: Path | None = None) -> tuple[list[str], list[str]]:
    """What the model's tags say of findings and stored examples that its newest evidence does not; and notes.

    Where an evaluation was stopped as it wrote them, each may also be as the evidence says that it was about to record.
    """
    known = known_of(name)
    try:
        ledger = known.findings
    except EvidenceBroken as broken:
        return [str(broken)], []
    facts, corpora, there = dict(evidence.ledger), dict(evidence.corpora), corpora_of(known)
    stopped, notes = _stopped(known, evidence, public_key), list[str]()
    if stopped is not None:
        notes.append(f"an evaluation was stopped as it wrote (run {stopped.run_id}); measure again what it measured")
        facts |= {one.id: stopped.ledger[one.id] for one in ledger if stopped.ledger.get(one.id) == facts_of(one)}
        corpora |= {tag: sha for tag, sha in there.items() if stopped.corpora.get(tag) == sha}
    wrong = list(departures(facts, ledger))
    for tag in sorted({*corpora, *there}):
        if corpora.get(tag) != there.get(tag):
            how = "was changed" if tag in there else "is gone"
            wrong.append(f"the tag {CORPUS}{tag} on stored examples {how} since the newest evidence was written.")
    return wrong, [*notes, *decisions(facts, ledger)]


def _stopped(known: Known, newest: Evidence, public_key: Path | None) -> Evidence | None:
    """The evidence that an evaluation was about to record when it was stopped; None where none was.

    It is newer than what was recorded, follows what its version bears now, was never recorded itself, and is signed
    where a key is asked for.
    """
    run_id, _, sha = known.tags.get(WRITING, "").partition(":")
    if not sha:
        return None
    try:
        raw = load_bytes(f"runs:/{run_id}/{FILE}")
        evidence = parse(raw)
        if public_key is not None:
            verified(raw, load_bytes(f"runs:/{run_id}/{SIGNATURE}"), public_key)
    except Exception as error:  # each store raises its own; whatever cannot be read vouches for nothing
        logging.getLogger("redoubt").warning("run %s was being recorded and cannot be read: %s", run_id, told(error))
        return None
    version = next((version for version in known.versions if version.number == evidence.version), None)
    if version is None or (evidence.name, evidence.run_id, digest(raw)) != (known.name, run_id, sha):
        return None
    follows = version.tags.get(EVIDENCE, "") == evidence.previous and evidence.moment > newest.moment
    same = version.tags.get("redoubt.weights_digest", evidence.weights.digest) == evidence.weights.digest
    return evidence if follows and same and "redoubt.evidence" not in run_tags(run_id) else None


def of_time(evidence: Evidence) -> list[str]:
    """Whether it was measured and written before tomorrow."""
    latest = max(datetime.fromisoformat(evidence.made_at), evidence.moment)
    if latest <= datetime.now(UTC) + CLOCKS_DIFFER:
        return []
    return [f"run {evidence.run_id}: its evidence is of {latest.isoformat()}, which is in the future."]


def of_data(evidence: Evidence, known: dict[str, str], notes: list[str]) -> list[str]:
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


def of_weights(evidence: Evidence) -> list[str]:
    """Whether the weights are those that were measured, wherever they are kept."""
    try:
        found = digest(load_bytes(evidence.weights.uri))
    except Exception as error:  # each store raises its own; any of them means that the file is not there
        return [f"run {evidence.run_id}: {evidence.weights.uri} cannot be read: {told(error)}."]
    if found.startswith(evidence.weights.digest):
        return []
    return [f"{evidence.weights.uri} hashes to {found[:16]}, measured was {evidence.weights.digest}: it was changed."]


def of_registry(version: Version, evidence: Evidence, record: Record | None) -> list[str]:
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


def otherwise(evidence: Evidence) -> list[str]:
    """What is another here than where it was measured: no mismatch, but a reason why numbers may come out otherwise."""
    notes = []
    if evidence.code.digest != engine_code():
        notes.append(f"measured by other code of Redoubt ({evidence.code.digest}; here it is {engine_code()})")
    here = environment()
    other = [f"{k} {evidence.environment[k]}" for k in here if evidence.environment.get(k, here[k]) != here[k]]
    return notes + ([f"measured with {', '.join(other)}"] if other else [])
