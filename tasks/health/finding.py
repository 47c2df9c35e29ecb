"""A finding: what one check saw, in one line, and the command that mends it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tasks.redact import told

Outcome = Literal["ok", "warn", "fail", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What a check saw; the mend is a command, empty where nothing is to be done."""

    outcome: Outcome
    found: str
    mend: str = ""

    def line(self, check: str) -> str:
        """What a person reads."""
        return f"{self.outcome:15} {check:15} {self.found}" + (f"  Mend: {self.mend}" if self.mend else "")


def fine(found: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", found)


def warned(found: str, mend: str) -> Finding:
    """It works, but somebody should look at it."""
    return Finding("warn", found, mend)


def failed(found: str, mend: str) -> Finding:
    """It does not work, or no number that comes of it can be kept."""
    return Finding("fail", found, mend)


def skipped(found: str) -> Finding:
    """There is nothing to look at, and why."""
    return Finding("not applicable", found)


def bounded(check: Callable[[], Finding], seconds: float) -> Finding:
    """What the check finds; a failure where it raises, or has not ended after so many seconds.

    It goes on in a thread that does not keep the process: a folder on a dead server blocks whoever looks at it.
    """
    found: list[Finding] = []

    def look() -> None:
        try:
            found.append(check())
        except Exception as error:  # a check that breaks is a finding, not the end of the others
            found.append(failed(f"could not be looked at: {told(error)}", "read the message"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        return failed(f"no answer within {seconds:.0f} s", "see whether the disk or the server behind it still answers")
    return found[0]
