"""Slopes through choices: what a model does with the number of the highest of several values."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

HIGHEST = {"argmax", "max", "topk"}
LOWEST = {"argmin", "min"}
MOST = 256  # places that are chosen among: what each would lead to is asked for one after the other
SAME = {"clone", "contiguous", "detach", "int", "long", "to", "type_as"}  # the places as they were
SHAPING = {"expand", "expand_as", "flatten", "repeat", "reshape", "squeeze", "unsqueeze", "view", "view_as"}
INDEXED = "__getitem__"


class Choices:
    """The places [...] that were chosen so far, each with a weight [..., K] for every place that could have been.

    What is computed from a place is computed from every other one too: the result stays, and its slope is that of the
    weights times what each place would have led to, wherever the place went: into a comparison, an index, one_hot().
    """

    def __init__(self, weights: Callable[[Tensor], Tensor]) -> None:
        """weights: of the values [..., K] among which was chosen, of the same shape, with a slope."""
        self.weights, self.made, self.used = weights, False, False
        self.known: dict[int, tuple[Tensor, Tensor]] = {}  # by id; the place is held, so that its id stays its own

    def met(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        """What func(*args, **kwargs) gave, with a slope where it uses a choice; a choice that it makes is noted."""
        name = getattr(func, "__name__", "")
        if name in HIGHEST | LOWEST:
            self._note(name, args, kwargs, result)
            return result
        places = [value for value in (*_flat(args), *kwargs.values()) if id(value) in self.known]
        if len(places) != 1 or not isinstance(result, Tensor) or (name.endswith("_") and not name.endswith("__")):
            return result
        place, weights = self.known[id(places[0])]
        if name in SAME and not result.is_floating_point():
            self.known[id(result)] = result, weights
            return result
        if name in SHAPING or (name == INDEXED and args[0] is place):
            shaped = [func(*_with(args, place, part), **kwargs) for part in weights.unbind(-1)]
            self.known[id(result)] = result, torch.stack(shaped, -1)
            return result
        if name == "one_hot":  # of one place alone it would be narrower
            args, kwargs = (place, result.shape[-1]), {}
            weights = weights[..., : result.shape[-1]]
        try:
            return self._sloped(func, args, kwargs, place, weights, result)
        except (IndexError, RuntimeError, TypeError, ValueError):  # another place would lead nowhere
            return result

    def _note(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Remember the places that argmax(x, dim), max(x, dim) or topk(x, 1) gave, where x [...] has a slope."""
        choice = choice_made(name, args, kwargs, result)
        if choice is None:
            return
        self.made, (values, place, dim) = True, choice
        if dim is not None and place.shape[dim] != 1:
            return
        weights = self.weights(values)
        self.known[id(place)] = place, weights if dim is None else weights.unsqueeze(dim)

    def _sloped(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        place: Tensor,
        weights: Tensor,
        result: Tensor,
    ) -> Tensor:
        moved = weights - weights.detach()
        total = result.to(weights.dtype) if not result.is_floating_point() else result
        for k, weight in enumerate(moved.unbind(-1)):
            other = torch.full_like(place, k)
            led = func(*_with(args, place, other), **{key: other if v is place else v for key, v in kwargs.items()})
            led = led.detach().to(total.dtype).nan_to_num(0.0, 0.0, 0.0)
            if led.shape[: place.ndim] == place.shape:
                weight = weight.reshape(*place.shape, *[1] * (led.ndim - place.ndim))
            total = total + weight * led
        if total.shape != result.shape:
            return result
        self.used = True
        return total


def choice_made(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> tuple[Tensor, Tensor, int | None] | None:
    """What argmax(x, dim), max(x, dim) or topk(x, n) chose among: values [..., K] with slopes, of which the highest.

    And the places that were chosen, as they were returned, and the dimension of these along which they stand, if they
    keep one. None where nothing was chosen, or where x has no slope.
    """
    x = args[0] if args else kwargs["input"]
    second, third, fourth = (args[i] if len(args) > i else None for i in (1, 2, 3))
    places, dim = result if isinstance(result, Tensor) else result[1], kwargs.get("dim", kwargs.get("axis", second))
    lowest = name in LOWEST
    if name == "topk":
        dim, lowest = kwargs.get("dim", -1 if third is None else third), not kwargs.get("largest", fourth is not False)
    if isinstance(result, Tensor) and not name.startswith("arg"):  # the highest of all, or of each pair
        return None
    if not isinstance(dim, int) or not (x.requires_grad and x.is_floating_point()) or x.shape[dim] > MOST:
        return None
    values = x.movedim(dim, -1) * (-1 if lowest else 1)
    return values, places, dim % x.ndim if places.ndim == x.ndim else None


def _flat(values: Any) -> list[Any]:
    """The values, those within a tuple too."""
    return [v for value in values for v in (value if isinstance(value, tuple) else (value,))]


def _with(args: tuple[Any, ...], place: Tensor, other: Tensor) -> tuple[Any, ...]:
    """The arguments with another place in the stead of this one."""
    return tuple(
        other if value is place else _with(value, place, other) if isinstance(value, tuple) else value for value in args
    )
