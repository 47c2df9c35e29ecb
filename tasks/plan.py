"""What a registered model carries so that it can be measured and hardened when nobody asks: its plan, its last try."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from shlex import quote
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tasks.errors import EvidenceBroken, WrongInput
from tasks.posture.finding import Moment, moment_of
from tasks.track import make_model, model_facts, tag_model

PLAN = "redoubt.plan"  # tags of the registered model
HARDENED = "redoubt.hardened"
WAIVER = "may_ask_less"  # of a policy: for the one run that says so, but for a plan that was adopted with it
LONGEST = 5_000  # characters that a registry keeps in a tag


class Hardening(BaseModel, frozen=True, extra="forbid"):
    """One try to harden a model."""

    at: Moment = Field(description="when it began, ISO 8601, UTC")
    plan: str = Field(description="digest of the plan, and of the suite that it named")
    data: str = Field(description="digest of the dataset")
    run_id: str
    outcome: Literal["started", "pass", "fail", "cannot tell"] = Field(
        description="started: it did not come to its end"
    )


def keep_plan(name: str, values: Mapping[str, Any]) -> None:
    """Write the plan, a whole config, on the registered model, which is made if it is absent.

    Raises WrongInput for a plan that no tag can hold.
    """
    text = json.dumps(values, separators=(",", ":"))
    if len(text) > LONGEST:
        raise WrongInput(
            f"the plan of {name!r} takes {len(text)} characters, and a registry's tag holds {LONGEST}. Put the attacks "
            "or the dataset into a module of yours and name them: 'package.module:function'."
        )
    make_model(name)
    tag_model(name, {PLAN: text})


def plan_values(name: str) -> dict[str, Any] | None:
    """What the plan of the registered model says; None where it has none. Raises EvidenceBroken for a changed tag."""
    text = model_facts(name)[1].get(PLAN)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise EvidenceBroken(
            f"the tag {PLAN} of {name!r} is no plan. Write it anew: redoubt adopt {quote(name)} --like RECIPE"
        )
    return values


def plan_digest(values: Mapping[str, Any], suite_digest: str) -> str:
    """Sixteen hex digits that change with any value of the plan, and with the code of the suite that it names."""
    policy = {key: value for key, value in values["policy"].items() if key != WAIVER or value}
    told = json.dumps([{**values, "policy": policy}, suite_digest], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def last_hardening(name: str) -> Hardening | None:
    """The last try to harden the model; None where there was none. Raises EvidenceBroken for a changed tag."""
    text = model_facts(name)[1].get(HARDENED)
    if text is None:
        return None
    try:
        return Hardening.model_validate_json(text)
    except ValidationError as error:
        raise EvidenceBroken(f"the tag {HARDENED} of {name!r} was changed. Delete it to let it be hardened.") from error


def note_hardening(name: str, hardening: Hardening) -> None:
    """Write the try on the registered model, in place of the one before."""
    tag_model(name, {HARDENED: hardening.model_dump_json()})


def why_wait(last: Hardening | None, *, plan: str, data: str, now: datetime, cooldown_hours: float) -> str:
    """Why the model is not hardened now under a plan and data of these digests; empty where it may be.

    A try that lies in the future is one that was just made: a clock that was set back ends no cooldown.
    """
    if last is None:
        return ""
    if last.outcome != "started" and (last.plan, last.data) == (plan, data):
        return (
            f"this very plan was tried on this very data at {last.at[:16]} and ended with {last.outcome}; training is "
            "deterministic, so nothing else would come of it. Change the plan: redoubt adopt"
        )
    age = now - moment_of(last.at)
    if age < timedelta(hours=cooldown_hours):
        ahead = ", which is in the future: correct the clock, or delete the tag" if age < timedelta(0) else ""
        return f"it was hardened at {last.at[:16]}{ahead}; the cooldown is {cooldown_hours:g} hours"
    return ""
