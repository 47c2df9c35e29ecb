"""A second device made of software: torch refuses to mix its tensors with the CPU's, as it would with a GPU's.

Run as a script, each check is made once on the CPU and once on that device, and a line says whether both gave the same.
"""

import copy
import json
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "board"
COPIES = ("_to_copy", "copy_", "fill", "fill_")  # from any device to any other
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")
KEPT = (*COPIES[1:], *INDEXING)  # whose result lies where their first argument does
VALUED = ("masked_fill", "masked_fill_", "index_fill", "index_fill_")  # by a number, read on the CPU
SAME = ("clamp", "clamp_", "equal", "nextafter", "nextafter_")  # elementwise, and yet without numbers of the CPU


class Board(Tensor):
    """A tensor of the device; its numbers lie in `held`, on the CPU, where nothing but the device reads them."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()


class Driver(TorchDispatchMode):
    """While it is active, tensors can be made on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return computed(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator that draws as the CPU's does; those that were made for the device are known by their address."""

    ours: ClassVar[dict[int, torch.Generator]] = {}

    def __new__(cls, device: str | torch.device = "cpu") -> Self:
        made = super().__new__(cls)
        if torch.device(device).type == NAME:
            cls.ours[made._cdata] = made
        return made


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives; on the device where it is asked for there, or where what it is given lies there."""
    name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
    boards = [leaf for leaf in leaves if isinstance(leaf, Board)]
    strangers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Board)]
    if boards and strangers and not _may_mix(func, name, args, kwargs, strangers):
        raise RuntimeError(f"{name} was given tensors of two devices")
    asked = kwargs.get("device")
    there = bool(boards) if asked is None else torch.device(asked).type == NAME
    there = isinstance(args[0], Board) if name in KEPT else there
    rng = kwargs.get("generator")
    if rng is not None and (rng._cdata in Generator.ours) != there:
        raise RuntimeError(f"{name} was given a generator of another device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    given = tree_map(lambda leaf: leaf.held if isinstance(leaf, Board) else leaf, (args, kwargs))
    result = func(*given[0], **given[1])
    if not there:
        return result
    known = {id(board.held): board for board in boards}  # what was computed in place comes back as the same tensor
    return tree_map(lambda leaf: known[id(leaf)] if id(leaf) in known else _on_board(leaf), result)


def _may_mix(func: Any, name: str, args: Any, kwargs: dict[str, Any], strangers: list[Tensor]) -> bool:
    """Whether CUDA would take the device's tensors together with these of the CPU, as ATen's source has it.

    TensorIterator takes one number of the CPU for an input, where() any; an index may lie on the CPU, but no other way.
    """
    if name in COPIES:
        return True
    if name in INDEXING:
        values = args[2] if len(args) > 2 else kwargs.get("values", args[0])
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        fits = isinstance(args[0], Board) or not any(isinstance(index, Board) for index in indices)
        return fits and (isinstance(values, Board) == isinstance(args[0], Board) or values.ndim == 0)
    if any(stranger.ndim for stranger in strangers) or _writes(func, args, kwargs, strangers):
        return False
    if name in VALUED:
        return len(strangers) == 1 and strangers[0] is args[-1]
    elementwise = torch.Tag.pointwise in func.tags and name not in SAME
    return elementwise and (name == "where" or len(strangers) == 1)


def _writes(func: Any, args: Any, kwargs: dict[str, Any], strangers: list[Tensor]) -> bool:
    """Whether the operation would write into one of these."""
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    written = [given.get(a.name) for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return any(stranger is value for stranger in strangers for value in written)


def _on_board(leaf: Any) -> Any:
    return Board(leaf) if isinstance(leaf, Tensor) else leaf


def install() -> None:
    """Make torch know the device. What computes in C++ alone, torch.tensor(device=) and generators, is led there."""
    _setup_privateuseone_for_python_backend(NAME)
    original = torch.tensor

    def tensor(data: Any, *, device: Any = None, **how: Any) -> Tensor:
        made = original(data, **how)
        return made if device is None else made.to(device)

    torch.tensor, torch.Generator = tensor, Generator


def moved(model: nn.Module) -> nn.Module:
    """A copy of the model on the device."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            module._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().to(NAME))
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else buffer.to(NAME)
    return model


def main() -> None:
    """Print one JSON object a check: its name, what was found on the CPU, and what on the device."""
    install()
    from device_checks import CHECKS, small

    model = small()
    for name, check in CHECKS.items():
        here = check(model)
        with Driver():
            there = attempted(check, moved(model))
        print(json.dumps({"check": name, "cpu": here, "device": there}), flush=True)


def attempted(check: Callable[[nn.Module], Any], model: nn.Module) -> Any:
    """What the check found, or what it raised."""
    try:
        return check(model)
    except Exception as failure:  # whatever it is, it is what a user of a GPU would see
        return f"{type(failure).__name__}: {failure}"


if __name__ == "__main__":
    sys.exit(main())
