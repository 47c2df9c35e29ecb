"""Policy: the numbers that a verdict needs."""

import hashlib
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from tasks.metrics import smallest_paired, smallest_sample
from tasks.statistics import as_share

Part = Annotated[float, Field(ge=0, le=1), BeforeValidator(as_share)]


class Policy(BaseModel, frozen=True, extra="forbid"):
    """The numbers that a verdict needs. A floor is held against the interval's end, not against the estimate."""

    floor: Part = Field(0.5, description="robust accuracy, under every threat model")
    floors: dict[str, Part] = Field(default_factory=dict, description="per threat model, e.g. {linf_0.1: 0.6}")
    clean_floor: Part = Field(0.8, description="accuracy on unchanged inputs")
    tolerance: Part = Field(0.03, description="robust accuracy that may be lost against the champion")
    clean_budget: Part = Field(0.02, description="clean accuracy that may be lost against the champion")
    pair_ceiling: Part = Field(
        0.05, description="a critical pair without a flip: the highest upper end of its interval"
    )
    max_age_days: float = Field(
        30, gt=0, allow_inf_nan=False, description="days after which the champion's report decides nothing"
    )
    max_finding_days: float = Field(
        90, gt=0, allow_inf_nan=False, description="days after which a finding that is still open fails every version"
    )
    may_ask_less: bool = Field(
        False, description="a version may pass without being asked all that the champion was asked when it became that"
    )
    min_samples: int = Field(100, ge=1, description="fewer samples than this decide nothing")
    max_rounds: int = Field(2, ge=0, description="how often hardening is tried")

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with any number of it."""
        waived = None if self.may_ask_less else {"may_ask_less"}  # as before there was that word
        return hashlib.sha256(self.model_dump_json(exclude=waived).encode()).hexdigest()[:16]

    def smallest_sample(self, confidence: float = 0.95, *, champion: bool = True) -> int:
        """How many samples it takes at least to pass; champion: whether there is one that must be compared.

        Raises WrongInput where no number of samples would do: a floor of 1, or a tolerance of 0.
        """
        floors = {self.floor, self.clean_floor, *self.floors.values()}
        needed = [self.min_samples, *(smallest_sample(floor, confidence=confidence) for floor in floors)]
        if champion:
            needed += [smallest_paired(loss, confidence=confidence) for loss in (self.tolerance, self.clean_budget)]
        return max(needed)
