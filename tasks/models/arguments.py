"""The arguments of an exported graph's operations: constants, and names of values."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tasks.errors import ModelRejected
from tasks.models.archive import DTYPES
from tasks.models.program import HERE, Values

Get = Callable[[Values], Any]
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_int": int,
    "as_ints": lambda found: [int(value) for value in found],
    "as_int_lists": lambda found: [[int(value) for value in row] for row in found],
    "as_float": float,
    "as_floats": lambda found: [float(value) for value in found],
    "as_bool": bool,
    "as_bools": lambda found: [bool(value) for value in found],
    "as_string": str,
    "as_scalar_type": DTYPES.__getitem__,
    "as_memory_format": FORMATS.__getitem__,
    "as_layout": {7: torch.strided}.__getitem__,
}


def getter(argument: dict[str, Any]) -> Get:
    """How to come by an argument, given the values so far."""
    ((kind, value),) = argument.items()
    if kind in CONSTANTS:
        return constant(CONSTANTS[kind](value))
    if kind == "as_device":
        return operator.itemgetter(HERE)
    if kind in ("as_tensor", "as_name"):
        return operator.itemgetter(value["name"] if kind == "as_tensor" else value)
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return getter(value)
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
        return _listed(value)
    if kind == "as_tensors":
        return _listed([{"as_tensor": entry} for entry in value])
    raise ModelRejected(f"the graph has an argument of kind {kind[:40]!r}, which this does not read.")


def _listed(arguments: list[dict[str, Any]]) -> Get:
    getters = [getter(argument) for argument in arguments]
    return lambda values: [get(values) for get in getters]


def constant(value: Any) -> Get:
    """The same value every time."""
    return lambda _: value


def names_in(argument: Any) -> Iterator[str]:
    """The names of all values in an argument or a result."""
    if isinstance(argument, dict):
        for key, value in argument.items():
            if key in ("name", "as_name") and isinstance(value, str):
                yield value
            elif key != "as_graph":
                yield from names_in(value)
    elif isinstance(argument, list):
        for entry in argument:
            yield from names_in(entry)
