"""Which file of an MLflow model folder holds the network, found without running or unpickling anything in it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from tasks.errors import DataMissing, ModelRejected
from tasks.models.onnx_file import inlined

LARGEST, LONGEST, DEEPEST = 2**20, 20_000, 50  # of an MLmodel file: bytes, YAML's events, levels
PICKLE = "model.pth"
LOADERS = {"mlflow.pytorch", "mlflow.onnx"}
WORD = re.compile(r"[\w.+-]{1,60}")
INSTEAD = (
    "Log it again with mlflow.pytorch.log_model(model.eval(), name='model', input_example=x[:2].numpy(), "
    "serialization_format='pt2'), or name a 'package.module:function' that returns it."
)


def found_in(folder: Path) -> tuple[Literal["graph", "onnx"], Path]:
    """The kind and the path of the network in a folder that MLflow wrote (the one with the file MLmodel).

    Raises DataMissing where there is none, and ModelRejected if the model is kept in a way that runs code when it is
    loaded (a pickle, code beside it, a loader of its own), if it is neither torch nor ONNX, or if a path leaves the
    folder.
    """
    flavours = _flavours(_inside(folder, "MLmodel"))
    for name, flavour in flavours.items():
        if any(flavour.get(key) for key in ("code", "model_code_path")):
            raise ModelRejected(
                f"the model's flavour {_word(name)} brings code: it would run code when loaded. {INSTEAD}"
            )
    loader = flavours.get("python_function", {}).get("loader_module", "mlflow.pytorch")
    torch, onnx = flavours.get("pytorch"), flavours.get("onnx")
    if (torch is None) == (onnx is None) or loader not in LOADERS:
        named = ", ".join(_word(name) for name in flavours) + (
            "" if loader in LOADERS else f", loaded by {_word(loader)}"
        )
        raise ModelRejected(f"the model is neither torch nor ONNX ({named}): it would run code when loaded. {INSTEAD}")
    if torch is None:
        return "onnx", _inside(folder, (onnx or {}).get("data", "model.onnx"))
    data = torch.get("model_data", "data")
    if not isinstance(data, str):
        raise ModelRejected(f"the model's MLmodel names no folder of its data. {INSTEAD}")
    kept = _inside(folder, data, folder=True)
    pickles = sorted(path.name for path in kept.iterdir() if path.name in (PICKLE, "pickle_module_info.txt"))
    if pickles:
        raise ModelRejected(f"the model is a pickle ({pickles[0]}): it would run code when loaded. {INSTEAD}")
    return "graph", _inside(folder, f"{data}/model.pt2")


def pickle_in(folder: Path) -> bytes | None:
    """The bytes of the pickle that a torch model is kept as; None where it is kept as something else.

    Only this one file is looked at: neither the code beside it nor a loader that MLmodel names plays a part. Raises
    as found_in does for paths that leave the folder.
    """
    torch = _flavours(_inside(folder, "MLmodel")).get("pytorch", {})
    data = torch.get("model_data", "data")
    kept = _inside(folder, data, folder=True) if torch and isinstance(data, str) else None
    if kept is None or not (kept / PICKLE).exists():
        return None
    return _inside(folder, f"{data}/{PICKLE}").read_bytes()


def bytes_in(folder: Path) -> tuple[Literal["graph", "onnx"], bytes]:
    """The kind and the bytes of the network in an MLflow model folder, weights included. Raises as found_in does.

    mlflow.onnx keeps large weights in a file beside model.onnx; they are put back, so that one digest covers all.
    """
    kind, path = found_in(folder)
    raw = path.read_bytes()
    return kind, inlined(
        raw, lambda name: _inside(folder, path.parent.relative_to(folder) / name)
    ) if kind == "onnx" else raw


def _flavours(path: Path) -> dict[str, dict[str, Any]]:
    size = path.stat().st_size
    if size > LARGEST:
        raise ModelRejected(f"the file MLmodel has {size} bytes; at most {LARGEST} are read.")
    try:
        text = path.read_text()
        _check_yaml(text)
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ModelRejected(f"the file MLmodel is not YAML: {type(error).__name__}.") from error
    flavours = document.get("flavors") if isinstance(document, Mapping) else None
    if not isinstance(flavours, Mapping) or not all(isinstance(flavour, Mapping) for flavour in flavours.values()):
        raise ModelRejected("the file MLmodel names no flavours, so nothing says what the model is.")
    return {str(name): dict(flavour) for name, flavour in flavours.items()}


def _check_yaml(text: str) -> None:
    """Raises ModelRejected where reading would take long or grow: stops at the first such place."""
    depth = 0
    for count, event in enumerate(yaml.parse(text)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or count > LONGEST or depth > DEEPEST:
            raise ModelRejected(
                "the file MLmodel is nested, long or repeats itself through aliases as MLflow never does."
            )


def _inside(root: Path, name: object, *, folder: bool = False) -> Path:
    """The file (or folder) of that name below the root. Raises ModelRejected if it would be anywhere else."""
    if not isinstance(name, str | Path):
        raise ModelRejected(f"the file MLmodel names no path, but a {type(name).__name__}.")
    path = root / name
    parts = Path(name).parts
    steps = [root.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)]
    if Path(name).is_absolute() or ".." in parts or "\\" in str(name) or any(step.is_symlink() for step in steps):
        raise ModelRejected(f"the path {str(name)[:80]!r} leaves the model's folder.")
    if not (path.is_dir() if folder else path.is_file()):
        raise DataMissing(f"there is no {str(name)[:80]!r} in the model's folder {root}.")
    return path


def _word(name: object) -> str:
    return repr(name) if isinstance(name, str) and WORD.fullmatch(name) else "without a proper name"
