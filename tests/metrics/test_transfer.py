"""Whose examples fool whom, on planes where every answer is known."""

import pytest
import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import sample
from tasks.errors import EvidenceBroken, WrongInput
from tasks.metrics.transfer import Transfer, transfer

LINF = ThreatModel(norm="linf", eps=0.1)


def plane(feature: int, slope: float = 10.0) -> nn.Linear:
    """Class 1 where this one of two features is above 0.5; slope is the margin's."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()[1, feature] = slope
        model.bias.copy_(torch.tensor([0.0, -slope / 2]))
    return model


def test_the_matrix_of_two_planes_is_known_in_closed_form():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(400, 2, generator=rng)
    y, rows = (x.mean(1) > 0.5).long(), torch.randperm(900, generator=rng)[:400]
    models = {4: plane(0), 2: plane(1)}

    def wrong(version: int, points: Tensor) -> Tensor:
        return (points[:, {4: 0, 2: 1}[version]] > 0.5).long() != y

    found, moved = {}, {}
    for version in models:
        tries = [x + sample(x, LINF, rng) for _ in range(2)]
        tries = [(t.clamp(0, 1), wrong(version, t) & ~wrong(version, x)) for t in tries]
        found[version] = (torch.cat([rows[f] for _, f in tries]), torch.cat([t[f] for t, f in tries]))
        moved[version] = tries
    table = transfer(models, found, x, y, rows=rows, threat=LINF)
    assert table.versions == (2, 4)
    for i in (2, 4):
        for j in (2, 4):
            any_, falls = (torch.zeros(400, dtype=torch.bool) for _ in range(2))
            for points, f in moved[i]:
                any_ |= f & ~wrong(j, x)
                falls |= f & ~wrong(j, x) & wrong(j, points)
            share = table.share(i, j)
            assert (share.n, round(share.value * share.n)) == (int(any_.sum()), int(falls.sum()))
            assert (share.value == 1.0) if i == j else (0 < share.value < 0.9)
            assert share.n > 10


ROWS = torch.tensor([7, 3, 11, 5])
X = torch.tensor([[0.45, 0.55], [0.45, 0.45], [0.55, 0.55], [0.45, 0.52]])
Y = torch.tensor([0, 0, 1, 0])
FOUND = {
    1: (torch.tensor([7, 7, 3, 99]), torch.tensor([[0.52, 0.55], [0.48, 0.46], [0.51, 0.53], [0.9, 0.9]])),
    2: (torch.tensor([7, 11]), torch.tensor([[0.54, 0.48], [0.52, 0.48]])),
}


def test_the_matrix_leaves_empty_what_nobody_counted_and_survives_json():
    table = transfer({1: plane(0), 3: plane(1)}, FOUND, X, Y, rows=ROWS, threat=LINF)
    assert table.versions == (1, 2, 3)
    assert table.total == ((2, 0, 1), (2, 0, 1), (0, 0, 0))  # row 7 is wrong on version 3 as it is
    assert table.fooled == ((2, 0, 1), (1, 0, 1), (0, 0, 0))  # row 7 falls once, though two were found for it
    assert table.passes == 2 * 3 * (4 + 3 + 2)  # samples, and what was found on 1 and 2, row 99's left out
    assert [table.share(*ij) for ij in ((1, 2), (2, 2), (3, 1))] == [None, None, None]
    assert Transfer.model_validate_json(table.model_dump_json()) == table
    with pytest.raises(WrongInput, match="version 9 has no row"):
        table.share(1, 9)
    for broken in ({"fooled": ((3, 0, 1), (1, 0, 1), (0, 0, 0))}, {"total": ((2,),)}):
        with pytest.raises(ValueError, match="validation error"):
            Transfer.model_validate(table.model_dump() | broken)


def test_examples_that_are_none_and_rows_that_do_not_fit_are_refused():
    far = {1: (ROWS, X), 2: (torch.tensor([7]), torch.tensor([[0.56, 0.55]]))}
    with pytest.raises(EvidenceBroken, match=r"row 7 is none under L-inf 0\.1"):
        transfer({1: plane(0)}, far, X, Y, rows=ROWS, threat=LINF)
    masked = LINF.model_copy(update={"mask": (True,)})
    for change, says in (({"rows": ROWS[:2]}, "same number"), ({"threat": masked}, "has 1 entries")):
        with pytest.raises(WrongInput, match=says):
            transfer(**{"models": {1: plane(0)}, "found": FOUND, "x": X, "y": Y, "rows": ROWS, "threat": LINF} | change)
    nothing = transfer({}, {}, X, Y, rows=ROWS, threat=LINF)
    assert (nothing.versions, nothing.total) == ((), ())
