"""The watch: what is registered and was not measured as it should be is measured, and what is overdue is said."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from shlex import quote

from prefect import flow
from pydantic import BaseModel, Field

from flows.asked import standing
from flows.config import EvaluateConfig, Plan
from flows.plans import how, plan_of
from flows.reattack import Reattacked, broken, measured
from tasks.announce import announce_daily, announce_watch
from tasks.data import Data, describe, load
from tasks.plan import plan_values
from tasks.posture import Record
from tasks.posture.changes import measured_at
from tasks.posture.findings import age_days, overdue
from tasks.promote import crown
from tasks.recall import compared_with, known_of, patience_of
from tasks.redact import veiled
from tasks.track import Version, aliases, registered, tag_version
from tasks.track import names as registered_names
from tasks.verdicts import Policy

BROKE = "redoubt.broke"  # a tag of a version that could not be measured: when, and what was asked
NONE = "No version is registered, or none that may be read: nothing was looked at."
RETRY = timedelta(hours=6)  # until the very same is asked of it again
RECORDING = timedelta(minutes=15)  # from registering a version to its record, at most


class Watched(BaseModel, frozen=True, extra="forbid"):
    """What the watch did. A version that stands as it should is not listed."""

    measured: tuple[Reattacked, ...] = Field((), description="versions that were measured, or broke")
    promoted: tuple[str, ...] = Field((), description="versions that became champion, as models:/NAME/3")
    stale: tuple[str, ...] = Field((), description="live versions whose evidence was too old")
    overdue: tuple[str, ...] = Field((), description="findings that are open for too long")
    unplanned: tuple[str, ...] = Field((), description="models of which nobody knows how to measure them")
    looked_at: tuple[str, ...] = Field((), description="models that have a version")

    def with_more(self, other: "Watched") -> "Watched":
        """Both together."""
        return Watched(**{field: (*getattr(self, field), *getattr(other, field)) for field in Watched.model_fields})

    def lines(self) -> list[str]:
        """What a person reads."""
        told = [f"{result.name}: {result.says}" for result in self.measured]
        told += [f"{where} is champion." for where in self.promoted]
        told += [f"{where}: its evidence was too old." for where in self.stale]
        told += [f"finding {finding} is open for too long." for finding in self.overdue]
        told += [f"{name}: nobody has said how to measure it: redoubt adopt {quote(name)}" for name in self.unplanned]
        return told or [
            f"Every version of {', '.join(self.looked_at)} stands as it should." if self.looked_at else NONE
        ]


@dataclass(frozen=True)
class Due:
    """A version that is to be measured."""

    version: Version
    config: EvaluateConfig
    stale: str = ""  # why its evidence is too old, if that is why
    challenges: bool = False  # newer than the champion


@flow(name="redoubt-watch", description="Versions without a verdict under the current suite, data and policy.")
@veiled
def watch(names: list[str] | None = None, promote: bool = False) -> Watched:
    """Measure versions that have no verdict under the current suite, data and policy; say what is stale or overdue.

    names: of models that have a version or a plan; all if none. promote: a version that passes and is newer than the
    champion takes its place. Neither a version nor a model that breaks keeps the others from being measured. Raises
    WrongInput, before anything is measured, for a name that nothing is known of.
    """
    data_of = cache(lambda dataset: describe(dataset, load(dataset)))
    for name in names or ():
        if not registered(name) and plan_values(name) is None:
            known_of(name)  # which says what is registered
    meant, found = registered_names() if names is None else names, Watched()
    for name in meant:
        try:
            found = found.with_more(_watched(name, promote, data_of))
        except Exception as error:  # of whatever kind: the other models are still to be looked at
            found = found.with_more(_unmeasured(broken(name, 0, error))).with_more(Watched(looked_at=(name,)))
    done = [result.measured for result in found.measured]
    announce_watch(models=len(meant), measured=sum(done), unmeasured=len(done) - sum(done))
    return found


def due(name: str, plan: Plan | None, data_of: Callable[[str], Data], *, promote: bool, now: datetime) -> list[Due]:
    """The versions of a model that are to be measured now, oldest first.

    Of those that bear an alias, are newer than the champion or were never measured: the ones without a record under
    the current suite, data and policy. Besides, live ones whose record is too old, and with promote those that passed
    and are not champion, since what they are compared with may have changed.
    """
    held, known, wanted = aliases(name), registered(name), list[Due]()
    for version in known:
        live = version.number in held.values()
        challenges = version.number > held["champion"] if "champion" in held else version is known[-1]
        config = how(version, plan)
        if config is None or _being_recorded(version, now) or not (live or challenges or not version.records()):
            continue
        data = data_of(config.dataset)
        record = standing(version, config, data)
        stale = why_stale(record, config.policy, now) if record and live else ""
        again = promote and challenges and record is not None and record.verdict == "pass"
        if (record is None or stale or again) and not _gave_up(version, config, data, now):
            wanted.append(Due(version, config, stale, challenges))
    return wanted


def why_stale(record: Record, policy: Policy, now: datetime) -> str:
    """Why the record is too old to speak for a live version; empty where it is not."""
    age = now - measured_at(record)
    if timedelta(days=-1) <= age <= timedelta(days=policy.max_age_days):
        return ""
    return (
        f"version {record.version} was last measured at {record.measured_at}; allowed are {policy.max_age_days:g} days"
    )


def _watched(name: str, promote: bool, data_of: Callable[[str], Data]) -> Watched:
    """What was done about one model."""
    now, plan, known = datetime.now(UTC), plan_of(name), registered(name)
    if not known:
        return Watched()
    if plan is None and not any(version.records() for version in known):
        write = f"redoubt adopt {quote(name)} --like RECIPE"
        announce_daily("model.unplanned", name, reasons=[f"nobody has said on what data and against what: {write}"])
        return Watched(unplanned=(name,), looked_at=(name,))
    found = Watched(looked_at=(name,))
    for one in due(name, plan, data_of, promote=promote, now=now):
        found = found.with_more(_measured(one, promote, data_of(one.config.dataset)))
    return found.with_more(_overdue(name, plan))


def _measured(one: Due, promote: bool, data: Data) -> Watched:
    """What came of one version; champion afterwards, if it may be."""
    version, where = one.version, f"models:/{one.version.name}/{one.version.number}"
    if one.stale:
        announce_daily("evidence.stale", version.name, str(version.number), version=version.number, reasons=[one.stale])
    result = measured(version, one.config, again=bool(one.stale))
    stale = (where,) if one.stale else ()
    if not result.measured:
        told = {"at": datetime.now(UTC).isoformat(), "asked": _asked(one.config, data)}
        tag_version(version.name, version.number, {BROKE: json.dumps(told)})
        return _unmeasured(result).with_more(Watched(stale=stale))
    may = promote and one.challenges and result.verdict == "pass"
    if may and crown(version.name, version.number, result.run_id, against=compared_with(result.run_id)):
        return Watched(measured=(result,), promoted=(where,), stale=stale)
    return Watched(measured=(result,), stale=stale)


def _unmeasured(result: Reattacked) -> Watched:
    """What could not be measured, said once a day."""
    number = result.version or None
    announce_daily("model.unmeasured", result.name, str(number or ""), version=number, reasons=[result.says])
    return Watched(measured=(result,))


def _overdue(name: str, plan: Plan | None) -> Watched:
    """The findings that are open for too long, each said once a day."""
    known, now = known_of(name), datetime.now(UTC)
    days = plan.policy.max_finding_days if plan else patience_of(known)
    late = overdue(known.findings, days, now) if days else ()
    for one in late:
        told = f"{one.id} is {one.state} for {age_days(one, now):.0f} days, allowed are {days:g}: {one.says}"
        announce_daily(
            "findings.overdue", name, one.id, version=one.last_version, reasons=[told], more={"finding": one.id}
        )
    return Watched(overdue=tuple(one.id for one in late))


def _asked(config: EvaluateConfig, data: Data) -> str:
    """A digest of what is asked of a version: its config, the data, the suite's code."""
    facts = [config.model_dump_json(), data.digest, config.evaluation.resolved_suite().digest]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _being_recorded(version: Version, now: datetime) -> bool:
    """Whether a run of ours has just registered it, and is about to write down what it measured before that."""
    ours = "redoubt.verdict" in version.tags and not version.records()
    return ours and now.timestamp() - version.created_at < RECORDING.total_seconds()


def _gave_up(version: Version, config: EvaluateConfig, data: Data, now: datetime) -> bool:
    """Whether the very same was asked of the version a short while ago, and broke."""
    try:
        told = json.loads(version.tags.get(BROKE, "{}"))
        age = now - datetime.fromisoformat(told["at"])
    except (ValueError, KeyError, TypeError):
        return False
    return told.get("asked") == _asked(config, data) and timedelta(0) <= age < RETRY
