"""Findings: the weaknesses of a registered model, what is known of each and what became of it. Values in, values out.

    open       found, and neither mended nor accepted
    mitigated  one of its two checks passed, the fresh attack or the replay of its stored examples; not closed
    verified   both passed
    regressed  a check failed again
    accepted   somebody answers for it, until a date

One rule orders the versions: an observation of a version older than the newest one that was observed for a finding
changes no state. Old versions stay as weak as they were known to be; only the newest one can mend or break anything.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from statistics import mean
from typing import Any

from tasks.errors import WrongInput
from tasks.posture.catalogue import ids_of, in_order
from tasks.posture.finding import (
    LABEL,
    SENTENCE,
    STATES,
    WHY,
    Finding,
    Observation,
    State,
    Transition,
    in_utc,
    length_of,
    moment_of,
    shortened,
)

MOST = 4_500  # characters of a finding's JSON; a tag of MLflow's holds 5,000
LONGEST = timedelta(days=366)  # that a finding is accepted for
DAY = timedelta(days=1)


def advance(finding: Finding | None, observation: Observation) -> Finding | None:
    """The finding after the observation; None where there was none and nothing failed.

    The same observation twice is as good as once. Raises WrongInput for an observation of another weakness.
    """
    if finding is None:
        return _found(observation) if observation.failed else None
    if finding.id != observation.id:
        raise WrongInput(
            f"an observation of {observation.id} says nothing about {finding.id}. Give it its own finding."
        )
    finding, observation = at(finding, observation.at), _held_to(finding.floor, observation)
    seen: dict[str, Any] = {"seen_at": max(finding.seen_at, observation.at)}
    if observation.version < finding.last_version:
        return _of_an_older_version(finding, observation, seen)
    state = _state_after(finding, observation)
    changes = seen | {"state": state, "last_version": observation.version}
    changes |= {"fresh": observation.answer, "replay": observation.replay}
    if observation.failed:
        changes |= _described(observation, finding)
    if state == "verified" and finding.state != "verified":
        changes |= {"verified_version": observation.version, "verified_at": observation.at}
    if state == "regressed":
        changes |= {"verified_version": None, "verified_at": None, "closed_at": None}
    noted = state != finding.state or state == "accepted"
    return _changed(finding, _note(observation, state) if noted else None, **changes)


def _held_to(floor: float, observation: Observation) -> Observation:
    """The observation, whose passes count for nothing where less was asked for than what had been missed."""
    if observation.floor >= floor:
        return observation
    fresh = "cannot tell" if observation.fresh == "pass" else observation.fresh
    again = "not run" if observation.replay == "pass" else observation.replay
    return observation.model_copy(update={"fresh": fresh, "replay": again})


def _found(observation: Observation) -> Finding:
    return Finding(
        id=observation.id,
        name=observation.name,
        kind=observation.kind,
        threat=observation.threat,
        subject=observation.subject,
        data=shortened(observation.data, LABEL),
        first_version=observation.version,
        last_version=observation.version,
        found_at=observation.at,
        seen_at=observation.at,
        state="open",
        fresh=observation.answer,
        replay=observation.replay,
        history=(_note(observation, "open"),),
        **_described(observation, None),
    )


def _of_an_older_version(finding: Finding, observation: Observation, seen: dict[str, Any]) -> Finding:
    """No state changes; the weakness may be known to be older."""
    earlier = observation.failed and observation.version < finding.first_version
    changes = seen | ({"first_version": observation.version} if earlier else {})
    noted = earlier or finding.state == "accepted"
    return _changed(finding, _note(observation, finding.state) if noted else None, **changes)


def _state_after(finding: Finding, observation: Observation) -> State:
    """The state after an observation of the newest version."""
    answers, before = (observation.answer, observation.replay), (finding.fresh, finding.replay)
    again = observation.version == finding.last_version and answers == before
    if finding.state == "accepted" or again:
        return finding.state
    nothing_to_replay = observation.replay == "not run" and finding.reproducer is None
    if answers == ("pass", "pass") or (observation.answer == "pass" and nothing_to_replay):
        return "verified"
    if finding.state == "verified":
        return "regressed" if observation.failed else "verified"
    if finding.state == "mitigated":  # what failed before and still does is no step back
        failed = any(now == "fail" != was for now, was in zip(answers, before, strict=True))
        return "regressed" if failed else "mitigated"
    return "mitigated" if finding.state == "open" and answers.count("pass") == 1 else finding.state


def _described(observation: Observation, finding: Finding | None) -> dict[str, Any]:
    """What an observation that failed says of the weakness; what it leaves out stays as it was."""
    norm, known = observation.threat.partition("_")[0], finding.ids if finding else ()
    return {
        "label": shortened(observation.label, LABEL),
        "says": shortened(observation.says, SENTENCE),
        "floor": max(observation.floor, finding.floor if finding else 0.0),
        "ids": in_order({*known, *ids_of(norm, observation.attacks)}),
        "cost": observation.cost or (finding and finding.cost),
        "reproducer": observation.reproducer or (finding and finding.reproducer),
    }


def _note(observation: Observation, state: State) -> Transition:
    return Transition(
        at=observation.at, state=state, version=observation.version, run_id=observation.run_id, why=observation.why
    )


def _changed(finding: Finding, note: Transition | None, **changes: Any) -> Finding:
    """The finding with the changes and one more line of history, the oldest but the first dropped where it is full."""
    history = finding.history
    last = history[-1] if history else None
    if note and (last is None or (note.state, note.version, note.why) != (last.state, last.version, last.why)):
        history = (*history, note)
    grown = Finding.model_validate(finding.model_dump() | changes | {"history": history})
    while len(grown.model_dump_json()) >= MOST and len(history) > 2:
        history = (history[0], *history[2:])
        grown = grown.model_copy(update={"history": history})
    return grown


def at(finding: Finding, now: datetime | str) -> Finding:
    """The finding as it stands at that moment: open again from the day after the one until which it was accepted."""
    return _as_of(finding, moment_of(now))


def _as_of(finding: Finding, now: datetime) -> Finding:
    if finding.expires is None or now.date() <= finding.expires:
        return finding
    midnight = datetime.combine(finding.expires + DAY, datetime.min.time(), UTC)
    return _reopened(finding, f"accepted by {finding.owner} until {finding.expires}: that day has passed", midnight)


def _reopened(finding: Finding, why: str, now: datetime) -> Finding:
    """Open, with its answers forgotten, so that even the version that gave them is asked anew."""
    note = Transition(at=now.isoformat(), state="open", version=finding.last_version, why=shortened(why, WHY))
    forgotten = {"fresh": "cannot tell", "replay": "not run", "expires": None, "reason": ""}
    never = {"verified_version": None, "verified_at": None, "closed_at": None}
    return _changed(finding, note, state="open", **forgotten, **never)


def reopen(finding: Finding, *, reason: str, at: datetime | str) -> Finding:
    """The finding open again, by somebody's decision.

    Raises WrongInput without a reason, or unless the finding is accepted or verified.
    """
    now, reason = moment_of(at), _text("reason", reason, SENTENCE)
    finding = _as_of(finding, now)
    if finding.state not in ("accepted", "verified"):
        raise WrongInput(f"{finding.id} is {finding.state}; only an accepted or a verified finding can be reopened.")
    return _reopened(finding, f"was {finding.state}, then reopened: {reason}", now)


def accept(finding: Finding, *, owner: str, expires: date | str, reason: str, at: datetime | str) -> Finding:
    """The finding accepted until the end of that day (UTC), at most a year ahead; again, to prolong it.

    Raises WrongInput for an empty owner or reason, another date, or a finding that is verified.
    """
    now = moment_of(at)
    finding, day = _as_of(finding, now), _day(expires)
    owner, reason = _text("owner", owner, LABEL), _text("reason", reason, SENTENCE)
    if finding.state == "verified":
        raise WrongInput(f"{finding.id} is verified in version {finding.verified_version}; there is nothing to accept.")
    if not now.date() < day <= now.date() + LONGEST:
        raise WrongInput(
            f"expires={day} is not within the year after {now.date()}. Accept a finding until a day after today, at "
            f"most {now.date() + LONGEST}; then look at it again."
        )
    note = Transition(
        at=now.isoformat(),
        state="accepted",
        version=finding.last_version,
        why=shortened(f"by {owner} until {day}: {reason}", WHY),
    )
    return _changed(finding, note, state="accepted", owner=owner, expires=day, reason=reason)


def _day(value: date | str) -> date:
    if isinstance(value, datetime):
        return value.date()
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError as error:
        raise WrongInput(f"expires={value!r} is no date. Write e.g. 2026-12-31.") from error


def _text(what: str, text: str, most: int) -> str:
    text = " ".join(text.split())
    if not text:
        raise WrongInput(f"{what} is empty. Say who answers for the finding (owner), and why (reason).")
    if length_of(text) > most:
        raise WrongInput(f"{what} takes {length_of(text)} characters, at most {most} fit. Shorten it.")
    return text


def crowned(finding: Finding, version: int, at: datetime | str) -> Finding:
    """The finding after that version became champion: closed, if it is verified in that version or an older one."""
    if finding.verified_version is None or version < finding.verified_version or finding.closed_at:
        return finding
    now = in_utc(at)
    note = Transition(at=now, state=finding.state, version=version, why=f"version {version} became champion")
    return _changed(finding, note, closed_at=now)


def age_days(finding: Finding, now: datetime | str) -> float:
    """Days since it was found, whatever became of it."""
    return (moment_of(now) - moment_of(finding.found_at)) / DAY


def patch_latency_days(finding: Finding) -> float | None:
    """Days from when it was found until a version that has it mended became champion; None before that."""
    return None if finding.closed_at is None else (moment_of(finding.closed_at) - moment_of(finding.found_at)) / DAY


def overdue(findings: Sequence[Finding], max_days: float, now: datetime | str) -> tuple[Finding, ...]:
    """Those found more than max_days ago that are neither verified nor accepted at that moment, in their order."""
    standing = (at(finding, now) for finding in findings)
    return tuple(f for f in standing if f.state not in ("verified", "accepted") and age_days(f, now) > max_days)


def ledger_metrics(findings: Sequence[Finding], now: datetime | str) -> dict[str, float]:
    """For MLflow: findings/<state>, how many; findings/oldest_open_days; findings/patch_latency_days, the mean.

    Open, mitigated and regressed count as open for the oldest, 0 without any. The latency is left out where nothing
    was closed.
    """
    standing = [at(finding, now) for finding in findings]
    named = {f"findings/{state}": float(sum(f.state == state for f in standing)) for state in STATES}
    ages = [age_days(f, now) for f in standing if f.state not in ("verified", "accepted")]
    named["findings/oldest_open_days"] = max(ages, default=0.0)
    latencies = [days for f in standing if (days := patch_latency_days(f)) is not None]
    return named | ({"findings/patch_latency_days": mean(latencies)} if latencies else {})
