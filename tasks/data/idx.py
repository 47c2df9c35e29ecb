"""MNIST's own file format, and MNIST."""

import gzip
import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.data.paths import find
from tasks.errors import DataMissing

HOW = (
    "MNIST's four files are train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz (LeCun, Cortes, Burges); put them into one folder."
)
LARGEST, PIECE = 4 * 2**30, 2**20  # bytes of one file, unpacked, and of what is read of it at once
HELD_OUT = 5000  # the last training images serve as `select`


def mnist(split: str, *, folder: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """LeCun et al., 1998, https://doi.org/10.1109/5.726791: x [N, 1, 28, 28] in 0..1, y [N] in 0..9.

    55,000 to train, 5,000 to select, 10,000 to test, read from `folder` or from mnist/ below REDOUBT_DATA.
    """
    root = Path(folder) if folder is not None else find("mnist", "mnist", how=HOW)
    part = "t10k" if split == "test" else "train"
    images, labels = (read_idx(_file(root, f"{part}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    if len(images) != len(labels):
        raise DataMissing(f"{root} holds {len(images)} {part} images but {len(labels)} labels. {HOW}")
    if split != "test":
        cut = len(images) - min(HELD_OUT, len(images) // 5)
        wanted = slice(0, cut) if split == "train" else slice(cut, None)
        images, labels = images[wanted], labels[wanted]
    return torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / 255, torch.from_numpy(labels.astype(np.int64))


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, plain or gzipped, read-only. Raises DataMissing for a missing or damaged file."""
    try:
        state = path.stat()
    except OSError:
        raise DataMissing(f"{path} does not exist. {HOW}") from None
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)  # the files of one dataset, which every step of a run reads again
def _read(path: Path, changed: int, size: int) -> np.ndarray:  # noqa: ARG001
    try:
        raw = _whole(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataMissing(f"{path} cannot be read: {error}. It is cut short or damaged; fetch it again.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataMissing(f"{path} is no IDX file of bytes: it starts with {raw[:4].hex() or 'nothing'}. {HOW}")
    header = 4 + 4 * raw[3]
    shape = np.frombuffer(raw[4:header], dtype=">u4").astype(int) if len(raw) >= header else np.zeros(0, int)
    promised = header + math.prod(map(int, shape))  # numpy's product would wrap round
    if len(raw) < header or len(raw) != promised:
        raise DataMissing(f"{path} is cut short: {len(raw)} bytes, but its header promises {promised}. Fetch it again.")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _whole(path: Path) -> bytes:
    """The file's bytes, unpacked; hardly more than its own header promises, however much would come."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(4)
        head += file.read(4 * head[3]) if len(head) == 4 else b""
        promised = math.prod(int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4))
        rest = bytearray()
        while len(rest) <= min(promised, LARGEST) and (piece := file.read(PIECE)):
            rest += piece
        return head + bytes(rest)


def _file(root: Path, name: str) -> Path:
    plain = root / name
    return plain if plain.exists() else root / f"{name}.gz"
