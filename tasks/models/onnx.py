"""An ONNX file as a torch network with slopes, held against onnxruntime before anybody believes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.errors import ModelRejected
from tasks.lookup import did_you_mean
from tasks.models.onnx_file import checked, first_line
from tasks.models.operators import KINDS, OPERATORS, SHAPED
from tasks.models.program import Program, Step, Values, as_parameter, same_device

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-3  # of the largest logit
EXPORT = (
    "Export it with a dynamic batch dimension: torch.onnx.export(model.eval(), (x[:2],), 'model.onnx', "
    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), external_data=False)."
)
OWN = "name a 'package.module:function' that returns the torch model, or log it with serialization_format='pt2'"


@dataclass(frozen=True)
class _Ends:
    """Where x goes in and logits come out. batch is None where any size will do; rest is the shape of one row."""

    entry: str
    batch: int | None
    rest: tuple[int, ...]
    result: str
    removed: str | None


def from_onnx(raw: bytes) -> nn.Module:
    """The network of an ONNX file: x [B, ...] -> logits [B, C], with slopes; `.removed` names what was taken off.

    A Softmax or LogSoftmax at the end is taken off: it does not change the class and hides the slope. The rest must
    answer as onnxruntime does on random x in 0..1. Raises ModelRejected if it does not, or if the file holds an
    operator that is not in the table, data in other files, functions, or more than one input; WrongInput where the
    packages are missing.
    """
    model = checked(raw)
    try:
        ends = _ends(model)
        program = _program(model, ends)
        _compare(program, model, ends)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, ModelRejected):
            raise
        raise ModelRejected(f"this ONNX file cannot be converted: {first_line(error)}. Or {OWN}.") from error
    return program.eval()


def _ends(model: "onnx.ModelProto") -> _Ends:
    graph = model.graph
    ready = {tensor.name for tensor in graph.initializer}
    entries = [value for value in graph.input if value.name not in ready]
    if len(entries) != 1 or entries[0].type.tensor_type.elem_type != 1:
        found = ", ".join(value.name for value in entries) or "none"
        raise ModelRejected(f"the ONNX file's inputs are {found}; a model takes one tensor of float32. Instead, {OWN}.")
    sizes = [size.dim_value or None for size in entries[0].type.tensor_type.shape.dim]
    rest = tuple(size for size in sizes[1:] if size is not None)
    if len(sizes) < 2 or len(rest) != len(sizes) - 1:
        raise ModelRejected(f"the ONNX file takes x {sizes}; all sizes but the first must be numbers. {EXPORT}")
    results = [value.name for value in graph.output if value.type.tensor_type.elem_type == 1]
    if len(results) != 1:
        raise ModelRejected(f"the ONNX file returns {len(results)} tensors of float32; logits [B, C] are one. {EXPORT}")
    result, removed = results[0], None
    makers = {name: node for node in graph.node for name in node.output}
    while result in makers and makers[result].op_type in ("Softmax", "LogSoftmax", "Identity"):
        node = makers[result]
        if node.op_type != "Identity":
            if removed or any(a.name == "axis" and a.i not in (1, -1) for a in node.attribute):
                break
            removed = node.op_type
        result = node.input[0]
    return _Ends(entries[0].name, sizes[0], rest, result, removed)


def _program(model: "onnx.ModelProto", ends: _Ends) -> Program:
    from onnx import numpy_helper

    opset = max((found.version for found in model.opset_import if found.domain in ("", "ai.onnx")), default=0)
    if model.graph.sparse_initializer:
        raise ModelRejected("the ONNX file holds sparse weights, which torch does not train. Store them densely.")
    ready = {t.name: _tensor(numpy_helper.to_array(t), t.data_type) for t in model.graph.initializer}
    steps = []
    for node in _needed(model.graph, ends):
        step = _step(node, opset, None if ends.batch is None else _batch_of(node, ready, ends.batch))
        if all(name in ready for name in step.reads):
            with torch.no_grad():
                ready.update(zip(step.writes, step.run(dict(ready)), strict=True))
        else:
            steps.append(step)
    tensors, plain = _sorted_out(steps, ready)
    return Program("ONNX", steps, tensors, entry=ends.entry, result=ends.result, plain=plain, removed=ends.removed)


def _needed(graph: "onnx.GraphProto", ends: _Ends) -> "list[onnx.NodeProto]":
    """The nodes that logits come from, in their order; labels and what else the file computes are left alone."""
    wanted, nodes = {ends.result}, []
    for node in reversed(graph.node):
        if wanted & set(node.output) and ends.entry not in node.output:
            nodes.append(node)
            wanted |= set(node.input)
    return nodes[::-1]


def _batch_of(node: "onnx.NodeProto", ready: Mapping[str, Tensor], batch: int) -> int | None:
    """The batch size that a Reshape has written into its constant shape, which must then follow x instead."""
    fixed = node.op_type == "Reshape" and len(node.input) == 2 and node.input[1] in ready
    return batch if fixed and node.input[0] not in ready else None


def _step(node: "onnx.NodeProto", opset: int, batch: int | None) -> Step:
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    if kind not in OPERATORS:
        raise ModelRejected(
            f"the ONNX operator {kind[:80]!r} is not in the table.{did_you_mean(kind, OPERATORS)} So, {OWN}."
        )
    attributes = {"opset": opset, "outputs": len(node.output), "batch": batch} | _attributes(node)
    operator, names, writes = OPERATORS[kind], tuple(node.input), tuple(node.output)
    if any(writes[1:]) and kind != "Split":
        raise ModelRejected(f"the ONNX operator {kind!r} is asked for a second output, which it does not give here.")

    def work(values: Values) -> Sequence[Any]:
        arguments = [values[name] if name else None for name in names]
        result = operator(attributes, *(arguments if kind in SHAPED else same_device(arguments)))
        return result if isinstance(result, tuple) else (result,)

    return Step(kind, work, tuple(name for name in names if name), writes if kind == "Split" else writes[:1])


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    from onnx import AttributeProto, helper, numpy_helper

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            value = _tensor(numpy_helper.to_array(attribute.t), attribute.t.data_type)
        elif attribute.type == AttributeProto.STRING:
            value = attribute.s.decode()
        elif attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS):
            value = list(value)
        elif attribute.type not in (AttributeProto.FLOAT, AttributeProto.INT):
            raise ModelRejected(f"the ONNX operator {node.op_type!r} has {attribute.name!r} of a kind not read here.")
        found[attribute.name] = value
    return found


def _tensor(values: "np.ndarray[Any, Any]", kind: int) -> Tensor:
    if kind not in KINDS:
        raise ModelRejected(f"the ONNX file holds numbers of type {kind}, which torch does not compute with.")
    if kind == 16:
        values = values.astype(np.float32)  # torch knows bfloat16, and numpy does not
    return torch.from_numpy(np.array(values)).to(KINDS[kind])


def _sorted_out(steps: list[Step], ready: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The constants that the steps read: those that are computed with, and those that only say shapes or places."""
    computed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for step in steps:
        for place, name in enumerate(step.reads):
            if name in ready:
                weight = ready[name].is_floating_point() and (place == 0 or step.label not in SHAPED)
                (computed if weight else plain)[name] = ready[name]
    return {name: as_parameter(tensor) for name, tensor in computed.items()}, {
        name: tensor for name, tensor in plain.items() if name not in computed
    }


def _compare(program: Program, model: "onnx.ModelProto", ends: _Ends) -> None:
    """Raises ModelRejected unless the program answers as onnxruntime does, in batches of several sizes."""
    size = ends.batch or 1
    x = np.random.default_rng(0).random((3 * size, *ends.rest), dtype=np.float32)
    one_by_one, together = _answers(model, ends, x, size), None if ends.batch else _answers(model, ends, x, len(x))
    for rows in (len(x), size):
        truth = together if together is not None and rows == len(x) else one_by_one
        try:
            with torch.no_grad():
                logits = program(torch.from_numpy(x[:rows]))
        except Exception as error:  # whatever an operator raises
            raise ModelRejected(
                f"the converted ONNX model fails on x {[rows, *ends.rest]}: {first_line(error)}. {EXPORT}"
            ) from error
        if logits.shape != truth[:rows].shape or logits.ndim != 2 or logits.shape[1] < 2:
            raise ModelRejected(
                f"the ONNX model returns {list(logits.shape)} for x {[rows, *ends.rest]}; it must return logits "
                f"[{rows}, C] with two classes or more, for every batch size. {EXPORT}"
            )
        apart = np.abs(logits.numpy() - truth[:rows]).max() / max(np.abs(truth).max(), 1e-6)
        if not apart <= TOLERANCE:
            raise ModelRejected(
                f"the conversion of this file does not answer as onnxruntime does: {apart:.2g} of the largest logit "
                f"apart on x {[rows, *ends.rest]}. {EXPORT} Or {OWN}."
            )


def _answers(model: "onnx.ModelProto", ends: _Ends, x: "np.ndarray[Any, Any]", size: int) -> "np.ndarray[Any, Any]":
    """The logits that onnxruntime computes for x, `size` rows at a time."""
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.append(onnx.helper.make_tensor_value_info(ends.result, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        parts = [session.run([ends.result], {ends.entry: part})[0] for part in np.split(x, len(x) // size)]
    except Exception as error:  # onnxruntime's own, of which there are many
        raise ModelRejected(f"onnxruntime cannot run the file: {first_line(error)}. {EXPORT}") from error
    return np.concatenate(parts)
