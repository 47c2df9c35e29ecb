"""Handwritten digits that scikit-learn ships: 1797 real images of 8 x 8 pixels, so they work offline."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SPLIT_AT = {"train": slice(0, 1047), "select": slice(1047, 1297), "test": slice(1297, 1797)}


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49: x [N, 1, 8, 8] in 0..1, y [N] in 0..9.

    1047 to train, 250 to select, 500 to test, in one fixed random order.
    """
    images, labels = _all()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[SPLIT_AT[split]]
    return images[order], labels[order]


@cache
def _all() -> tuple[Tensor, Tensor]:
    """Read without importing sklearn.datasets, which takes longer than all else that is done with the digits."""
    package = find_spec("sklearn")
    assert package is not None
    table = np.loadtxt(Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    x = torch.as_tensor(table[:, :-1], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return x, torch.as_tensor(table[:, -1], dtype=torch.long)
