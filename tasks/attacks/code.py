"""The attacks' own code as a digest: what was measured with other code is another number."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def attack_code() -> str:
    """Sixteen hex digits that change when a file of tasks/attacks does, or its name. Read once in a process."""
    return code_digest(Path(__file__).parent)


def code_digest(root: Path, parts: Iterable[str] = (".",)) -> str:
    """Sixteen hex digits of the names and bytes of all Python files in these folders, or files, below root."""
    files: set[Path] = set()
    for part in parts:
        place = root / part
        files |= {place} if place.is_file() else set(place.rglob("*.py"))
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
