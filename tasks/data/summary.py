"""summarise(): one row per sample, the table that Great Expectations sees instead of tensors."""

import hashlib

import numpy as np
import pandas as pd

from tasks.data.load import Pair, Split


def summarise(splits: dict[Split, Pair]) -> pd.DataFrame:
    """One row per sample of every split.

    Columns: sample (e.g. "test/17"), split, label, shape, dtype, minimum, maximum, mean, not_finite (count of NaN
    and infinite values), class_share (of the sample's label
    in its split), copies_before (earlier samples of the same split with the same bytes), in_train (a sample
    of select or test that train holds too).
    """
    tables = [_one_split(split, pair) for split, pair in splits.items()]
    table = pd.concat(tables, ignore_index=True)
    counts = table.groupby(["split", "label"])["sample"].transform("count")
    table["class_share"] = counts / table.groupby("split")["sample"].transform("count")
    table["copies_before"] = table.groupby(["split", "content"]).cumcount()
    trained = set(table.loc[table["split"] == "train", "content"])
    table["in_train"] = table["content"].isin(trained) & (table["split"] != "train")
    return table.drop(columns="content")


def _one_split(split: str, pair: Pair) -> pd.DataFrame:
    x, y = pair[0].contiguous().numpy(), pair[1].numpy()
    flat = x.reshape(len(x), -1)
    finite = np.isfinite(flat)
    values = np.where(finite, flat, np.nan) if not finite.all() else flat
    with np.errstate(invalid="ignore"):
        empty = ~finite.any(axis=1)
        values = np.where(empty[:, None], 0, values) if empty.any() else values
        low, high, mean = np.nanmin(values, axis=1), np.nanmax(values, axis=1), np.nanmean(values, axis=1)
    return pd.DataFrame(
        {
            "sample": [f"{split}/{i}" for i in range(len(x))],
            "split": split,
            "label": y,
            "shape": "x".join(map(str, x.shape[1:])),
            "dtype": str(x.dtype),
            "minimum": low,
            "maximum": high,
            "mean": mean,
            "not_finite": (~finite).sum(axis=1),
            "content": [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in flat],
        }
    )
