"""Where a dataset's files lie: the path that the config names, or a folder below REDOUBT_DATA."""

import os
from pathlib import Path

from tasks.errors import DataMissing


def find(name: str, *candidates: str, how: str) -> Path:
    """The first of the candidates that exists below REDOUBT_DATA. Raises DataMissing, which says how to get it."""
    root = os.environ.get("REDOUBT_DATA")
    if not root:
        raise DataMissing(
            f"dataset {name!r} is not shipped and REDOUBT_DATA is not set. {how} "
            f"Then write REDOUBT_DATA=<folder that holds {candidates[0]}>, or --set dataset=<path>."
        )
    for candidate in candidates:
        path = Path(root).expanduser() / candidate
        if path.exists():
            return path
    tried = ", ".join(str(Path(root) / candidate) for candidate in candidates)
    raise DataMissing(f"dataset {name!r} is not below REDOUBT_DATA={root} (looked for {tried}). {how}")
