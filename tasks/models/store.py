"""Models as files without pickle, and the look at a model before it is trained."""

import hashlib
import warnings
from collections.abc import Callable
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tasks.errors import EvidenceBroken, ModelRejected
from tasks.lookup import lookup
from tasks.models.graph import EXPORTING, from_exported
from tasks.models.networks import MODELS
from tasks.models.onnx import from_onnx


def build(name: str, *, seed: int = 0) -> nn.Module:
    """A new network with weights drawn from the seed. Raises UnknownPart or ModelRejected."""
    function: Callable[[], nn.Module] = lookup("model", name, MODELS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = function()
        except Exception as error:  # whatever it raises, its author needs to know which part did
            raise ModelRejected(
                f"model {name!r} cannot be built: {type(error).__name__}: {error}. Name a function without arguments "
                "that returns a torch.nn.Module."
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelRejected(f"model {name!r} returned {type(model).__name__}. It must return a torch.nn.Module.")
    return model


def check_model(model: nn.Module, name: str, x: Tensor, classes: int) -> None:
    """Raises ModelRejected unless the model maps x [B, ...] to finite logits [B, classes] and can be exported."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(x)
    except Exception as error:  # whatever a model raises, its author needs the shape that it was given
        raise ModelRejected(f"model {name!r} fails on x {list(x.shape)}: {error}") from error
    if not isinstance(logits, Tensor) or list(logits.shape) != [len(x), classes]:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelRejected(
            f"model {name!r} returns {got} for x {list(x.shape)}; the data has {classes} classes, so it must return "
            f"logits [{len(x)}, {classes}]. Change the width of its last layer."
        )
    if not logits.isfinite().all():
        raise ModelRejected(f"model {name!r} returns logits that are not finite before any training.")
    try:
        with EXPORTING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # torch.export raises many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelRejected(
            f"model {name!r} cannot be exported, and nothing is registered as pickle. torch.export says: {first}. "
            f"Avoid Python branches on tensor values in forward()."
        ) from error


def to_bytes(model: nn.Module) -> bytes:
    """The weights as a safetensors file."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})


def from_bytes(name: str, raw: bytes, digest: str, kind: Literal["weights", "graph", "onnx"] = "weights") -> nn.Module:
    """The network in these bytes, in evaluation mode; weights alone are put into the network that `name` names.

    Raises EvidenceBroken if they hash to something else, before anything in them is looked at, and ModelRejected if a
    graph or an ONNX file is not one that can be loaded safely and whole.
    """
    if digest_of(raw) != digest:
        raise EvidenceBroken(f"weights of {name!r} hash to {digest_of(raw)}, not {digest}: the file was changed.")
    if kind == "graph":
        return from_exported(raw)
    if kind == "onnx":
        return from_onnx(raw)
    model = build(name)
    try:
        model.load_state_dict(safetensors.torch.load(raw))
    except (safetensors.SafetensorError, RuntimeError, KeyError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise ModelRejected(
            f"the weights do not fit the network {name!r}, or are no safetensors file: {first}"
        ) from error
    return model.eval()


def digest_of(raw: bytes) -> str:
    """The first 16 hex digits of SHA-256."""
    return hashlib.sha256(raw).hexdigest()[:16]
