"""What a network's answers depend on besides its weights: the code of its classes."""

import hashlib
import inspect
import sys

from torch import nn


def code_of(model: nn.Module) -> str:
    """The first 16 hex digits of SHA-256 over the model's structure and its classes' source files, torch's left out.

    Two models of equal weights whose forward() differs have different codes. A class without source (typed into an
    interpreter) counts by its name.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}  # what it inherits answers too
    own = {kind for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "builtins")}
    files = {_source(kind) for kind in own}
    text = "\0".join([repr(model), *sorted(f"{name}\n{source}" for name, source in files)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source(kind: type) -> tuple[str, str]:
    """The name of the class's module and its whole source; without a source the class's qualified name and nothing."""
    try:
        return kind.__module__, inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):
        return f"{kind.__module__}.{kind.__qualname__}", ""
