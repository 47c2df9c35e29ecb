"""CellStore: results by what they follow from, so that none is computed twice."""

import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import safetensors.torch
import torch
from torch import Tensor

from tasks.errors import EvidenceBroken

log = logging.getLogger("redoubt")

T = TypeVar("T")
Facts = Mapping[str, Any]
SUFFIX, BROKEN = ".safetensors", ".broken"
BLANK = "0" * 64  # where the digest will stand while the file is digested
SEAL = re.compile(rb'"digest":"([0-9a-f]{64})"')  # inside a JSON string its quotes would be escaped
MARK = re.compile(rb'"mark":"([0-9a-f]{64})"')  # of whoever holds the secret; zeros where there was none


@dataclass(frozen=True)
class Entry:
    """A result as it is stored: named tensors, and what JSON can hold."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, result: Any, *, leave: Sequence[str] = ()) -> "Entry":
        """The fields of a dataclass, without those to leave out."""
        named = {field.name: getattr(result, field.name) for field in fields(result) if field.name not in leave}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        return cls(tensors, {name: value for name, value in named.items() if name not in tensors})

    @property
    def fields(self) -> dict[str, Any]:
        """Tensors and values by name, as a dataclass takes them."""
        return {**self.values, **self.tensors}

    def joined(self, name: str, parts: Sequence["Entry"]) -> "Entry":
        """With a list of entries under this name."""
        tensors = {f"{name}/{i}/{key}": part.tensors[key] for i, part in enumerate(parts) for key in part.tensors}
        return Entry({**self.tensors, **tensors}, {**self.values, name: [dict(part.values) for part in parts]})

    def parted(self, name: str) -> tuple["Entry", list["Entry"]]:
        """What joined() was given: the entry without the list, and the list."""
        rest, parts = {}, [Entry({}, values) for values in self.values[name]]
        tensors: list[dict[str, Tensor]] = [{} for _ in parts]
        for key, tensor in self.tensors.items():
            of, _, place = key.partition("/")
            if of == name:
                i, _, inner = place.partition("/")
                tensors[int(i)][inner] = tensor
            else:
                rest[key] = tensor
        values = {key: value for key, value in self.values.items() if key != name}
        return Entry(rest, values), [Entry(own, part.values) for own, part in zip(tensors, parts, strict=True)]


class CellStore:
    """Entries in a folder, one file each, under the digest of the facts that they follow from.

    The folder is made by the first put(). Each file holds a SHA-256 of all its bytes; get() and problems() check it.
    Several processes may share the folder. Whoever can write there can write such a file: with a secret, files are
    marked by it (HMAC), and only those that bear this mark are taken; all others are computed anew and replaced.
    """

    def __init__(self, folder: Path | str, *, secret: bytes = b"") -> None:
        self.folder, self.secret = Path(folder), secret

    def __len__(self) -> int:
        return len(self._files())

    def get(self, facts: Facts) -> Entry | None:
        """The entry of these facts, on the CPU; None where there is none.

        A file that is broken is set aside under a name that ends in .broken, a warning says so, and there is none.
        """
        path = self.path(facts)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read the stored result %s: %s. It is computed anew.", path, error)
            return None
        try:
            entry, stored = _opened(raw)
            if stored != _canonical(facts):
                raise EvidenceBroken("it is the result of something else")
            if self.secret and not hmac.compare_digest(_marked(raw), _mark(raw, self.secret)):
                log.info("the stored result %s does not bear the mark of our key: it is computed anew.", path)
                return None
        except EvidenceBroken as error:
            log.warning("the stored result %s is broken: %s. It is set aside and computed anew.", path, error)
            with suppress(OSError):
                path.rename(path.with_name(path.name + BROKEN))
            return None
        return entry

    def put(self, facts: Facts, entry: Entry) -> None:
        """Store the entry, in one move. Where the disk is full or may not be written, a warning is all."""
        self._write(self.path(facts), _sealed(facts, entry, self.secret))

    def adopt(self, raw: bytes, *, like: Facts) -> None:
        """Keep an entry as another store has sealed it.

        Raises EvidenceBroken unless its digest fits every byte and its facts fit those, where both name one.
        """
        entry, stored = _opened(raw)
        facts = json.loads(stored)
        for name, ours in like.items():
            if facts.get(name, ours) != ours:
                raise EvidenceBroken(f"its {name} is {facts[name]!r}, ours is {ours!r}")
        self._write(self.path(facts), _sealed(facts, entry, self.secret) if self.secret else raw)

    def sealed(self) -> dict[str, bytes]:
        """Every entry as adopt() takes it, by the name of its file."""
        return {path.name: path.read_bytes() for path in self._files()}

    def _write(self, path: Path, raw: bytes | bytearray) -> None:
        part = path.with_name(f".{path.stem}.{uuid4().hex}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(raw)
            os.replace(part, path)
        except OSError as error:
            log.warning("cannot store a result in %s: %s. It counts, and is computed anew next time.", path, error)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def once(
        self,
        facts: Facts,
        compute: Callable[[], T],
        *,
        save: Callable[[T], Entry | None],
        load: Callable[[Entry], T],
    ) -> T:
        """The result of these facts: loaded where it is stored, else computed, and stored unless save() gives None."""
        entry = self.get(facts)
        if entry is not None:
            return load(entry)
        result = compute()
        saved = save(result)
        if saved is not None:
            self.put(facts, saved)
        return result

    def path(self, facts: Facts) -> Path:
        """Where the entry of these facts stands, if it is there."""
        return self.folder / f"{key(facts)}{SUFFIX}"

    def problems(self) -> Iterator[str]:
        """A sentence for each file whose content is not what its digest or its name says."""
        for path in self._files():
            try:
                _, stored = _opened(path.read_bytes())
                if key(json.loads(stored)) != path.stem:
                    raise EvidenceBroken("it stands under the name of another result")
            except FileNotFoundError:
                continue  # set aside by another process
            except (EvidenceBroken, OSError) as error:
                yield f"{path}: {error}"

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}"))


def key(facts: Facts) -> str:
    """SHA-256 of the facts, which JSON must be able to hold, in 64 hex digits; their order means nothing."""
    return hashlib.sha256(_canonical(facts).encode()).hexdigest()


def tensor_digest(*tensors: Tensor) -> str:
    """Sixteen hex digits that change when a value, a shape or a type of these tensors does."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _canonical(facts: Facts) -> str:
    return json.dumps(facts, sort_keys=True, allow_nan=False)


def _sealed(facts: Facts, entry: Entry, secret: bytes = b"") -> bytearray:
    """The entry as a safetensors file that names its facts and the digest of all its bytes, those digits as zeros.

    With a secret its mark stands there too, before the digest is taken.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in entry.tensors.items()}
    metadata = {"facts": _canonical(facts), "values": json.dumps(entry.values), "digest": BLANK, "mark": BLANK}
    raw = bytearray(safetensors.torch.save(tensors, metadata))
    if secret:
        marked = MARK.search(_header(raw))
        assert marked is not None
        raw[8 + marked.start(1) : 8 + marked.end(1)] = _mark(raw, secret)
    place = SEAL.search(_header(raw))
    assert place is not None
    start, end = 8 + place.start(1), 8 + place.end(1)
    raw[start:end] = hashlib.sha256(raw).hexdigest().encode()
    return raw


def _opened(raw: bytes) -> tuple[Entry, str]:
    """The entry in a file's bytes, and its facts as JSON. Raises EvidenceBroken unless its digest fits every byte."""
    place = SEAL.search(_header(raw))
    if place is None:
        raise EvidenceBroken("it names no digest: it is cut short or none of ours")
    start, end = 8 + place.start(1), 8 + place.end(1)
    digest = hashlib.sha256(raw[:start])
    digest.update(BLANK.encode())
    digest.update(memoryview(raw)[end:])
    if digest.hexdigest().encode() != place[1]:
        raise EvidenceBroken("its content does not match its digest")
    metadata = json.loads(_header(raw))["__metadata__"]
    return Entry(safetensors.torch.load(raw), json.loads(metadata["values"])), metadata["facts"]


def _mark(raw: bytes | bytearray, secret: bytes) -> bytes:
    """64 hex digits that only who holds the secret can make of these bytes, digest and mark taken as zeros."""
    blank = bytearray(raw)
    for pattern in (SEAL, MARK):
        place = pattern.search(_header(raw))
        if place is not None:
            blank[8 + place.start(1) : 8 + place.end(1)] = BLANK.encode()
    return hmac.new(secret, blank, hashlib.sha256).hexdigest().encode()


def _marked(raw: bytes) -> bytes:
    """The mark that the file bears; empty for one from before there were marks."""
    place = MARK.search(_header(raw))
    return place[1] if place else b""


def _header(raw: bytes | bytearray) -> bytes:
    """The JSON at the head of a safetensors file: its length in 8 bytes, then itself."""
    return bytes(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
