"""Tables with a label column, as features scaled to 0..1."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tasks.data.paths import find
from tasks.errors import DataMissing, WrongInput
from tasks.lookup import did_you_mean

HOW = "It is a CSV with a 'Class' column, the UCI Phishing Websites data, https://doi.org/10.24432/C51W2X."


def phishing(split: str) -> tuple[Tensor, Tensor]:
    """Mohammad and McCluskey, 2012, https://doi.org/10.24432/C51W2X: x [N, 30] in 0..1, y [N] in 0..1."""
    return read_table(split, path=find("phishing", "tabular/phishing.csv", "phishing.csv", how=HOW))


def read_table(split: str, *, path: str | Path, label: str = "Class") -> tuple[Tensor, Tensor]:
    """A CSV as x [N, features] in 0..1 and y [N] class numbers: 60 % train, 15 % select, 25 % test.

    Features are scaled by the training rows' least and largest value and clipped. Rows with the same features
    share a split, so that no test row was trained on. Classes are numbered in ascending order.
    Raises DataMissing or WrongInput, which name the file, the column and the row.
    """
    frame = _read(Path(path))
    if label not in frame.columns:
        known = [str(column)[:80] for column in frame.columns[:8]] + ["..."] * (len(frame.columns) > 8)
        raise WrongInput(
            f"{path} has no column {label!r}.{did_you_mean(label, frame.columns)} It has: {', '.join(known)}."
        )
    values = frame.drop(columns=label)
    wrong = [str(column) for column in values.columns if not pd.api.types.is_numeric_dtype(values[column])]
    if wrong:
        raise WrongInput(
            f"{path}: column {wrong[0][:80]!r} holds text. Encode it as numbers first ({len(wrong)} such columns)."
        )
    if frame[label].isna().any():
        raise WrongInput(f"{path}: row {int(frame[label].isna().to_numpy().argmax()) + 2} has no {label!r}.")
    features = values.to_numpy(dtype=np.float64)
    features = np.where(np.isinf(features), np.nan, features)  # which the contract refuses
    classes, y = np.unique(frame[label].to_numpy(), return_inverse=True)
    if len(classes) < 2:
        raise WrongInput(f"{path}: column {label!r} holds one class only, {classes[0]!r}.")
    splits = _splits(features)
    train = features[splits == "train"]
    known = ~np.isnan(train)
    low = np.min(train, axis=0, initial=np.inf, where=known)
    high = np.max(train, axis=0, initial=-np.inf, where=known)
    scaled = np.clip((features - low) / np.where(high > low, high - low, 1), 0, 1)
    rows = splits == split
    return torch.from_numpy(scaled[rows].astype(np.float32)), torch.from_numpy(y[rows].astype(np.int64))


def read_labels(path: str | Path, label: str = "Class") -> tuple[str, ...]:
    """What the classes of a CSV are called, in the order of their numbers. Raises DataMissing."""
    return tuple(str(value) for value in np.unique(_read(Path(path))[label].to_numpy()))


def _read(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, skipinitialspace=True)
    except FileNotFoundError:
        raise DataMissing(f"{path} does not exist. {HOW}") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataMissing(f"{path} is no readable CSV: {error}") from error
    frame.columns = frame.columns.str.strip()
    if len(frame) == 0:
        raise DataMissing(f"{path} has a header but no rows.")
    return frame


def _splits(features: np.ndarray) -> np.ndarray:
    """The split of every row, the same for rows with the same features: [N] of names."""
    hashes = pd.util.hash_pandas_object(pd.DataFrame(features), index=False).to_numpy()
    place = hashes % np.uint64(100)
    return np.select([place < 60, place < 75], ["train", "select"], default="test")
