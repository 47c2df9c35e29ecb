"""Changes as people read them: many of a kind become one sentence."""

from collections.abc import Collection, Iterable, Sequence
from shlex import quote
from typing import get_args

from tasks.posture.changes import CLEAN, Change, Kind, subject

WEIGHT: dict[Kind, int] = {kind: place for place, kind in enumerate(get_args(Kind))}  # which of a version comes first


def sentences(changes: Iterable[Change], name: str) -> list[tuple[Kind, str]]:
    """What people read of the changes of the model of that name: the newest version first, of one the gravest first.

    Steps within chance are counted, and only the newest version's told; versions that were all measured again in the
    same two ways are told together.
    """
    told: list[tuple[int, Kind, str]] = []
    quiet, again = [], dict[tuple[str, str, str], list[Change]]()
    for change in changes:
        if change.kind == "within chance":
            quiet.append(change)
        elif change.kind == "measurement":
            again.setdefault((change.threat, change.before_key, change.key), []).append(change)
        else:
            told.append((change.version, change.kind, change.says))
    for alike in again.values():
        told.append((alike[-1].version, "measurement", alike[0].says if len(alike) == 1 else _together(alike)))
    told += _within_chance(quiet, name)
    return [(kind, says) for _, kind, says in sorted(told, key=lambda line: (-line[0], WEIGHT[line[1]]))]


def _together(alike: Sequence[Change]) -> str:
    """One number of several versions, each measured again in the same way."""
    moves = [change.after.value - change.before.value for change in alike if change.before and change.after]
    low, high = (f"{move * 100:+.1f}" for move in (min(moves), max(moves)))
    return (
        f"{subject(alike[0].threat)} of {len(alike)} versions ({ranges(c.version for c in alike)}), measured again "
        f"with the same weights, moved by {low if low == high else f'{low} to {high}'} points, a change of "
        f"measurement and not of the models;{alike[-1].says.rpartition(';')[2]}"
    )


def _within_chance(quiet: Sequence[Change], name: str) -> list[tuple[int, Kind, str]]:
    """A sentence on the newest version's quiet numbers, and one that counts the earlier steps."""
    if not quiet:
        return []
    newest, found = max(change.version for change in quiet), list[tuple[int, Kind, str]]()
    for against in sorted({change.against for change in quiet if change.version == newest}):
        names = [change.threat for change in quiet if (change.version, change.against) == (newest, against)]
        threats = ", ".join(threat for threat in names if threat != CLEAN)
        what = " and ".join([CLEAN] * (CLEAN in names) + [f"robust accuracy under {threats}"] * bool(threats))
        says = (
            f"From version {against} to {newest} {what} stayed within chance, as far as intervals tell; "
            f"`redoubt compare {quote(name)} {against} {newest}` pairs the samples."
        )
        found.append((newest, "within chance", says))
    older = sum(change.version < newest for change in quiet)
    moves = "other move between earlier versions" if older == 1 else "other moves between earlier versions"
    return [*found, (0, "within chance", f"{older} {moves} stayed within chance.")] if older else found


def numbered(versions: Collection[int]) -> str:
    """Versions for people: version 3, or versions 1 to 3, 5, 6."""
    return f"version{'s' * (len(versions) != 1)} {ranges(versions)}"


def ranges(versions: Iterable[int]) -> str:
    """Version numbers for people: 1 to 3, 5, 6."""
    runs: list[list[int]] = []
    for version in sorted(versions):
        if runs and version == runs[-1][-1] + 1:
            runs[-1].append(version)
        else:
            runs.append([version])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
