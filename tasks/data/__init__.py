"""Datasets are functions: (split) -> (x [N, ...] floats, y [N] class numbers). Splits: train, select, test.

To add one, write it and name it here, or name it "package.module:function" in the config, or name a path.
"""

from tasks.data.contract import DataContract
from tasks.data.digits import digits
from tasks.data.idx import mnist, read_idx
from tasks.data.load import DATASETS, SPLITS, Data, dataset_named, describe, load, load_split
from tasks.data.summary import summarise
from tasks.data.synthetic import two_kinds_of_feature
from tasks.data.table import phishing, read_table

__all__ = [
    "DATASETS",
    "SPLITS",
    "Data",
    "DataContract",
    "dataset_named",
    "describe",
    "digits",
    "load",
    "load_split",
    "mnist",
    "phishing",
    "read_idx",
    "read_table",
    "summarise",
    "two_kinds_of_feature",
]
