"""Files that would grow, climb or lie: each ends in one of our own errors, at once and in little memory."""

import gzip
import io
import re
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from flows.recipes import change, configured
from tasks.data.idx import read_idx
from tasks.data.table import read_table
from tasks.errors import DataMissing, EvidenceBroken, ModelRejected, RedoubtError, WrongInput
from tasks.files import read_arrays, read_yaml
from tasks.metrics.corpus import Corpus
from tasks.models import digest_of, from_bytes

SECONDS, BYTES = 20.0, 64 * 2**20  # of one refusal: CPU time on a busy machine, and memory at its most


@pytest.fixture(autouse=True)
def _at_once():
    began = time.process_time()
    yield
    assert time.process_time() - began < SECONDS


@pytest.fixture
def _in_little_memory():
    tracemalloc.start()
    yield
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < BYTES


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "through its aliases"),
        ("a: &a [*a]", "stands in"),
        ("[" * 5000, "levels of them"),
        ("{a: " * 5000, "levels of them"),
        ("- x\n" * 12_000, "values"),
        ("x" * (2**18 + 1), "characters"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: 1\na: 2", "stands twice"),
        ("x: {b: 1, b: 2}", "stands twice"),
        ("a: [", "no readable YAML"),
        ("a: \x00", "no readable YAML"),
        ("2001-99-99", "no readable YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_a_yaml_that_is_a_trap_is_refused(tmp_path, text, why):
    with pytest.raises(WrongInput, match=why):
        read_yaml(text)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(WrongInput, match=why):
        configured(str(file), ())
    with pytest.raises(WrongInput, match=why):
        change({}, f"name={text}")


def test_anchors_that_a_person_writes_are_read():
    text = "base: &t {norm: linf, eps: 0.1}\nuse: [*t, {<<: *t, eps: 0.2}]\nnone: ~"
    assert read_yaml(text)["use"] == [{"norm": "linf", "eps": 0.1}, {"norm": "linf", "eps": 0.2}]


def idx(*sizes: int, body: bytes = b"") -> bytes:
    return b"\0\0\x08" + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + body


@pytest.mark.usefixtures("_in_little_memory")
@pytest.mark.parametrize(
    "raw",
    [
        idx(2**32 - 1),
        idx(2**31, 2**31, 4),  # 2**64: nothing, where products wrap round
        idx(2**32 - 1, 2**32 - 1, body=b"x" * 100),
        idx(*[2**32 - 1] * 255),
        b"\0\0\x08\xff",
    ],
    ids=["2^32 rows", "wraps to 0", "2^64", "255 axes", "no sizes"],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_header_that_claims_what_is_not_there_is_refused(tmp_path, raw, suffix):
    file = tmp_path / f"train-images-idx3-ubyte{suffix}"
    file.write_bytes(gzip.compress(raw) if suffix else raw)
    with pytest.raises(DataMissing, match=r"promises|cut short"):
        read_idx(file)


@pytest.mark.usefixtures("_in_little_memory")
def test_a_gz_that_unpacks_to_more_than_its_header_promises_is_not_unpacked(tmp_path):
    file = tmp_path / "x.gz"
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(idx(10))
        for _ in range(300):
            packed.write(bytes(2**20))
    with pytest.raises(DataMissing, match="promises"):
        read_idx(file)


def npz(header: str, body: bytes = b"") -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
        text = header.ljust(117) + "\n"
        file.writestr("rows.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + body)
    return raw.getvalue()


def objects() -> bytes:
    raw = io.BytesIO()
    np.savez(raw, rows=np.array([print], dtype=object))
    return raw.getvalue()


@pytest.mark.usefixtures("_in_little_memory")
@pytest.mark.parametrize(
    "raw",
    [
        npz("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
        npz("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }"),
        npz("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n(S'true'\ntR."),
        npz("__import__('os').abort()"),
        objects(),
        b"PK\x03\x04",
        b"",
    ],
    ids=["2^40 numbers", "2^64 bytes", "pickle", "code", "objects", "no zip", "nothing"],
)
def test_arrays_that_lie_or_hold_a_pickle_are_refused(raw):
    for read in (read_arrays, Corpus.from_bytes):
        with pytest.raises(EvidenceBroken, match=r"no file of arrays|cannot be used"):
            read(raw)


def test_an_archive_of_arrays_that_would_fill_the_memory_is_refused(monkeypatch):
    raw = io.BytesIO()
    np.savez_compressed(raw, rows=np.zeros(10_000))
    assert len(raw.getvalue()) < 1000
    assert len(read_arrays(raw.getvalue())["rows"]) == 10_000
    monkeypatch.setattr("tasks.files.ARRAYS", 50_000)
    with pytest.raises(EvidenceBroken, match="at most 50,000 are read"):
        read_arrays(raw.getvalue())


@pytest.mark.usefixtures("_in_little_memory")
@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**32) + b"{}",
        struct.pack("<Q", 10) + b'{"a":',
        struct.pack("<Q", 70) + b'{"0.weight":{"dtype":"F32","shape":[4294967296],"data_offsets":[0,4]}}' + b"\0" * 4,
        b"",
        safetensors.torch.save({"of another": torch.zeros(2)}),
    ],
    ids=["2^63", "2^32", "cut", "2^32 numbers", "nothing", "another network's"],
)
def test_weights_that_lie_are_refused(raw):
    with pytest.raises(ModelRejected, match="do not fit"):
        from_bytes("digits-cnn", raw, digest_of(raw))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Class,a\n0," + "x" * 10_000_000 + "\n1,1\n", "text"),
        ("Class," + "a" * 1_000_000 + "\n0,x\n1,y\n", "text"),
        ("Class,a\n0,\x00\n1,1\n", ""),
        ("Class,Class\n0,1\n", ""),
        ("Class,a\n0,inf\n1,1\n", ""),
        ("\x00" * 100, ""),
    ],
    ids=["a long field", "a long name", "a zero byte", "twice", "infinite", "zeros"],
)
def test_a_table_that_is_a_trap_is_refused_or_read(tmp_path, text, why):
    file = tmp_path / "t.csv"
    file.write_text(text)
    said = ""
    try:
        read_table("train", path=file)
    except RedoubtError as error:
        said = str(error)
    assert re.search(why, said)
    assert len(said) < 2000
