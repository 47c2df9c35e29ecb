"""What a version lost since it was last measured: its pass, or a finding that had been mended."""

from collections.abc import Sequence

from tasks.posture.finding import Finding
from tasks.posture.record import Record


def lost(
    earlier: Sequence[Record], now: Record, before: Sequence[Finding], after: Sequence[Finding]
) -> tuple[str, ...]:
    """A sentence for each thing that held before this measurement and holds no longer; none where all still does.

    earlier are the records that the version bore, before and after the ledger of its model.
    """
    last = max(earlier, key=lambda record: record.measured_at, default=None)
    told = []
    if last is not None and last.verdict == "pass" and now.verdict != "pass":
        told.append(f"version {now.version} passed at {last.measured_at[:16]}, now: {now.verdict}. {now.reason}")
    gone = {finding.id for finding in before if finding.state == "regressed"}
    back = [finding for finding in after if finding.state == "regressed" and finding.id not in gone]
    return (*told, *(f"finding {finding.id} came back in version {now.version}: {finding.says}" for finding in back))
