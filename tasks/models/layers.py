"""ONNX's convolutions, pools, normalisations and resizing in torch."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.errors import ModelRejected

Attributes = dict[str, Any]

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    places = weight.ndim - 2
    stride, dilation, padding = _window(a, x, list(weight.shape[2:]))
    symmetric, x = _padded(x, padding, 0.0)
    convolve: Callable[..., Tensor] = CONV[places]
    return convolve(x, weight, bias, stride, symmetric, dilation, a.get("group", 1))


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    places = weight.ndim - 2
    begin, end = _halves(a.get("pads", [0] * 2 * places))
    if begin != end or a.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in a:
        raise ModelRejected("a ConvTranspose pads its sides differently or by itself. Export it with explicit padding.")
    one, more = [1] * places, [0] * places
    convolve: Callable[..., Tensor] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[places]
    stride, extra, dilation = a.get("strides", one), a.get("output_padding", more), a.get("dilations", one)
    return convolve(x, weight, bias, stride, begin, extra, a.get("group", 1), dilation)


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    stride, dilation, padding = _window(a, x, kernel)
    symmetric, x = _padded(x, padding, float("-inf"), [size // 2 for size in kernel])
    pool: Callable[..., Tensor] = MAX_POOL[len(kernel)]
    return pool(x, kernel, stride, symmetric, dilation, ceil_mode=bool(a.get("ceil_mode")))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    stride, dilation, padding = _window(a, x, kernel)
    if any(size != 1 for size in dilation):
        raise ModelRejected(f"an AveragePool has dilations {dilation}, which torch does not know.")
    pool: Callable[..., Tensor] = AVERAGE_POOL[len(kernel)]
    whole, counted = bool(a.get("ceil_mode")), bool(a.get("count_include_pad"))
    symmetric, wide = _padded(x, padding, 0.0, [size // 2 for size in kernel])
    mean = pool(wide, kernel, stride, symmetric, whole, counted)
    if wide is x or counted:
        return mean
    _, inside = _padded(torch.ones_like(x), padding, 0.0, [0] * len(kernel))  # which places are not padding
    return mean / pool(inside, kernel, stride, symmetric, whole, True)


def _window(a: Attributes, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and the padding of every side, the first sides first."""
    one = [1] * len(kernel)
    stride, dilation, auto = a.get("strides", one), a.get("dilations", one), a.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return stride, dilation, a.get("pads", [0] * 2 * len(kernel)) if auto == "NOTSET" else [0] * 2 * len(kernel)
    sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    total = [max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size) for size, k, s, d in sizes]
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    return stride, dilation, small + large if auto == "SAME_UPPER" else large + small


def _padded(x: Tensor, padding: list[int], value: float, most: list[int] | None = None) -> tuple[list[int], Tensor]:
    """The padding that the layer itself shall add, and x, padded already where it cannot."""
    begin, end = _halves(padding)
    if begin == end and (most is None or all(n <= m for n, m in zip(begin, most, strict=True))):
        return begin, x
    sides = reversed(list(zip(begin, end, strict=True)))  # torch counts from the last axis
    return [0] * len(begin), F.pad(x, list(chain.from_iterable(sides)), value=value)


def _halves(values: list[int]) -> tuple[list[int], list[int]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _gemm(a: Attributes, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if a.get("transB") and not a.get("transA") and alpha == beta == 1 and (bias is None or bias.ndim == 1):
        return F.linear(x, y, bias)  # a layer as torch computes it, to the last bit
    product: Tensor = alpha * ((x.T if a.get("transA") else x) @ (y.T if a.get("transB") else y))
    return product if bias is None else product + beta * bias


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if a.get("training_mode"):
        raise ModelRejected("a BatchNormalization is in training mode. Call model.eval() before the export.")
    return F.batch_norm(x, mean.detach(), variance.detach(), scale, bias, eps=a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[a.get("axis", -1) % x.ndim :]
    normed = F.layer_norm(x, shape, eps=a.get("epsilon", 1e-5)) * scale
    return normed if bias is None else normed + bias


def _instance_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def _group_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, a["num_groups"], scale, bias, a.get("epsilon", 1e-5))


def _pad(a: Attributes, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None) -> Tensor:
    begin, end = _halves(pads.tolist() if pads is not None else a["pads"])
    sides = [(0, 0)] * x.ndim
    for axis, low, high in zip(axes.tolist() if axes is not None else range(x.ndim), begin, end, strict=True):
        sides[axis] = (low, high)
    while len(sides) > 1 and sides[0] == (0, 0):
        sides = sides[1:]
    flat = list(chain.from_iterable(reversed(sides)))
    named = str(a.get("mode", "constant"))
    mode = {"edge": "replicate", "wrap": "circular"}.get(named, named)
    filled = float(value.item()) if value is not None else a.get("value", 0.0)
    return F.pad(x, flat, mode, filled) if mode == "constant" else F.pad(x, flat, mode)


def _resize(a: Attributes, x: Tensor, *given: Tensor | None) -> Tensor:
    _, scales, sizes = (*given, None, None, None)[:3]
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    nearest = (mode, where, a.get("nearest_mode", "round_prefer_floor"))
    ways: dict[tuple[str, str, str], tuple[str, bool | None]] = {
        ("nearest", "asymmetric", "floor"): ("nearest", None),
        ("nearest", "half_pixel", "round_prefer_ceil"): ("nearest-exact", None),
        ("linear", "half_pixel", ""): (("linear", "bilinear", "trilinear")[x.ndim - 3], False),
        ("linear", "pytorch_half_pixel", ""): (("linear", "bilinear", "trilinear")[x.ndim - 3], False),
        ("linear", "align_corners", ""): (("linear", "bilinear", "trilinear")[x.ndim - 3], True),
        ("cubic", "half_pixel", ""): ("bicubic", False),
    }
    way = ways.get(nearest if mode == "nearest" else (mode, where, ""))
    if way is None or a.get("antialias") or "axes" in a:
        raise ModelRejected(f"a Resize is of kind {nearest}, which torch does not know. Export it as torch does.")
    if sizes is not None and sizes.numel():
        return F.interpolate(x, sizes.tolist()[2:], mode=way[0], align_corners=way[1])
    factors = scales.tolist()[2:] if scales is not None else []
    return F.interpolate(x, scale_factor=factors, mode=way[0], align_corners=way[1])


def _over_places(function: Callable[..., Tensor]) -> Callable[[Attributes, Tensor], Tensor]:
    return lambda _, x: function(x, list(range(2, x.ndim)), True)


LAYERS: dict[str, Callable[..., Tensor]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _over_places(torch.mean),
    "GlobalMaxPool": _over_places(torch.amax),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
}
