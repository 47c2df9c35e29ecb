"""ONNX operators in torch: each a function of the node's attributes and its inputs."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.errors import ModelRejected
from tasks.models.layers import LAYERS

Attributes = dict[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]

LARGEST = 2**28  # numbers that a constant may be filled with
KINDS = {  # as ONNX numbers them
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def _just(function: Callable[..., Any]) -> Operator:
    """An operator without attributes."""
    return lambda _, *tensors: function(*tensors)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs."""
    return lambda _, *tensors: reduce(function, tensors)


def _div(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _mod(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y)


def _mean(_: Attributes, *tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = [given if given is not None else a.get(name) for name, given in (("min", low), ("max", high))]
    bounds = [bound.item() if isinstance(bound, Tensor) else bound for bound in bounds]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def apply(a: Attributes, x: Tensor) -> Tensor:
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        axis = a.get("axis", 1) % x.ndim  # of old, everything from the axis on was one
        return function(x.flatten(axis), -1).reshape(x.shape)

    return apply


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = axes.tolist() if axes is not None else a.get("axes")
        if not given and a.get("noop_with_empty_axes"):
            return x
        return function(x, given or list(range(x.ndim)), bool(a.get("keepdims", 1)))

    return apply


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not a.get("allowzero"):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    if sizes and sizes[0] == a.get("batch"):  # the file's one batch size, which from_onnx checks that it was
        sizes[0] = x.shape[0] if -1 in sizes else -1
    return torch.reshape(x, sizes)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.flatten(1) if axis == 1 and x.ndim > 1 else x.reshape(x.shape[:axis].numel(), -1)


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = axes.tolist() if axes is not None else a.get("axes")
    return x.squeeze() if given is None else x.squeeze(tuple(given))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = axes.tolist() if axes is not None else a["axes"]
    ndim = x.ndim + len(given)
    return reduce(lambda y, axis: y.unsqueeze(axis), sorted(axis % ndim for axis in given), x)


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, given = a.get("axis", 0), sizes.tolist() if sizes is not None else a.get("split")
    each: int = -(-x.shape[axis] // (a.get("num_outputs") or a["outputs"]))
    return torch.split(x, given or each, axis)


def _slice(a: Attributes, x: Tensor, *given: Tensor | None) -> Tensor:
    named = [a.get(name) for name in ("starts", "ends", "axes", "steps")]
    lists = [tensor.tolist() if tensor is not None else None for tensor in given]
    starts, ends, axes, steps = lists + named[len(lists) :]
    for i, (start, end) in enumerate(zip(starts or [], ends or [], strict=True)):
        axis, step = axes[i] if axes else i, steps[i] if steps else 1
        taken = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, taken.start if taken else 0, len(taken))
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


def _gather(a: Attributes, x: Tensor, places: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = torch.where(places < 0, places + x.shape[axis], places).reshape(-1)
    return x.index_select(axis, flat).reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape[a.get("start", 0) : a.get("end")]), dtype=torch.int64)


def _constant(a: Attributes) -> Tensor:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in a:
            value = a[name]
            return value if isinstance(value, Tensor) else torch.tensor(value)
    raise ModelRejected(f"a Constant holds {sorted(a)}, and none of them is a number or a tensor.")


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if torch.Size(sizes).numel() > LARGEST:
        raise ModelRejected(f"a ConstantOfShape would fill {sizes}, more than {LARGEST} numbers.")
    value: Tensor = a.get("value", torch.zeros(1))
    return value.reshape(()).expand(sizes).clone()


def _expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


def _cast(a: Attributes, x: Tensor) -> Tensor:
    if a["to"] not in KINDS:
        raise ModelRejected(f"a Cast turns numbers into type {a['to']}, which torch does not compute with.")
    return x.to(KINDS[a["to"]])


def _range(_: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _trilu(a: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    cut = torch.triu if a.get("upper", 1) else torch.tril
    return cut(x, 0 if k is None else int(k.item()))


OPERATORS: dict[str, Operator] = {
    **LAYERS,
    "Abs": _just(torch.abs),
    "Add": _just(torch.add),
    "And": _just(torch.logical_and),
    "Cast": _cast,
    "Ceil": _just(torch.ceil),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": lambda a, *tensors: torch.cat(tensors, a["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _just(torch.cos),
    "Div": _div,
    "Dropout": lambda _, x, *__: x,
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Equal": _just(torch.eq),
    "Erf": _just(torch.erf),
    "Exp": _just(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _just(torch.floor),
    "Gather": _gather,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Greater": _just(torch.gt),
    "GreaterOrEqual": _just(torch.ge),
    "HardSigmoid": lambda a, x: torch.clamp(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1),
    "HardSwish": _just(F.hardswish),
    "Identity": _just(lambda x: x),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Less": _just(torch.lt),
    "LessOrEqual": _just(torch.le),
    "Log": _just(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _just(torch.matmul),
    "Max": _folded(torch.maximum),
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mish": _just(F.mish),
    "Mod": _mod,
    "Mul": _just(torch.mul),
    "Neg": _just(torch.neg),
    "Not": _just(torch.logical_not),
    "Or": _just(torch.logical_or),
    "PRelu": _prelu,
    "Pow": lambda _, x, y: torch.pow(x, y).to(x.dtype),
    "Range": _range,
    "Reciprocal": _just(torch.reciprocal),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _just(F.relu),
    "Reshape": _reshape,
    "Round": _just(torch.round),
    "Selu": lambda a, x: a.get("gamma", 1.0507010) * F.elu(x, a.get("alpha", 1.6732632)),
    "Shape": _shape,
    "Sigmoid": _just(torch.sigmoid),
    "Sign": _just(torch.sign),
    "Sin": _just(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _just(F.softplus),
    "Split": _split,
    "Sqrt": _just(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _just(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _just(torch.tanh),
    "ThresholdedRelu": lambda a, x: torch.where(x > a.get("alpha", 1.0), x, torch.zeros_like(x)),
    "Tile": lambda _, x, repeats: x.tile(repeats.tolist()),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.ndim))[::-1])),
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _just(torch.where),
}
SHAPED = {  # by what their inputs from the second on say, which is read as a list
    "Clip",
    "ConstantOfShape",
    "Expand",
    "Pad",
    "Range",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Trilu",
    "Unsqueeze",
}
