"""The story of one run, as values: what rendering turns into pages and what `--json` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field
from torch import Tensor

from tasks.data import Data
from tasks.metrics import RobustnessReport
from tasks.verdicts import Policy, Verdict


class Chapter(BaseModel, frozen=True, extra="forbid"):
    """One model, measured on one split, and what was decided about it."""

    stage: str = Field(description="baseline, hardened-1, ...")
    run_id: str = Field("", description="the stage's run in MLflow")
    version: int | None = Field(None, description="in the model registry")
    report: RobustnessReport
    verdict: Verdict
    evidence: str = Field("", description="the SHA-256 of the evidence on the verdict; empty while hardening")


class Story(BaseModel, frozen=True, extra="forbid"):
    """A whole run. `chapters` are the measurements on test, in order; `rounds` those on select, while hardening."""

    name: str = Field(description="of the registered model")
    run_id: str
    data: Data
    policy: Policy
    chapters: tuple[Chapter, ...] = Field(min_length=1)
    rounds: tuple[Chapter, ...] = ()
    version: int | None = Field(None, description="the registered version of the last chapter's model")
    champion: int | None = Field(None, description="the version that bears the alias champion after this run")
    previous: int | None = Field(None, description="the version that bore it before")
    seconds: dict[str, float] = Field(default_factory=dict, description="per step")

    @property
    def verdict(self) -> Verdict:
        """The last chapter's."""
        return self.chapters[-1].verdict


@dataclass(frozen=True)
class Picture:
    """One sample and what fooled the model: inputs in threat.bounds, each of the shape of one sample."""

    stage: str
    threat: str
    x: Tensor
    x_adv: Tensor | None  # None where nothing fooled it, or nothing had to
    y: int
    prediction: int  # the class of x_adv, or of x where there is none


@dataclass(frozen=True)
class Samples:
    """The N samples that one number was measured on, as far as the page shows them."""

    stage: str
    threat: str  # the threat model's name, e.g. linf_0.1
    rows: Sequence[int]  # each one's row in its split
    pictures: Mapping[int, Picture]  # of some, under their place among the N
