"""Soundness: what was checked before a number is believed, what fired, and how it was answered."""

from typing import Literal

from pydantic import BaseModel, Field

State = Literal["ok", "alarm", "not run", "not applicable"]
Kind = Literal["masking", "failure", "convergence", "measurement"]


class Sign(BaseModel, frozen=True, extra="forbid"):
    """One question about a number. `first` is the answer before the escalation, `state` the one after it."""

    name: str = Field(description="e.g. 'black-box beats white-box'")
    kind: Kind = Field(description="masking, attack failure, convergence, or the measurement itself")
    state: State
    figure: float | None = Field(None, description="what was measured; empty where nothing was")
    threshold: float | None = Field(None, description="the figure beyond which it is an alarm")
    samples: tuple[int, ...] = Field((), description="places, among the measured samples, that raised it")
    says: str = Field(description="a plain sentence: what was checked and what was seen")
    first: State = Field("ok", description="the state before the escalation")
    answer: str = Field("", description="how an alarm was answered, where it was")

    @property
    def answered(self) -> bool:
        """Whether it fired at first and the escalation showed that the number does not depend on it any more."""
        return self.first == "alarm" and self.state == "ok"


class Step(BaseModel, frozen=True, extra="forbid"):
    """One attack of the escalation."""

    name: str = Field(description="e.g. 'straight-through gradients (BPDA)'")
    tried: int = Field(description="samples")
    fooled: int = Field(description="samples that had stood until then")
    passes: int = Field(description="forward and backward, in samples")
    robust: float = Field(description="robust accuracy after it")


class Soundness(BaseModel, frozen=True, extra="forbid"):
    """Everything that speaks for or against one number. An alarm that nothing answered voids it."""

    signs: tuple[Sign, ...] = Field(min_length=1)
    steps: tuple[Step, ...] = Field((), description="of the escalation; empty where nothing called for it")
    before: float | None = Field(None, description="robust accuracy before the escalation")
    passes: int = Field(description="what the signs cost, without the escalation")
    share: float = Field(description="that cost as a share of the evaluation's passes")

    @property
    def alarms(self) -> tuple[Sign, ...]:
        """What stands unanswered."""
        return tuple(sign for sign in self.signs if sign.state == "alarm")

    @property
    def sound(self) -> bool:
        """Whether the number may be believed."""
        return not self.alarms
