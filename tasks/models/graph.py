"""A graph of torch.export as a network, by running its operations ourselves: nothing in the file becomes code."""

import math
import operator
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.attacks.straight_through import FLAT, SHUT
from tasks.errors import ModelRejected
from tasks.models.archive import LOG_AGAIN, Archive
from tasks.models.arguments import Get, constant, getter, names_in
from tasks.models.program import HERE, Program, Step, Values, planned, run

EXPORTING = threading.Lock()  # held around every use of torch.export: it is not thread-safe (pytorch#195099)

SCHEMA = 8  # of the archives that this reads
NAME = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z]\w*)")
INNER = {  # operations that are not meant for callers and trust their arguments: these are what exports contain
    "__and__",
    "__or__",
    "__xor__",
    "_assert_async",
    "_assert_scalar",
    "_adaptive_avg_pool2d",
    "_convolution",
    "_log_softmax",
    "_native_batch_norm_legit_no_training",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_softmax",
    "_to_copy",
    "_unsafe_view",
    "_weight_norm",
}
SKIPPED = {"_assert_tensor_metadata"}  # says on which device and in what precision the exporter was
SUMS = ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")
SCALARS: dict[str, Callable[..., Any]] = {  # arithmetic on sizes
    **{f"_operator.{name}": getattr(operator, name) for name in SUMS},
    **{f"math.{name}": getattr(math, name) for name in ("trunc", "ceil", "floor", "sqrt")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
}


def from_exported(raw: bytes) -> nn.Module:
    """The network of a .pt2 archive of torch.export: x [B, ...] -> logits [B, C] for any B, with slopes.

    Raises ModelRejected if the archive holds anything but one graph of torch's own operations and its weights, if the
    graph was made for one batch size, or if it was made in training mode.
    """
    archive = Archive(raw)
    document = archive.read_json("models/model.json")
    try:
        version = document["schema_version"]["major"]
        if version != SCHEMA:
            raise ModelRejected(f"the graph has schema {str(version)[:20]}, and {SCHEMA} is read here. {LOG_AGAIN}")
        return _program(document["graph_module"], archive).eval()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, ModelRejected):
            raise
        raise ModelRejected(
            f"the graph is not as torch.export writes it: {type(error).__name__}: {str(error)[:200]}. {LOG_AGAIN}"
        ) from error


def _program(module: dict[str, Any], archive: Archive) -> Program:
    graph, signature = module["graph"], module["signature"]
    kept = archive.tensors("constants") | archive.tensors("weights")
    tensors: dict[str, Tensor] = {}
    entries = []
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            entries.append(value["arg"]["as_tensor"]["name"] if "as_tensor" in value["arg"] else None)
        elif kind in ("parameter", "buffer", "tensor_constant"):
            tensors[value["arg"]["name"]] = kept[value[f"{kind}_name"]]
        else:
            raise ModelRejected(f"the graph takes an input of kind {kind!r}; a model maps one tensor to logits.")
    if len(entries) != 1 or entries[0] is None:
        raise ModelRejected(f"the graph takes {len(entries)} inputs; a model maps one tensor x [B, ...] to logits.")
    results = [spec.get("user_output", {}).get("arg", {}).get("as_tensor") for spec in signature["output_specs"]]
    if len(results) != 1 or results[0] is None:
        raise ModelRejected("the graph returns something besides one tensor of logits, or changes its own state.")
    _check_batch(graph["tensor_values"][entries[0]])
    steps = _steps(graph, frozenset(tensors))
    return Program("exported graph", steps, tensors, entry=entries[0], result=results[0]["name"])


def _check_batch(meta: dict[str, Any]) -> None:
    sizes = meta["sizes"]
    if sizes and "as_int" in sizes[0]:
        raise ModelRejected(
            f"the graph was made for batches of exactly {sizes[0]['as_int']}. Log it with an input example of two or "
            "more rows and a dynamic batch dimension: mlflow.pytorch.log_model(model.eval(), input_example=x[:2], "
            "serialization_format='pt2')."
        )


def _steps(graph: dict[str, Any], weights: frozenset[str]) -> list[Step]:
    steps = []
    for node in graph["nodes"]:
        target = node["target"]
        found = NAME.fullmatch(target)
        if found and found[1] not in SKIPPED:
            steps.append(_operation(node, found[1], found[2], weights))
        elif target in SCALARS:
            getters = [getter(entry["arg"]) for entry in node["inputs"]]
            steps.append(_step(node, target, SCALARS[target], getters, {}))
        elif target == "torch.ops.higher_order.wrap_with_set_grad_enabled":
            steps.append(_with_grad_switched(node))
        elif not found:
            raise ModelRejected(f"the graph calls {target[:100]!r}, which is none of torch's plain operations.")
    return steps


def _operation(node: dict[str, Any], name: str, overload: str, weights: frozenset[str]) -> Step:
    """A call of torch.ops.aten.<name>.<overload>. Raises ModelRejected if it could do more than compute."""
    qualified = f"aten::{name}" if overload == "default" else f"aten::{name}.{overload}"
    call = getattr(getattr(torch.ops.aten, name), overload, None) if torch._C._dispatch_has_kernel(qualified) else None
    known = {argument.name for argument in call._schema.arguments} if call else set()
    if call is None or "filename" in known or (name.startswith("_") and name not in INNER):
        raise ModelRejected(f"the graph calls {node['target']!r}, which this does not run: it is unknown or not safe.")
    given = {entry["name"]: entry["arg"] for entry in node["inputs"]}
    if not given.keys() <= known:
        raise ModelRejected(f"the graph calls {node['target']!r} with {sorted(given.keys() - known)}, which it lacks.")
    _check_mode(node["target"], given)
    for argument in call._schema.arguments:
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if changed and weights & set(names_in(given.get(argument.name, {}))):
            raise ModelRejected(f"the graph changes its own weights with {node['target']!r}. {LOG_AGAIN}")
    positional, keywords = _arguments(call._schema.arguments, given)
    if name == "view":
        call = torch.ops.aten.reshape.default  # equal where view works, and fine with x laid out as channels_last
    elif name in FLAT | SHUT | {"where"}:
        call = call.overloadpacket  # goes by the name that StraightThrough knows
    return _step(node, name, call, positional, keywords)


def _arguments(schema: Sequence[Any], given: dict[str, dict[str, Any]]) -> tuple[list[Get], dict[str, Get]]:
    """What to call an operation with: by place up to the last that is given, then by name."""
    by_place = [argument for argument in schema if not argument.kwarg_only]
    while by_place and by_place[-1].name not in given:
        by_place.pop()
    positional = [getter(given[a.name]) if a.name in given else constant(a.default_value) for a in by_place]
    return positional, {a.name: getter(given[a.name]) for a in schema if a.kwarg_only and a.name in given}


def _check_mode(target: str, given: dict[str, Any]) -> None:
    training = any(given.get(name, {}).get("as_bool") for name in ("train", "training"))
    rates = [given[name].get("as_float", 1.0) for name in ("p", "dropout", "dropout_p") if name in given]
    if (training and rates != [0.0]) or given.get("dropout_p", {}).get("as_float", 0.0) > 0:
        raise ModelRejected(
            f"the graph was made in training mode ({target!r}), so it answers at random or by its company. "
            "Call model.eval() before mlflow.pytorch.log_model."
        )


def _step(
    node: dict[str, Any], label: str, call: Callable[..., Any], positional: Sequence[Get], keywords: dict[str, Get]
) -> Step:
    writes, spread = _writes(node["outputs"])

    def work(values: Values) -> Sequence[Any]:
        result = call(*(get(values) for get in positional), **{name: get(values) for name, get in keywords.items()})
        if not writes:
            return ()
        return list(result) if spread else [result]

    reads = [name for entry in node["inputs"] for name in names_in(entry["arg"])]
    return Step(label, work, tuple(reads), writes)


def _with_grad_switched(node: dict[str, Any]) -> Step:
    """torch.no_grad() and its like: the inner graph, run with gradients on or off as the model had it."""
    enabled, inner, *arguments = (entry["arg"] for entry in node["inputs"])
    graph, switch = inner["as_graph"]["graph"], bool(enabled["as_bool"])
    names = [entry["as_tensor"]["name"] for entry in graph["inputs"]]
    results = [entry["as_tensor"]["name"] for entry in graph["outputs"]]
    steps = planned(_steps(graph, frozenset()), results)
    getters = [getter(argument) for argument in arguments]
    writes, _ = _writes(node["outputs"])

    def work(values: Values) -> Sequence[Any]:
        inside = dict(zip(names, (get(values) for get in getters), strict=True)) | {HERE: values[HERE]}
        with torch.set_grad_enabled(switch):
            run(steps, inside)
        return [inside[name] for name in results]

    return Step("set_grad_enabled", work, tuple(name for argument in arguments for name in names_in(argument)), writes)


def _writes(outputs: list[dict[str, Any]]) -> tuple[tuple[str, ...], bool]:
    """The names that a node's result is called by, and whether the result is a list of such."""
    spread = len(outputs) > 1 or any("as_tensors" in output for output in outputs)
    return tuple(name for output in outputs for name in names_in(output)), spread
