"""Files of others, read within limits: what would grow without end when it is read is refused before it grows."""

import io
import math
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.errors import EvidenceBroken, WrongInput

if TYPE_CHECKING:
    import numpy as np

LARGEST, LONGEST, DEEPEST = 2**18, 10_000, 50  # of YAML: bytes, values once its aliases are followed, levels
ARRAYS = 4 * 2**30  # bytes of all arrays of one file


def read_yaml(text: str) -> Any:
    """What a YAML text holds: plain values only. Raises WrongInput for what is no YAML, is a trap, or is ambiguous."""
    import yaml

    if len(text) > LARGEST:
        raise WrongInput(f"it has {len(text):,} characters; at most {LARGEST:,} are read.")
    try:
        _check_events(yaml.parse(text, yaml.SafeLoader))
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _check_nodes(node)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WrongInput(f"no readable YAML: {str(error)[:500]}") from error
    except (RecursionError, ValueError, TypeError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"no readable YAML: {type(error).__name__}: {str(error)[:200]}") from error


def _check_events(events: "Iterator[Any]") -> None:
    import yaml

    depth = 0
    for count, event in enumerate(events):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if count > LONGEST or depth > DEEPEST:
            raise WrongInput(f"it holds more than {LONGEST:,} values, or more than {DEEPEST} levels of them.")


def _check_nodes(root: Any) -> None:
    """Raises WrongInput where aliases multiply what the text holds, or a key stands twice."""
    import yaml

    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in open_nodes:
            raise WrongInput("an alias names what it stands in.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            inner: list[Any] = []
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                twice = next((key for key in keys if keys.count(key) > 1), None)
                if twice is not None:
                    raise WrongInput(f"the key {str(twice)[:80]!r} stands twice in one place.")
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            sizes[id(node)] = 1 + sum(size(part) for part in inner)
            open_nodes.discard(id(node))
        if sizes[id(node)] > LONGEST:
            raise WrongInput(f"it grows to more than {LONGEST:,} values through its aliases.")
        return sizes[id(node)]

    size(root)


def _check_shape(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError where an array's header claims more than its member holds: numpy would make room for it."""
    from numpy.lib import format as npy

    with members.open(member) as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
        if read is None:
            raise ValueError(f"{member.filename[:80]!r} is of an unknown format")
        shape, _, dtype = read(file)
        if not dtype.hasobject and math.prod(map(int, shape)) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename[:80]!r} claims {str(shape)[:80]} of {dtype}, which it does not hold")


def read_arrays(raw: bytes) -> "dict[str, np.ndarray]":
    """The arrays of an .npz file. Raises EvidenceBroken for one that is none, holds a pickle, or grows when read."""
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as members:
            claimed = sum(member.file_size for member in members.infolist())
            for member in members.infolist():
                _check_shape(members, member)
        if claimed > ARRAYS:
            raise ValueError(f"its arrays claim {claimed:,} bytes; at most {ARRAYS:,} are read")
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a broken file makes zip, zlib and numpy raise many kinds
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise EvidenceBroken(f"this is no file of arrays: {said}. It was changed or cut short.") from error
