"""Records that no model was needed for: whatever a test wants to differ is an argument, the rest is the same."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.posture.record import Record, ThreatRecord
from tasks.statistics import Share

N = 1000


def threat(
    robust: int, *, n: int = N, name: str = "linf_0.15", label: str = "L-inf 0.15", **facts: Any
) -> ThreatRecord:
    """robust: how many of the n samples withstood."""
    of = {"digest": f"threat-{name}", "sound": True, "floor": 0.5, "seconds": 12.5}
    of |= {"forward_samples": 120_000, "backward_samples": 60_000}
    return ThreatRecord(name=name, label=label, robust=Share.of(robust, n), **of | facts)


def record(version: int, *robust: int | ThreatRecord, n: int = N, clean: int | None = None, **facts: Any) -> Record:
    """robust: for each threat model, how many of the n samples withstood, or the whole of it."""
    names = [("linf_0.15", "L-inf 0.15"), ("l2_1", "L2 1"), ("l0_8", "L0 8")]
    threats = tuple(
        found if isinstance(found, ThreatRecord) else threat(found, n=n, name=name, label=label)
        for found, (name, label) in zip(robust or (600,), names, strict=False)
    )
    of: dict[str, Any] = {"name": "digits", "stage": "baseline", "run_id": f"run-{version}", "verdict": "pass"}
    of |= {"reason": "every floor is cleared", "data": "digits", "data_digest": "d" * 64, "split": "test"}
    of |= {"seed": 0, "seeds": 1, "suite": "standard", "suite_digest": "5" * 64, "weights_digest": f"w{version}" * 8}
    of |= {"code": "c0de" * 16, "environment": {"python": "3.11.9", "torch": "2.13.0"}, "confidence": 0.95}
    of |= {"measured_at": day(version), "version": version, "samples": n, "threats": threats}
    return Record(clean=Share.of(n * 97 // 100 if clean is None else clean, n), **of | facts)


def day(number: int) -> str:
    """Noon of that day of the year 2026, from 1 on."""
    from datetime import UTC, datetime, timedelta

    return (datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=number - 1)).isoformat()


def table(
    held: Sequence[int], *, correct: Sequence[int] | None = None, y: Sequence[int] | None = None
) -> Mapping[str, Any]:
    """The outcomes of one threat model: held [N] and correct [N] as 0 and 1; without y as in an old table."""
    import numpy as np

    right = np.array(correct if correct is not None else np.ones(len(held))).astype(bool)
    fooled = ~np.array(held).astype(bool)
    rows = {"row": np.arange(len(held)) * 3, "clean_correct": right, "fooled": fooled, "prediction": fooled.astype(int)}
    rows["fooled_by"] = np.where(fooled & right, "pgd", "")
    return rows | ({} if y is None else {"y": np.array(y)})
