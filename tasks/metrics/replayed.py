"""ReplayReport: what stored adversarial examples of earlier versions still do, small enough to travel between steps."""

import numpy as np
from pydantic import BaseModel, Field

from tasks.attacks import ThreatModel
from tasks.metrics.report import unpacked
from tasks.statistics import Share


class ReplayReport(BaseModel, frozen=True, extra="forbid"):
    """A necessary test and no more: who withstands what is known already may fall to the next fresh attack."""

    threat: ThreatModel
    corpus: str = Field(description="digest of the stored examples")
    standing: Share | None = Field(description="of the samples with stored examples: who withstood all of them")
    fallen: str = Field(description="one bit a measured sample: 1 where it is right unchanged and an example fools it")
    samples: int = Field(ge=1, description="how many were measured")
    of_version: dict[int, tuple[int, int]] = Field(
        default_factory=dict, description="examples first found on a version: how many still fool, of how many"
    )
    pairs: dict[str, bool] = Field(
        default_factory=dict, description="critical pair, e.g. 3 taken for 8: whether it withstood what had flipped it"
    )
    passes: int = Field(0, ge=0)

    def fell(self) -> np.ndarray:
        """Bool [N]: which measured samples an example fools. Raises ValueError if `fallen` is not of N samples."""
        return unpacked(self.fallen, self.samples)
