"""The members of a .pt2 archive, read without unpickling, importing or evaluating anything in it.

Both torch.export.load and MLflow 3.17's check of such archives run code that a file may carry: the first unpickles,
and either lets sympy evaluate the strings that describe sizes. Here a file is data, or it is refused.
"""

import io
import json
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import ModelRejected

LARGEST = 20 * 2**30  # bytes, of all members together
KNOWN = re.compile(  # all that torch.export.save writes for one model
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment|\.data/version"
    r"|\.data/serialization_id|models/model\.json|data/sample_inputs/model\.pt|data/weights/model_weights_config\.json"
    r"|data/weights/weight_\d+|data/constants/model_constants_config\.json|data/constants/tensor_\d+"
)
ROOT = re.compile(r"[\w-][\w.-]*/")
CALLS = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"}
STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
BUILDS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BUILD"}
DTYPES = {  # as torch.export numbers them
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
LOG_AGAIN = "Log it again: mlflow.pytorch.log_model(model.eval(), input_example=x, serialization_format='pt2')."


class Archive:
    """An archive whose every member is known, stored as it is, and free of code. Raises ModelRejected if one is not."""

    def __init__(self, raw: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ModelRejected(f"this is not a .pt2 archive: {error}. {LOG_AGAIN}") from error
        members = self._zip.infolist()
        _check_sizes(members, len(raw))
        self._root = members[0].filename.partition("/")[0] + "/" if members else "/"
        self.names = frozenset(_checked_names(members, self._root))
        if "byteorder" in self.names and self.read("byteorder") != b"little":
            raise ModelRejected(
                f"the archive's numbers are stored as {self.read('byteorder')[:20]!r}, not as b'little'."
            )
        if "data/sample_inputs/model.pt" in self.names:
            _check_pickle("data/sample_inputs/model.pt", self.read("data/sample_inputs/model.pt"))

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises ModelRejected if it is absent or damaged."""
        if name not in self.names:
            raise ModelRejected(f"the archive has no {name!r}: an old torch wrote it, or it was cut. {LOG_AGAIN}")
        try:
            return self._zip.read(self._root + name)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise ModelRejected(f"the archive's member {name!r} cannot be read: {error}.") from error

    def read_json(self, name: str) -> Any:
        """A member as JSON."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise ModelRejected(f"the archive's member {name!r} is not JSON: {error}.") from error

    def tensors(self, folder: str) -> dict[str, Tensor]:
        """The tensors that the folder (weights or constants) holds, each by its name in the model."""
        entries = self.read_json(f"data/{folder}/model_{folder}_config.json")["config"]
        return {name: self._tensor(folder, name, entry) for name, entry in entries.items()}

    def _tensor(self, folder: str, name: str, entry: dict[str, Any]) -> Tensor:
        path, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] is not False or meta is None:
            raise ModelRejected(f"{name!r} is kept as a pickle, which would run code when loaded. {LOG_AGAIN}")
        if meta["layout"] != 7 or meta["dtype"] not in DTYPES:
            raise ModelRejected(f"{name!r} is not a dense tensor of a known type: {str(meta['dtype'])[:20]}.")
        dtype, raw = DTYPES[meta["dtype"]], bytearray(self.read(f"data/{folder}/{path}"))
        sizes, strides = ([int(n["as_int"]) for n in meta[key]] for key in ("sizes", "strides"))
        numbers: int = math.prod(sizes)
        if numbers * dtype.itemsize > LARGEST or (numbers and not raw):
            raise ModelRejected(f"{name!r} claims {sizes} numbers, of which the archive holds {len(raw)} bytes.")
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        tensor = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()
        return nn.Parameter(tensor) if entry["is_param"] is True and tensor.is_floating_point() else tensor


def _check_sizes(members: list[zipfile.ZipInfo], given: int) -> None:
    total = sum(member.file_size for member in members)
    if total > LARGEST:
        raise ModelRejected(f"the archive declares {total} bytes; at most {LARGEST} are read.")
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or total > given:  # torch stores members as they are; whatever grows on reading is a trap
        which = f"member {packed[0]!r} is compressed" if packed else f"its members claim {total} of its {given} bytes"
        raise ModelRejected(
            f"the archive would grow when read: {which}. torch.export.save never writes that. {LOG_AGAIN}"
        )


def _checked_names(members: list[zipfile.ZipInfo], root: str) -> Iterator[str]:
    seen = set()
    for member in members:
        name = member.filename.removeprefix(root)
        stays = ROOT.fullmatch(root) and member.filename.startswith(root) and ".." not in member.filename
        if not stays or member.filename in seen:
            raise ModelRejected(f"the archive's member {member.filename!r} leaves the archive's folder or comes twice.")
        seen.add(member.filename)
        if not KNOWN.fullmatch(name):
            raise ModelRejected(
                f"the archive's member {member.filename!r} is none that one exported model needs: it may run code when "
                f"loaded, or an old torch wrote it. {LOG_AGAIN}"
            )
        yield name


def _check_pickle(name: str, raw: bytes) -> None:
    """Raises ModelRejected if the pickles of a file of torch.save could do more than build tensors. None is loaded."""
    if not raw:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as file:
            _check_sizes(file.infolist(), len(raw))
            for member in file.namelist():
                if member.endswith(".pkl"):
                    _check_opcodes(name, file.read(member))
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, ModelRejected):
            raise
        raise ModelRejected(f"the archive's member {name!r} is not a file of torch.save: {error}.") from error


def _check_opcodes(name: str, pickle: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickle):
        harmless = argument in CALLS or STORAGE.fullmatch(str(argument))
        if opcode.name in BUILDS or (opcode.name == "GLOBAL" and not harmless):
            what = argument if opcode.name == "GLOBAL" else opcode.name
            raise ModelRejected(f"the archive's member {name!r} holds a pickle that would call {what!r} when loaded.")
