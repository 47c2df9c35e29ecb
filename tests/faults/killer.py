"""redoubt, dead in the middle of a step: python -m tests.faults.killer STEP N WORDS...

SIGKILL after the N-th thing that the step has asked of the store; with an N of 0 it says how many there were.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import count
from typing import Any

from tasks.track.patience import Patient

MODULES = {"validate_data": "validate", "enter": "promote"}  # where a step has not the name of its module


def deadly(step: str, last: int) -> None:
    """Let the step kill its process when the store has answered so often."""
    task = getattr(import_module(f"tasks.{MODULES.get(step, step)}"), step)
    inner, asks, within, answers = task.fn, Patient.ask, list[str](), count(1)

    @functools.wraps(inner)
    def watched(*args: Any, **kwargs: Any) -> Any:
        within.append(step)
        try:
            return inner(*args, **kwargs)
        finally:
            within.pop()
            if not last:
                print(f"{step} asked {next(answers) - 1} things so far", file=sys.stderr)

    def ask(self: Patient, call: Callable[[], Any]) -> Any:
        answer = asks(self, call)
        if within and next(answers) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    task.fn, Patient.ask = watched, ask  # type: ignore[method-assign]


if __name__ == "__main__":
    deadly(sys.argv[1], int(sys.argv[2]))
    del sys.argv[1:3]
    from flows.__main__ import main

    main()
