"""Locks between processes of one machine. The kernel gives a lock back when its process ends, however it ends."""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import StoreUnreachable
from tasks.home import folder

LONGEST = 600.0  # seconds that a lock is waited for; whoever holds one needs seconds
PAUSE = 0.05  # seconds between two tries


@contextmanager
def locked(what: str) -> Iterator[None]:
    """Hold the lock of that name in folder("locks"), waiting for it. Raises StoreUnreachable where that takes long."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", what).strip("-.")[:60]
    with file_lock(folder("locks") / f"{words}-{hashlib.sha256(what.encode()).hexdigest()[:12]}.lock"):
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of that file, waiting for it. Raises StoreUnreachable where that takes long."""
    deadline = time.monotonic() + LONGEST
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not _taken(handle):
            if time.monotonic() > deadline:
                raise StoreUnreachable(
                    f"another process has held {path} for {LONGEST:g} seconds. See what it does; when it ends, the "
                    "same command goes on."
                )
            time.sleep(PAUSE)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
