"""This machine: what is installed, where it writes, what it keeps secret, what it tells others."""

import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from uuid import uuid4

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tasks.health.finding import Finding, failed, fine, skipped, warned

PINS = {  # what pip itself would not complain about
    "fastapi": "Prefect's server answers 422 from 0.151 on, and does not start from 0.155 on",
    "sqlalchemy": "Prefect's scheduler never makes a run from 2.1 on",
}
WANTED, NEEDED = 5 << 30, 1 << 30  # bytes free on a disk: below the first warn, below the second fail
PROBE = bytes(64 * 1024)  # a full disk still makes empty files


def python() -> Finding:
    """Whether this Python is one of those that Redoubt is made for."""
    here, asked = platform.python_version(), metadata("redoubt")["Requires-Python"]
    if SpecifierSet(asked).contains(here, prereleases=True):
        return fine(f"{here}, asked for is {asked}")
    return failed(f"{here}, asked for is {asked}", "rm -rf .venv; PYTHON=python3.12 bash infra/test")


def packages() -> Finding:
    """Whether every package is within the range that Redoubt asks for; those of an extra, where they are there."""
    asked = [Requirement(text) for text in requires("redoubt") or ()]
    wanted = [ask for ask in asked if ask.name != "redoubt"]
    missing = [ask for ask in wanted if ask.marker is None and not _installed(ask.name)]
    wrong = [ask for ask in wanted if _installed(ask.name) and not ask.specifier.contains(_installed(ask.name), True)]
    if not missing and not wrong:
        return fine(f"{sum(bool(_installed(ask.name)) for ask in wanted)} packages within their ranges")
    said = [f"{ask.name} is absent" for ask in missing] + [_out_of_range(ask) for ask in wrong]
    return failed("; ".join(said), f"pip install {' '.join(_quoted(ask) for ask in (*missing, *wrong))}")


def writable(folders: Mapping[str, Path]) -> Finding:
    """Whether each folder takes a file, gives it back and lets it go; the key says what it is for."""
    for name, folder in folders.items():
        path = folder / f".doctor-{uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(PROBE)
                if path.read_bytes() != PROBE:
                    return failed(f"{name} {folder} gives back other bytes than were written", "look at that disk")
            finally:
                path.unlink(missing_ok=True)
        except OSError as error:
            return failed(f"{name} {folder} cannot be written: {error.strerror}", "export REDOUBT_HOME=<a folder>")
    return fine(f"{', '.join(folders)} written, read and deleted: {next(iter(folders.values()))}")


def disk(folders: Iterable[Path]) -> Finding:
    """Whether the disks below the folders have room: 5 GiB to be at ease, 1 GiB to run at all; and free inodes."""
    there = {path.stat().st_dev: path for path in map(_existing, folders)}
    free = {path: shutil.disk_usage(path).free for path in there.values()}
    said = ", ".join(f"{size / (1 << 30):.1f} GiB free at {path}" for path, size in free.items())
    tight = min(free, key=lambda path: free[path])
    mend = f"du -xh --max-depth=2 {tight} | sort -h | tail; rm -r what is not needed, or move REDOUBT_HOME or TMPDIR"
    inodes = [path for path in free if _no_inodes(path)]
    if inodes:
        return failed(f"no inode is left at {inodes[0]}: it holds too many files", mend)
    if free[tight] < NEEDED:
        return failed(said, mend)
    return warned(said, mend) if free[tight] < WANTED else fine(said)


def secrets(files: Mapping[str, Path]) -> Finding:
    """Whether the files that hold secrets are closed to everybody else; the key says what each is."""
    if not files:
        return skipped("no signing key and no file of passwords is named")
    for name, path in files.items():
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            return failed(f"{name} {path}: {error.strerror}", "name a file that is there, or unset the variable")
        if mode & 0o007:
            return failed(f"{name} {path} is open to every user of this machine (mode {mode:o})", f"chmod 600 {path}")
        if mode & 0o070:
            return warned(f"{name} {path} is open to its group (mode {mode:o})", f"chmod 600 {path}")
    return fine(f"{', '.join(files)}: closed to others")


def telemetry(wanted: Mapping[str, str]) -> Finding:
    """Whether no variable lets Prefect or MLflow phone home. One that is not set is set by us before either starts."""
    wrong = {name: value for name, value in wanted.items() if os.environ.get(name, value) != value}
    if not wrong:
        return fine("off")
    said = ", ".join(f"{name} is {os.environ.get(name)!r}" for name in wrong)
    return failed(
        f"something may phone home: {said}", "export " + " ".join(f"{name}={value}" for name, value in wrong.items())
    )


def data(root: str) -> Finding:
    """Whether the folder of datasets can be read; root is REDOUBT_DATA."""
    if not root:
        return skipped("REDOUBT_DATA is not set: only datasets that need no file")
    folder = Path(root).expanduser()
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        return failed(f"REDOUBT_DATA={root}: {error.strerror}", "export REDOUBT_DATA=<a folder that can be read>")
    closed = [entry for entry in entries if not os.access(entry, os.R_OK)]
    if closed:
        return failed(f"{closed[0]} cannot be read", f"chmod -R a+rX {root}")
    if not entries:
        return warned(f"{root} is empty", "put the datasets there, or unset REDOUBT_DATA")
    return fine(f"{len(entries)} entries in {root}")


def temporary() -> Path:
    """Where this machine puts what is not kept."""
    return Path(tempfile.gettempdir())


def _installed(name: str) -> str:
    """Its version; empty where it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _out_of_range(ask: Requirement) -> str:
    why = PINS.get(ask.name.lower())
    return f"{ask.name} {_installed(ask.name)} is outside {ask.specifier}" + (f" ({why})" if why else "")


def _quoted(ask: Requirement) -> str:
    extras = f"[{','.join(sorted(ask.extras))}]" if ask.extras else ""
    return f"'{ask.name}{extras}{ask.specifier}'"


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _no_inodes(path: Path) -> bool:
    found = os.statvfs(path)
    return found.f_files > 0 and found.f_favail == 0
