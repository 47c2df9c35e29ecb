"""A finding as values: the weakness, what one evaluation says about it, and the states that it goes through."""

import hashlib
import json
from datetime import UTC, date, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from tasks.errors import WrongInput

Kind = Literal["robustness", "pair"]
State = Literal["open", "mitigated", "verified", "regressed", "accepted"]
Fresh = Literal["pass", "fail", "cannot tell"]
Replayed = Literal["pass", "fail", "not run"]
STATES: tuple[State, ...] = ("open", "mitigated", "verified", "regressed", "accepted")

SENTENCE, WHY, LABEL = 320, 160, 128  # characters, as JSON, of a text that may be cut


def moment_of(value: datetime | str) -> datetime:
    """The moment in UTC. Raises WrongInput for what is no moment, or names no time zone."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if moment.tzinfo is None:
            raise WrongInput(f"{value} names no time zone. Write e.g. 2026-03-01T12:00:00+00:00.")
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise WrongInput(f"{value} is out of the calendar's range.") from error
    except ValueError as error:
        raise WrongInput(f"{value!r} is no moment: {error}") from error


def in_utc(value: datetime | str) -> str:
    """The moment in UTC, as ISO 8601."""
    return moment_of(value).isoformat()


def length_of(text: str) -> int:
    """How many characters the text takes in JSON, without its quotation marks."""
    return len(json.dumps(text, ensure_ascii=False)) - 2


def _at_most(most: int) -> AfterValidator:
    def checked(text: str) -> str:
        if length_of(text) > most:
            raise ValueError(f"{text[:40]!r}... takes {length_of(text)} characters, at most {most} fit a finding")
        return text

    return AfterValidator(checked)


def shortened(text: str, most: int) -> str:
    """The text on one line, cut so that it takes no more than `most` characters in JSON."""
    text = " ".join(text.split())
    if length_of(text) <= most:
        return text
    text = text[: most - 3]
    while length_of(text) > most - 3:
        text = text[:-1]
    return f"{text}..."


Moment = Annotated[str, AfterValidator(in_utc)]
Word = Annotated[str, _at_most(64)]
Name = Annotated[str, _at_most(256)]
Address = Annotated[str, _at_most(512)]


class Cost(BaseModel, frozen=True, extra="forbid"):
    """What it took, per fooled sample."""

    queries: float = Field(ge=0, allow_inf_nan=False, description="samples passed forward")
    gradients: float = Field(ge=0, allow_inf_nan=False, description="samples passed backward")
    seconds: float = Field(ge=0, allow_inf_nan=False)


class Reproducer(BaseModel, frozen=True, extra="forbid"):
    """How to see the weakness again."""

    uri: Address = Field(description="of the .npz with the examples, in MLflow")
    seed: int = Field(ge=0, lt=2**64)
    command: Address = Field(description="one line for a shell")


class Observation(BaseModel, frozen=True, extra="forbid"):
    """What one evaluation of one version says about one weakness."""

    name: Name = Field(min_length=1, description="of the registered model")
    kind: Kind
    threat: Word = Field(min_length=1, description="name of the threat model, e.g. linf_0.15")
    label: str = Field(description="of the threat model, for people")
    subject: Word = Field("", description="of a pair, e.g. 3 taken for 8")
    data: str = Field(description="name of the dataset")
    version: int = Field(ge=1)
    run_id: Word
    at: Moment = Field(description="ISO 8601 with a time zone; kept in UTC")
    fresh: Fresh = Field(description="the policy's check after a fresh adaptive attack")
    replay: Replayed = Field("not run", description="the stored examples again; not run where there are none")
    sound: bool = Field(description="whether the numbers may be believed; a pass that may not be is none")
    floor: float = Field(0.0, ge=0, le=1, description="that the policy asked for; 0 where it asks for none")
    says: str = Field(description="one sentence with the figures")
    attacks: tuple[str, ...] = Field((), description="names of those that fooled")
    cost: Cost | None = None
    reproducer: Reproducer | None = None

    @property
    def id(self) -> str:
        """Of the finding that this speaks about."""
        return id_of(name=self.name, kind=self.kind, threat=self.threat, subject=self.subject, data=self.data)

    @property
    def answer(self) -> Fresh:
        """Of the fresh attack; a pass that may not be believed tells nothing."""
        return "cannot tell" if self.fresh == "pass" and not self.sound else self.fresh

    @property
    def failed(self) -> bool:
        """Whether the weakness was seen."""
        return "fail" in (self.fresh, self.replay)

    @property
    def why(self) -> str:
        """Both answers and the sentence, short enough for a history."""
        doubt = ", not to be believed" if self.fresh != self.answer else ""
        return shortened(f"fresh attack: {self.fresh}{doubt}; replay: {self.replay}. {self.says}", WHY)


class Transition(BaseModel, frozen=True, extra="forbid"):
    """One line of a finding's history: the state from then on."""

    at: Moment
    state: State
    version: int = Field(ge=1)
    run_id: Word = ""
    why: Annotated[str, _at_most(WHY)]


class Finding(BaseModel, frozen=True, extra="forbid"):
    """One weakness of one registered model. model_dump_json() stays below 4,500 characters."""

    id: str = Field(pattern="^F-[0-9a-f]{8}$")
    name: Name = Field(description="of the registered model")
    kind: Kind
    threat: Word
    label: Annotated[str, _at_most(LABEL)]
    subject: Word = ""
    data: Annotated[str, _at_most(LABEL)] = Field(description="name of the dataset, cut if it is long")
    says: Annotated[str, _at_most(SENTENCE)] = Field(description="when it was last seen to fail")
    first_version: int = Field(ge=1, description="the oldest that is known to be weak")
    last_version: int = Field(ge=1, description="the newest that was observed")
    found_at: Moment
    seen_at: Moment = Field(description="of the last observation")
    floor: float = Field(0.0, ge=0, le=1, description="the highest that was missed; a lower one mends nothing")
    ids: tuple[Annotated[str, _at_most(16)], ...] = Field(max_length=16, description="of the threat catalogue")
    cost: Cost | None = None
    reproducer: Reproducer | None = None
    state: State
    fresh: Fresh = Field("cannot tell", description="the fresh attack's last answer on last_version")
    replay: Replayed = Field("not run", description="the replay's last answer on last_version")
    owner: Annotated[str, _at_most(LABEL)] = ""
    expires: date | None = Field(None, description="the last day on which it is accepted, UTC")
    reason: Annotated[str, _at_most(SENTENCE)] = Field("", description="why it is accepted")
    verified_version: int | None = Field(None, ge=1, description="the first on which both checks passed")
    verified_at: Moment | None = None
    closed_at: Moment | None = Field(None, description="when a version that has it mended became champion")
    history: tuple[Transition, ...] = Field((), description="the first line and the newest ones")

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.first_version > self.last_version:
            raise ValueError(f"first_version={self.first_version} is newer than last_version={self.last_version}.")
        accepted, verified = self.state == "accepted", self.state == "verified"
        given = (self.expires is not None, bool(self.reason))
        if given != (accepted, accepted) or (accepted and not self.owner):
            raise ValueError(f"{self.id} is {self.state}: owner, expires and reason belong to an accepted finding.")
        if (self.verified_version is not None, self.verified_at is not None) != (verified, verified):
            raise ValueError(f"{self.id} is {self.state}: verified_version and _at belong to a verified finding.")
        if self.closed_at is not None and not verified:
            raise ValueError(f"{self.id} is {self.state}: only a verified finding is closed.")
        return self


def id_of(*, name: str, kind: Kind, threat: str, subject: str, data: str) -> str:
    """F- and eight hex digits: the same weakness found again, of the same model on the same data, has the same id."""
    facts = json.dumps([name, kind, threat, subject, data])
    return f"F-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
