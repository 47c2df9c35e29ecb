import gzip
import struct
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch.utils.data import TensorDataset

from tasks.data import Data, describe, digits, load, load_split, mnist, read_idx, read_table, summarise
from tasks.errors import DataMissing, EvidenceBroken, UnknownPart, WrongInput


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def mnist_folder(shared_data, tmp_path):
    """MNIST itself where it is at hand, else scikit-learn's digits in its format."""
    if shared_data:
        return shared_data / "mnist"
    x, y = digits("train")
    for part, rows in (("train", slice(0, 800)), ("t10k", slice(800, None))):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", (x[rows, 0] * 16).numpy().astype(np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", y[rows].numpy().astype(np.uint8))
    return tmp_path


@pytest.fixture
def table(tmp_path):
    """scikit-learn's breast cancer data as a CSV, with headers as blank as found in the wild."""
    frame = load_breast_cancer(as_frame=True).frame.rename(columns={"target": " Class "})
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_digits_are_the_1797_images_once_each():
    pairs = [digits(split) for split in ("train", "select", "test")]
    assert [len(y) for _, y in pairs] == [1047, 250, 500]
    assert len({x.numpy().tobytes() for xs, _ in pairs for x in xs}) == 1797


def test_mnist_is_read_from_its_folder(mnist_folder):
    x, y = mnist("test", folder=mnist_folder)
    assert x.shape[1] == 1
    assert 0 <= x.min() < x.max() <= 1
    assert set(y.tolist()) == set(range(10))
    train, select = (len(mnist(split, folder=mnist_folder)[1]) for split in ("train", "select"))
    assert (train, select) in [(55000, 5000), (640, 160)]


def test_an_idx_file_comes_back_as_written(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a", "a.gz"):
        write_idx(tmp_path / name, array)
        assert np.array_equal(read_idx(tmp_path / name), array)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", "cut short: 11 bytes, but its header promises 13"),
        (b"\x00\x00\x08\x03\x00", "cut short"),
        (b"PK\x03\x04", "no IDX file"),
        (b"", "no IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, raw, hint):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(DataMissing, match=hint):
        read_idx(tmp_path / "x")


def test_a_gz_file_cut_short_is_named(tmp_path):
    write_idx(tmp_path / "x.gz", np.arange(200, dtype=np.uint8))
    (tmp_path / "x.gz").write_bytes((tmp_path / "x.gz").read_bytes()[:-20])
    with pytest.raises(DataMissing, match="cut short or damaged"):
        read_idx(tmp_path / "x.gz")


def test_data_that_is_not_shipped_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("REDOUBT_DATA", raising=False)
    with pytest.raises(DataMissing, match=r"REDOUBT_DATA is not set.*train-images-idx3-ubyte\.gz"):
        load("mnist")
    monkeypatch.setenv("REDOUBT_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="looked for"):
        load("phishing")
    with pytest.raises(DataMissing, match="does not exist"):
        load(str(tmp_path / "nothing"))


def test_the_phishing_table_has_30_features(shared_data, table):
    x, y = load("phishing" if shared_data else str(table))["test"]
    assert x.shape[1] == 30
    assert set(y.tolist()) == {0, 1}


def test_equal_rows_never_part_between_splits_and_features_are_scaled(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 3, (600, 4)), columns=list("abcd")).assign(Class=rng.integers(0, 2, 600))
    frame.to_csv(tmp_path / "t.csv", index=False)
    rows = {s: {r.numpy().tobytes() for r in read_table(s, path=tmp_path / "t.csv")[0]} for s in ("train", "test")}
    assert rows["train"]
    assert rows["test"]
    assert not rows["train"] & rows["test"]
    x, _ = read_table("train", path=tmp_path / "t.csv")
    assert x.amin(0).tolist() == [0] * 4
    assert x.amax(0).tolist() == [1] * 4


@pytest.mark.parametrize("value", ["inf", "-inf"])
def test_an_infinite_feature_is_none_in_whatever_split_it_is(tmp_path, value):
    rows = [f"{i / 40},{i % 7},{i % 2}" for i in range(40)]
    for i in range(0, 40, 5):
        spoilt = [*rows[:i], f"{value},{i % 7},{i % 2}", *rows[i + 1 :]]
        (tmp_path / "t.csv").write_text("\n".join(["a,b,Class", *spoilt]))
        x = torch.cat([read_table(split, path=tmp_path / "t.csv")[0] for split in ("train", "select", "test")])
        assert x.isnan().sum() == 1
        assert 0 < x[:, 0].nanmean() < 1  # the others are scaled by what is finite


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("a,class\n1,0\n", WrongInput, "no column 'Class'. Did you mean 'class'"),
        ("a,Class\nx,0\ny,1\n", WrongInput, "column 'a' holds text"),
        ("a,Class\n1,0\n2,0\n", WrongInput, "one class only"),
        ("a,Class\n1,0\n2,\n", WrongInput, "row 3 has no 'Class'"),
        ("a,Class\n", DataMissing, "no rows"),
        ("", DataMissing, "no readable CSV"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, text, error, hint):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=hint):
        read_table("train", path=tmp_path / "t.csv")


def as_torch_dataset(split):
    return TensorDataset(torch.rand(7, 3), torch.arange(7) % 2)


def as_arrays(split):
    return np.random.default_rng(0).random((5, 2)), np.arange(5) % 2


def empty(split):
    return torch.rand(0, 2), torch.zeros(0, dtype=torch.long)


def uneven(split):
    return torch.rand(4, 2), torch.zeros(3, dtype=torch.long)


def integers(split):
    return torch.ones(4, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)


def nothing(split):
    return None


@pytest.mark.parametrize(("name", "n"), [("as_torch_dataset", 7), ("as_arrays", 5)])
def test_datasets_of_one_s_own_are_taken_as_they_come(name, n):
    x, y = load(f"{__name__}:{name}")["test"]
    assert len(x) == len(y) == n
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_what_classes_are_called_comes_from_the_column_or_the_function(table, tmp_path, monkeypatch):
    frame = pd.read_csv(table)
    frame[" Class "] = frame[" Class "].map({0: "malignant", 1: "benign"})
    frame.to_csv(tmp_path / "named.csv", index=False)
    named = str(tmp_path / "named.csv")
    found = describe(named, load(named))
    assert found.labels == ("benign", "malignant")
    _, y = load(named)["train"]
    assert y.float().mean() < 0.5  # most tumours are benign, which comes first
    assert describe(str(table), load(str(table))).labels == ()  # they are called by their numbers
    monkeypatch.setattr(as_torch_dataset, "labels", ("no", "yes"), raising=False)
    own = f"{__name__}:as_torch_dataset"
    assert describe(own, load(own)).labels == ("no", "yes")
    for other in (None, (0, 1), torch.arange(7)):  # which are no names
        monkeypatch.setattr(as_torch_dataset, "labels", other, raising=False)
        assert describe(own, load(own)).labels == ()
    for wrong in (("no",), "ab"):
        monkeypatch.setattr(as_torch_dataset, "labels", wrong, raising=False)
        with pytest.raises(WrongInput, match=r"has 2 classes and labels=.* Write a name for each class"):
            describe(own, load(own))
    frame[" Class "] = frame[" Class "].map({"malignant": 0.0, "benign": 1.0})
    frame.to_csv(tmp_path / "named.csv", index=False)
    assert describe(named, load(named)).labels == ()  # 0.0 and 1.0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("empty", "one at least"), ("uneven", "same number"), ("integers", "Scale it"), ("nothing", "Return a pair")],
)
def test_a_dataset_that_is_none_is_refused(name, hint):
    with pytest.raises(WrongInput, match=hint):
        load(f"{__name__}:{name}")


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(UnknownPart, match="Did you mean 'digits'"):
        load("digist")


def test_the_digest_follows_every_pixel_and_a_changed_dataset_is_refused():
    splits = load("digits")
    before = describe("digits", splits)
    assert load_split(before, "test")[0].shape == (500, 1, 8, 8)
    splits["test"][0][499, 0, 7, 7] += 1 / 16
    assert describe("digits", splits).digest != before.digest
    with pytest.raises(EvidenceBroken, match="changed while the run"):
        load_split(Data(**{**before.model_dump(), "digest": "0" * 16}), "test")


def raises(split):
    raise KeyError(f"{split}.npy")


def wants_two(split, folder):
    return torch.zeros(3, 2), torch.zeros(3)


def asks_for_a_folder(split):
    raise DataMissing("set ACME_DATA to the folder")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", r"raised KeyError: 'train\.npy' on split train; write def raises\(split\) -> \(x, y\)"),
        ("wants_two", r"raised TypeError: .*'folder' on split train; write def wants_two\(split\)"),
    ],
)
def test_a_dataset_function_that_raises_is_named_with_its_split(function, said):
    with pytest.raises(WrongInput, match=f"dataset '{__name__}:{function}' {said}") as refused:
        load(f"{__name__}:{function}")
    assert refused.value.__cause__ is not None


def test_what_a_dataset_says_itself_is_left_as_it_is():
    with pytest.raises(DataMissing, match=r"^set ACME_DATA to the folder$"):
        load(f"{__name__}:asks_for_a_folder")


def test_a_table_s_classes_are_named_by_the_column_that_is_its_label(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((300, 3)), columns=list("abc")).assign(target=rng.choice(["bad", "good"], 300))
    frame.to_csv(tmp_path / "t.csv", index=False)
    for number, function in enumerate(
        (
            partial(read_table, path=tmp_path / "t.csv", label="target"),
            partial(partial(read_table, path=tmp_path / "t.csv"), label="target"),
        )
    ):
        monkeypatch.setattr(sys.modules[__name__], "tickets", function, raising=False)
        name = f"{__name__}:tickets"
        assert describe(name, load(name)).labels == ("bad", "good"), number


def test_the_summary_has_one_true_row_a_sample():
    splits = load("digits")
    splits["train"][0][3, 0, 0, 0] = float("nan")
    splits["test"][0][7] = splits["train"][0][9]
    splits["select"][0][5] = splits["select"][0][4]
    table = summarise(splits).set_index("sample")
    assert len(table) == 1797
    assert table.loc["train/3", "not_finite"] == 1
    assert table.loc["test/7", "in_train"]
    assert table["in_train"].sum() == 1
    assert table["copies_before"].sum() == table.loc["select/5", "copies_before"] == 1
    assert table.loc["train/0", "maximum"] == pytest.approx(splits["train"][0][0].max().item())
