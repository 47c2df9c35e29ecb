"""All along the line on which one feature may change by itself."""

import torch
from torch import Tensor

from tasks.attacks.features import mask_of
from tasks.attacks.geometry import project
from tasks.attacks.search import Search


def sweep(search: Search, rows: Tensor, *, points: int = 64) -> None:
    """Change one feature at a time, to so many values that are evenly spaced over what budget and bounds allow.

    A margin that rises and falls along the line hides what lies between from whoever follows its slope. Where a mask
    leaves one feature, there is nothing else to try; of many features, it takes as many times `points` passes a sample.
    """
    features = search.x[:1]
    free = torch.ones_like(features) if search.threat.mask is None else mask_of(search.threat, features)
    for feature in free.flatten().nonzero():
        only = torch.zeros_like(features).flatten().index_fill(0, feature, 1.0).view_as(features)
        for at in torch.linspace(0, 1, points, dtype=torch.float32).tolist():
            rows = rows[~search.fooled[rows]]
            if not len(rows):
                return
            least, most = (project(end * only, search.threat, search.within(rows)) for end in search.within(rows))
            search.ask(rows, least + at * (most - least), inside=True)
