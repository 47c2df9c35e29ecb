"""What a result follows from besides data, weights and configuration: the code that measures, and where it runs."""

import hashlib
import inspect
import sys
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.attacks import ATTACKS, AttackConfig, Suite
from tasks.attacks.code import code_digest

MEASURES = ("attacks", "metrics", "statistics.py")  # below tasks/: the code that a number comes from


@cache
def engine_code() -> str:
    """Sixteen hex digits that change when a file does that a number comes from. Read once in a process."""
    return code_digest(Path(__file__).parents[1], MEASURES)


def grounds(model: nn.Module, x: Tensor) -> dict[str, str]:
    """What any result of this model follows from, whatever is asked, as facts of its key in a store."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    return {
        "engine": engine_code(),
        "torch": str(torch.__version__),
        "device": parameter.device.type,
        "parameters": str(parameter.dtype),
    }


def own_code(suite: Suite) -> str:
    """Digest of the whole files in which the user's attacks stand, helpers and all; empty where there are none.

    Modules that these files import are not covered.
    """
    own = [attack for attack in suite.attacks if attack.name not in ATTACKS]
    files = sorted({file for attack in own for file in _files(attack)})
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16] if files else ""


def _files(attack: AttackConfig) -> set[str]:
    """The file that names the attack and the one that defines it."""
    function = attack.function()
    while isinstance(function, partial):
        function = function.func
    module = sys.modules.get(attack.name.partition(":")[0])
    named = {getattr(module, "__file__", None), inspect.getsourcefile(inspect.unwrap(function))}
    return {file for file in named if file and Path(file).is_file()}
