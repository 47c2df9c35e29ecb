"""Handwritten digits that scikit-learn ships: 1797 real images of 8 x 8 pixels, so they work offline."""

import torch
from torch import Tensor

SPLIT_AT = {"train": slice(0, 1047), "select": slice(1047, 1297), "test": slice(1297, 1797)}


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49: x [N, 1, 8, 8] in 0..1, y [N] in 0..9.

    1047 to train, 250 to select, 500 to test, in one fixed random order.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[SPLIT_AT[split]]
    x = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return x[order], torch.as_tensor(labels, dtype=torch.long)[order]
