"""Which process a run belongs to, and whether that process is still there."""

import os
import socket
from pathlib import Path


def me() -> str:
    """This process, as another one of the same machine recognises it: host, number, when it began."""
    return f"{socket.gethostname()} {os.getpid()} {_begun(os.getpid())}"


def is_gone(process: str) -> bool:
    """Whether a process of this machine has ended; False for what cannot be told, as of another machine's."""
    host, *rest = process.rsplit(" ", 2)
    if host != socket.gethostname() or len(rest) != 2 or not rest[0].isdigit():
        return False
    number, begun = int(rest[0]), rest[1]
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _begun(number)
    return bool(begun != "?" and now not in ("?", begun))  # the number was given to another process


def _begun(number: int) -> str:
    """When the process began, in the kernel's own count since the machine started; ? where that is not told."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return "?"
    return stat.rpartition(")")[2].split()[19]
