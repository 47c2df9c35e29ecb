"""An ONNX file's message: parsed, checked, and whole, with nothing read that it does not hold itself."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import ModelRejected, WrongInput

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1  # bytes: protobuf reads no more
NAME = re.compile(r"[\w-][\w.-]{0,200}")
NUMBER = re.compile(r"[0-9]{1,12}")


def inlined(raw: bytes, beside: Callable[[str], Path]) -> bytes:
    """The file with the weights that it keeps in files beside it; `beside` gives the path of such a file, or refuses.

    Raises ModelRejected where a name is not that of a file in the same folder or the file is too short.
    """
    model = _read(raw)
    outside = [tensor for tensor in _stored(model.graph) if tensor.external_data]
    left = LARGEST - len(raw)
    for tensor in outside:
        where = {entry.key: entry.value for entry in tensor.external_data}
        name, start, length = where.get("location", ""), where.get("offset", "0"), where.get("length", "")
        said = f"the weights {tensor.name[:80]!r} are said to be in {name[:80]!r}"
        if not NAME.fullmatch(name) or not NUMBER.fullmatch(start) or not NUMBER.fullmatch(length):
            raise ModelRejected(
                f"{said} from {start[:20]!r} on, {length[:20]!r} bytes: that is no place in a file here."
            )
        left -= int(length)
        if left < 0:
            raise ModelRejected(f"the ONNX model has more than {LARGEST} bytes with the weights beside it.")
        with beside(name).open("rb") as file:
            file.seek(int(start))
            tensor.raw_data = file.read(int(length))
        if len(tensor.raw_data) != int(length):
            raise ModelRejected(f"{said}, {length} bytes, but {len(tensor.raw_data)} are there.")
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    return model.SerializeToString(deterministic=True) if outside else raw


def _read(raw: bytes) -> "onnx.ModelProto":
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401  # without it nothing could be compared
    except ImportError as error:
        raise WrongInput(
            f"an ONNX model needs the package {error.name!r}. Write: pip install 'redoubt[onnx]'."
        ) from error
    if len(raw) > LARGEST:
        raise ModelRejected(f"the ONNX file has {len(raw)} bytes; at most {LARGEST} are read.")
    try:
        return onnx.load_model_from_string(raw)
    except Exception as error:  # protobuf's own, which has no public name
        raise ModelRejected(f"this is not an ONNX file: {first_line(error)}.") from error


def checked(raw: bytes) -> "onnx.ModelProto":
    """The file's message. Raises ModelRejected unless it holds all its weights, no functions, and is well formed."""
    model = _read(raw)
    import onnx

    if model.functions:
        raise ModelRejected(f"the ONNX file has functions of its own ({model.functions[0].name!r}). Inline them first.")
    for tensor in _stored(model.graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelRejected(
                f"the weights {tensor.name[:80]!r} are in another file. Save all in one: "
                "onnx.save(model, path), or mlflow.onnx.log_model(model, save_as_external_data=False)."
            )
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's, or protobuf's where the file is too large to be checked
        raise ModelRejected(f"onnx.checker refuses the file: {first_line(error)}.") from error
    return model


def _stored(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Every tensor that the graph carries, with those of its nodes' attributes and of the graphs within."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _stored(inner)


def first_line(error: Exception) -> str:
    """What an error says, in at most 300 letters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
