"""The commands that measure what was not measured, or not alike."""

import shlex
from collections.abc import Sequence

from tasks.posture.record import FACTS, Record

NAMED = 10  # versions up to which a command names each
BY_REATTACK = {"suite_digest", "data_digest", "warm"}  # facts that measuring again today evens out


def first_time(name: str, version: int) -> str:
    """What measures a version of a model of which no version was measured."""
    return f"redoubt evaluate {shlex.quote(f'models:/{name}/{version}')} --dataset D --eps 0.03"


def catch_up(record: Record, versions: Sequence[int]) -> str:
    """What measures these versions of the record's model as its own was, which was measured last of all."""
    which = ",".join(map(str, versions)) if len(versions) <= NAMED else "all"
    return f"redoubt reattack {shlex.quote(record.name)} --versions {which} --like {record.version}"


def again(record: Record) -> str:
    """What measures a version once more."""
    return f"redoubt reattack {shlex.quote(record.name)} --versions {record.version} --again"


def alike(behind: Record, ahead: Record) -> str:
    """What makes two measurements comparable: both under today's suite, or the one behind as the one ahead was."""
    unequal = {fact for fact in FACTS if getattr(behind, fact) != getattr(ahead, fact)}
    if unequal <= BY_REATTACK and (behind.name, behind.data) == (ahead.name, ahead.data):
        which = ",".join(map(str, sorted({behind.version, ahead.version})))
        return f"redoubt reattack {shlex.quote(ahead.name)} --versions {which} --suite {_suite(ahead)}"
    model, other = (shlex.quote(f"models:/{record.name}/{record.version}") for record in (behind, ahead))
    if "threat_digests" in unequal:  # of several threat models no flag tells
        return f"redoubt evaluate {model} --like {other}"
    flags = {
        "data_digest": f"--dataset {shlex.quote(ahead.data)}",
        "suite_digest": f"--suite {_suite(ahead)}",
        "samples": f"--samples {ahead.samples}",
        "seed": f"--seed {ahead.seed}",
        "seeds": f"--set evaluation.seeds={ahead.seeds}",
    }
    return " ".join(["redoubt evaluate", model, *(flag for fact, flag in flags.items() if fact in unequal)])


def _suite(record: Record) -> str:
    """As a command names it; attacks of a user's own, which stand behind it, come with the version's config."""
    return shlex.quote(record.suite.partition("+")[0])
