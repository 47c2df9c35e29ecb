"""What a version's own evidence vouches for: a report is believed only where a link of its chain names it by digest."""

import logging

from tasks.errors import EvidenceBroken
from tasks.metrics import RobustnessReport
from tasks.posture import Record
from tasks.posture.evidence import FILE, Evidence, digest, parse, to_bytes
from tasks.redact import told
from tasks.results import REPORT
from tasks.track import CROWNED, EVIDENCE_OF, Version, load_bytes
from tasks.verdicts import Asked

log = logging.getLogger("redoubt")


def vouched_report(version: Version, record: Record) -> RobustnessReport | None:
    """The report that a record of the version names; None where the version's evidence does not vouch for it."""
    try:
        sha, _, report = _read(version, record.run_id)
        if sha == record.evidence:
            return report
        why = "its evidence does not vouch for it"
    except Exception as error:  # whatever keeps it from being read, the answer is to measure again
        why = told(error)
    says = "the report on version %d of %r in run %s is not used: %s. It is measured again."
    log.warning(says, version.number, version.name, record.run_id, why)
    return None


def asked_when_crowned(version: Version) -> Asked:
    """What a version was asked when it passed and became champion; where no tag names that run, all that it passed.

    What somebody asks a champion besides, out of curiosity, is not asked of its successors.
    """
    passes = [record.run_id for record in version.records() if record.verdict == "pass"]
    reports, lost = list[RobustnessReport](), list[str]()
    for run_id in [version.tags[CROWNED]] if CROWNED in version.tags else passes:
        try:
            _, evidence, report = _read(version, run_id)
            if evidence.verdict.outcome != "pass":
                raise EvidenceBroken(f"its evidence says {evidence.verdict.outcome}")
            reports.append(report)
        except Exception as error:  # each store raises its own; what cannot be read may have asked anything
            says = "what version %d of %r was asked in run %s when it became champion cannot be known: %s"
            log.warning(says, version.number, version.name, run_id, told(error))
            lost.append(run_id)
    return Asked.of(reports, unreadable=f"run {', '.join(lost)}" if lost else "")


def _read(version: Version, run_id: str) -> tuple[str, Evidence, RobustnessReport]:
    """The digest of the evidence on the version in a run, itself, and the report that it names.

    Raises EvidenceBroken where the evidence is of another version, in no chain of this one, or names another report.
    """
    evidence = parse(load_bytes(f"runs:/{run_id}/{FILE}"))
    raw, sha = load_bytes(f"runs:/{run_id}/{REPORT}"), digest(to_bytes(evidence))
    own = (evidence.name, evidence.version, evidence.run_id) == (version.name, version.number, run_id)
    linked = version.tags.get(f"{EVIDENCE_OF}{sha[:16]}") == run_id
    if not (own and linked and digest(raw) == evidence.artifacts.get(REPORT)):
        raise EvidenceBroken("its evidence does not vouch for it")
    return sha, evidence, RobustnessReport.model_validate_json(raw)
