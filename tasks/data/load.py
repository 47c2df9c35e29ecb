"""load(): any dataset that a config can name, checked before anybody computes with it."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tasks.data.digits import digits
from tasks.data.idx import mnist
from tasks.data.synthetic import two_kinds_of_feature
from tasks.data.table import phishing, read_labels, read_table
from tasks.errors import DataMissing, EvidenceBroken, RedoubtError, WrongInput
from tasks.lookup import lookup

Split = Literal["train", "select", "test"]
SPLITS: tuple[Split, ...] = ("train", "select", "test")
Pair = tuple[Tensor, Tensor]
DatasetFunction = Callable[[str], "Pair | Dataset[Pair]"]

DATASETS: dict[str, DatasetFunction] = {
    "digits": digits,
    "mnist": mnist,
    "phishing": phishing,
    "two-kinds": two_kinds_of_feature,
}


class Data(BaseModel, frozen=True, extra="forbid"):
    """A dataset as it travels between steps: its name, and what must not change under way."""

    name: str = Field(description="as the config names it")
    digest: str = Field(description="of every sample of every split, 16 hex digits")
    shape: tuple[int, ...] = Field(description="of one sample")
    classes: int
    sizes: dict[str, int] = Field(description="samples per split")
    labels: tuple[str, ...] = Field((), description="what the classes are called; empty where the dataset does not say")


def load(name: str) -> dict[Split, Pair]:
    """Every split of a dataset: x [N, ...] floats and y [N] int64. Raises WrongInput, DataMissing or UnknownPart."""
    function = dataset_named(name)
    return {split: _read(name, split, function) for split in SPLITS}


def load_split(data: Data, split: str) -> Pair:
    """One split, after a look that the dataset still is what was validated. Raises EvidenceBroken."""
    splits = load(data.name)
    now = describe(data.name, splits)
    if now != data:
        raise EvidenceBroken(
            f"dataset {data.name!r} changed while the run was under way: digest {now.digest}, validated was "
            f"{data.digest}. Nothing measured on it can be trusted; start again."
        )
    return splits[split]  # type: ignore[index]


def describe(name: str, splits: dict[Split, Pair]) -> Data:
    """Digest, shape, classes and sizes of loaded splits. Raises WrongInput for labels that are not one per class."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for tensor in splits[split]:
            digest.update(f"{split}{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    classes = int(splits["train"][1].max()) + 1
    return Data(
        name=name,
        digest=digest.hexdigest()[:16],
        shape=tuple(splits["train"][0].shape[1:]),
        classes=classes,
        labels=_labels(name, classes),
        sizes={split: len(splits[split][1]) for split in SPLITS},
    )


def _labels(name: str, classes: int) -> tuple[str, ...]:
    """What the dataset calls its classes: a CSV by its column, a function by its attribute `labels`; empty for neither.

    Names that are the classes' numbers tell nothing. Raises WrongInput.
    """
    try:
        function = dataset_named(name)
    except WrongInput:  # whoever describes tensors of no dataset that we know
        return ()
    if isinstance(function, partial) and function.func is read_table:
        told = {key: value for key, value in function.keywords.items() if key in ("path", "label")}
        labels = read_labels(**told)[:classes]  # a last class may be in no training row
    else:
        labels = getattr(function, "labels", ())
        if not isinstance(labels, str | tuple | list) or not all(isinstance(label, str) for label in labels):
            return ()  # of an object that keeps something else under that name, such as the samples' classes
        if isinstance(labels, str) or len(labels) not in (0, classes):
            raise WrongInput(
                f"dataset {name!r} has {classes} classes and labels={labels!r}. Write a name for each class, in order: "
                "('cat', 'dog')."
            )
    numbers = (tuple(f"{number}" for number in range(classes)), tuple(f"{number}.0" for number in range(classes)))
    return () if tuple(labels) in numbers else tuple(labels)


def dataset_named(name: str) -> DatasetFunction:
    """The function that a dataset's name means; nothing is read yet. Raises DataMissing or UnknownPart."""
    path = Path(name).expanduser()
    if path.is_dir():
        return partial(mnist, folder=path)
    if path.suffix.lower() == ".csv":
        if not path.is_file():
            raise DataMissing(f"dataset file {name!r} does not exist. Name a CSV, or a folder with MNIST's IDX files.")
        return partial(read_table, path=path)
    if "/" in name and not path.exists():
        raise DataMissing(f"dataset path {name!r} does not exist. Name a CSV, or a folder with MNIST's four IDX files.")
    return lookup("dataset", name, DATASETS)


def _read(name: str, split: str, function: DatasetFunction) -> Pair:
    """One split. Raises WrongInput for whatever a function of the user's own raises on it."""
    try:
        return _pair(name, split, function(split))
    except RedoubtError:
        raise
    except Exception as error:
        if ":" not in name:
            raise
        raise WrongInput(
            f"dataset {name!r} raised {type(error).__name__}: {error} on split {split}; write "
            f"def {name.rpartition(':')[2]}(split) -> (x, y) that answers for train, select and test."
        ) from error


def _pair(name: str, split: str, loaded: object) -> Pair:
    if isinstance(loaded, Dataset):
        if len(loaded) == 0:  # type: ignore[arg-type]
            raise WrongInput(f"dataset {name!r}: the {split} split is empty.")
        loaded = default_collate([loaded[i] for i in range(len(loaded))])  # type: ignore[arg-type]
    if not (isinstance(loaded, tuple | list) and len(loaded) == 2):
        raise WrongInput(f"dataset {name!r} returned {type(loaded).__name__} for {split}. Return a pair (x, y).")
    x, y = (torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in loaded)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise WrongInput(f"dataset {name!r}: x and y of {split} must be tensors or arrays.")
    if len(x) == 0 or len(x) != len(y) or y.ndim != 1:
        raise WrongInput(
            f"dataset {name!r}: {split} has x {list(x.shape)} and y {list(y.shape)}. Both need the same number of "
            f"samples, one at least, and y one class number for each."
        )
    if not x.is_floating_point():
        raise WrongInput(f"dataset {name!r}: x of {split} is {x.dtype}. Scale it to floats, e.g. x / 255.")
    if y.is_floating_point():
        raise WrongInput(f"dataset {name!r}: y of {split} is {y.dtype}. Class numbers are integers.")
    return x.to(torch.float32), y.to(torch.int64)
