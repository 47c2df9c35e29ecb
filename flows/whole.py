"""Hand a large value to a task as one piece."""

from typing import TypeVar, cast

from prefect.utilities.annotations import opaque

T = TypeVar("T")


def whole(value: T) -> T:
    """The value, for a parameter of a task. Prefect does not search every figure in it for futures of other tasks."""
    return cast(T, opaque(value))
