"""What a dataset must be before anybody trains on it."""

from pydantic import BaseModel, Field


class DataContract(BaseModel, frozen=True, extra="forbid"):
    """The promises that validation holds a dataset to. A broken one stops the run before training."""

    shape: tuple[int, ...] | None = Field(None, description="of one sample, e.g. [1, 28, 28]; empty: as the first")
    classes: int | None = Field(None, ge=2, description="labels are 0 .. classes - 1; empty: as found in train")
    bounds: tuple[float, float] = Field((0.0, 1.0), description="least and largest value of an input")
    min_class_share: float = Field(0.01, ge=0, le=1, description="of each class in each split")
    max_duplicate_share: float = Field(0.01, ge=0, le=1, description="samples that occur twice within a split")
    max_leaked_share: float = Field(0.0, ge=0, le=1, description="samples of select or test that are in train too")
