"""Where results are kept when no server is named: one folder, .redoubt, or the one that REDOUBT_HOME names."""

import os
from pathlib import Path

from tasks.errors import StoreUnreachable


def home() -> Path:
    """The folder of the embedded stores, absolute. It need not exist yet."""
    return Path(os.environ.get("REDOUBT_HOME") or ".redoubt").expanduser().absolute()


def folder(name: str) -> Path:
    """home()/name, made if it is absent. Raises StoreUnreachable where it cannot be written."""
    path = home() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreUnreachable(
            f"cannot write to {path}: {error.strerror}. Name a folder that you may write to: REDOUBT_HOME=<folder>."
        ) from error
    return path
