"""What evidence says of the ledger of findings, and what a later ledger may not say otherwise."""

from collections.abc import Iterator, Mapping, Sequence

from tasks.posture.evidence import FindingFacts, digest
from tasks.posture.finding import Finding

BY_HAND = frozenset({"state", "fresh", "replay", "owner", "expires", "reason", "closed_at", "history"})
BY_HAND |= {"verified_version", "verified_at"}  # fields that accepting, reopening and promoting change
DECIDED = ("accepted", "open")  # states that somebody may put a finding into


def facts_of(finding: Finding) -> FindingFacts:
    """The finding's state, and a digest of what no person can change: only an evaluation does."""
    raw = finding.model_copy(update=dict.fromkeys(BY_HAND)).model_dump_json(exclude=set(BY_HAND)).encode()
    return FindingFacts(state=finding.state, digest=digest(raw))


def departures(recorded: Mapping[str, FindingFacts], ledger: Sequence[Finding]) -> Iterator[str]:
    """A sentence for each finding that is gone, is new, or says what the newest evidence does not."""
    there = {finding.id: finding for finding in ledger}
    for wanted in sorted(recorded.keys() - there.keys()):
        yield f"finding {wanted} is gone, the newest evidence knows it as {recorded[wanted].state}."
    for wanted in sorted(there.keys() - recorded.keys()):
        yield f"finding {wanted} is in no evidence: it was written by hand, or an evaluation was stopped as it wrote."
    for wanted in sorted(there.keys() & recorded.keys()):
        now, then = there[wanted], recorded[wanted]
        if facts_of(now).digest != then.digest:
            told = "it was changed, or an evaluation was stopped as it wrote"
            yield f"finding {wanted} says what the newest evidence does not: {told}."
        elif now.state != then.state and not _decided(now):
            yield f"finding {wanted} is {now.state}, but {then.state} in the newest evidence: it was changed."


def decisions(recorded: Mapping[str, FindingFacts], ledger: Sequence[Finding]) -> Iterator[str]:
    """A sentence for each finding that somebody has accepted or reopened since: evidence does not vouch for that."""
    for finding in ledger:
        then = recorded.get(finding.id)
        if then and then.state != finding.state and _decided(finding):
            by = f" by {finding.owner}" if finding.state == "accepted" else ""
            yield f"finding {finding.id} is {finding.state} by hand{by}, {then.state} in the newest evidence"


def _decided(finding: Finding) -> bool:
    """Whether the last line of its history is a person's: it names no run."""
    last = finding.history[-1] if finding.history else None
    return finding.state in DECIDED and last is not None and (last.state, last.run_id) == (finding.state, "")
