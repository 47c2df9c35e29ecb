"""Run foreign code in a process of its own, which can be stopped at any moment and leaves nothing behind."""

import ctypes
import gc
import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor

from tasks.redact import told

Result = tuple[Mapping[str, Tensor], Mapping[str, Any]]  # named tensors, and what JSON can hold
END_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
CHUNK = 1 << 16


class Failed(Exception):
    """What came of foreign code that gave no result, in words that stand in the report."""


class Stopped(Failed):
    """It was not ready in time."""


def can_fork() -> bool:
    """Whether a copy of this process can compute: not where torch drives a GPU, which a copy must not touch."""
    return hasattr(os, "fork") and not torch.accelerator.is_available()


def in_child(work: Callable[[], Result], *, seconds: float) -> Result:
    """What work() returns in a copy of this process, whose state stays as it was. Raises Failed, or Stopped.

    The copy computes on one thread: those of this process do not live on in it. Only bytes of tensors and JSON come
    back, so nothing foreign is unpickled. It and all it started is killed after so many seconds, and when this process
    ends.
    """
    deadline, parent = time.monotonic() + seconds, os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or else the copy writes what waits there once more
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads that may hold a lock. The copy runs torch on one thread and takes none of theirs.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _work(work, writing, parent)
    os.close(writing)
    try:
        raw = _received(reading, deadline, seconds)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # one that had no time to found its group
        status = os.waitpid(child, 0)[1]
    return _opened(raw, status)


def _work(work: Callable[[], Result], writing: int, parent: int) -> NoReturn:
    """The copy's life: never back into the code that made it, whatever is raised."""
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.freeze()  # what the copy shares with its maker is not the copy's to clean up
        torch.set_num_threads(1)
        try:
            tensors, values = work()
            said: dict[str, Any] = {"values": dict(values)}
        except Exception as failure:
            tensors, said = {}, {"raised": f"raised {told(failure)}"}
        plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        raw = safetensors.torch.save(plain, {"told": json.dumps(said)})
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(raw)
        os._exit(0)
    finally:
        os._exit(1)


def _received(reading: int, deadline: float, seconds: float) -> bytes:
    """All that the copy writes until it closes the pipe. Raises Stopped."""
    parts: list[bytes] = []
    pipe = select.poll()
    pipe.register(reading, select.POLLIN | select.POLLHUP)
    while True:
        if not pipe.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise Stopped(f"was stopped after {seconds:g} s")
        part = os.read(reading, CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _opened(raw: bytes, status: int) -> Result:
    """The result in what was received. Raises Failed where the copy raised or died."""
    try:
        told = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["told"])
        tensors = safetensors.torch.load(raw)
    except Exception:  # cut short: it died before it was ready
        code = os.waitstatus_to_exitcode(status)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise Failed(f"ended its process ({how})") from None
    if "raised" in told:
        raise Failed(told["raised"])
    return tensors, told["values"]
