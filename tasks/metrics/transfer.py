"""transfer(): whose adversarial examples still fool whom, version by version. Their budget is measured again first."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.search import margins
from tasks.errors import EvidenceBroken, ModelRejected, WrongInput
from tasks.metrics.answers import answers
from tasks.metrics.budget import violation
from tasks.metrics.cell import BLOCK
from tasks.metrics.isolation import home
from tasks.statistics import Share

Counts = tuple[tuple[int, ...], ...]


class Transfer(BaseModel, frozen=True, extra="forbid"):
    """Of the samples that version j gets right as they are, how many fall to what was found on version i.

    An attack on version j itself may find what none of these examples shows: a small share is no robust accuracy.
    """

    threat: ThreatModel
    versions: tuple[int, ...] = Field(description="of rows and columns, ascending")
    fooled: Counts = Field(description="[i][j]: samples that an example found on version i turns on version j")
    total: Counts = Field(description="[i][j]: samples with an example found on i that j gets right as they are")
    passes: int = Field(0, ge=0, description="forward, in samples")

    @model_validator(mode="after")
    def _is_a_table_of_parts(self) -> Self:
        n = len(self.versions)
        for table in (self.fooled, self.total):
            if len(table) != n or any(len(row) != n for row in table):
                raise ValueError(f"{n} versions need tables of {n} by {n}")
        pairs = [pair for rows in zip(self.fooled, self.total, strict=True) for pair in zip(*rows, strict=True)]
        if any(not 0 <= part <= whole for part, whole in pairs):
            raise ValueError("fooled must lie in 0..total everywhere")
        return self

    def share(self, i: int, j: int, *, confidence: float = 0.95) -> Share | None:
        """Share of the samples that version i's examples turn on version j; None where there is nothing to count.

        That is where version i has no examples, where version j was not given, or gets none of the samples right.
        Raises WrongInput for a version that has no row.
        """
        for version in (i, j):
            if version not in self.versions:
                raise WrongInput(
                    f"version {version} has no row. Known: {', '.join(map(str, self.versions)) or 'none'}."
                )
        row, column = self.versions.index(i), self.versions.index(j)
        n = self.total[row][column]
        return Share.of(self.fooled[row][column], n, confidence=confidence) if n else None


def transfer(
    models: Mapping[int, nn.Module],
    found: Mapping[int, tuple[Tensor, Tensor]],
    x: Tensor,
    y: Tensor,
    *,
    rows: Tensor,
    threat: ThreatModel,
    seed: int = 0,
) -> Transfer:
    """Show every version the examples found on each version, and count the samples that fall.

    models and found are by version; found holds rows [F] in the split and x_adv [F, ...], as Corpus.by_version() and
    a stage's stored examples do. x [N, ...], y [N] are the samples, rows [N] their places in the split; examples of
    other rows are left out. A sample with several examples falls to any of them; one that is wrong as it is does not
    count. What was found on a version turns that same version by construction. The models are left as they were.
    Raises EvidenceBroken for an example outside its sample's ball or box, WrongInput or ModelRejected.
    """
    versions = sorted({*models, *found})
    mine = {i: placed(*found[i], x, y, at=rows, threat=threat) for i in found}
    stored = {i: found[i][1][which] for i, (which, _) in mine.items()}
    n, y = len(x), y.cpu().long()
    labels = torch.cat([y, *(y[sample] for _, sample in mine.values())])
    fooled, total = ({(i, j): 0 for i in versions for j in versions} for _ in range(2))
    passes = 0
    for j, model in models.items():
        right, _, asked = correct(model, [x, *stored.values()], labels, seed=seed)
        passes += asked
        clean, held = right[:n], right[n:].split([len(part) for part in stored.values()])
        for (i, (_, sample)), withstood in zip(mine.items(), held, strict=True):
            total[i, j] = len(sample[clean[sample]].unique())
            fooled[i, j] = len(sample[clean[sample] & ~withstood].unique())

    def table(counts: dict[tuple[int, int], int]) -> Counts:
        return tuple(tuple(counts[i, j] for j in versions) for i in versions)

    return Transfer(threat=threat, versions=tuple(versions), fooled=table(fooled), total=table(total), passes=passes)


def placed(
    rows: Tensor, x_adv: Tensor, x: Tensor, y: Tensor, *, at: Tensor, threat: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Which stored examples belong to measured samples, and to which of these: places [K] in rows, places [K] in x.

    rows [C] and x_adv [C, ...] are what is stored; x [N, ...], y [N] are the samples at the places `at` [N] of the
    split. Raises WrongInput for samples that do not fit, EvidenceBroken for an example outside its ball or box.
    """
    _check(rows, x_adv, x, y, at, threat)
    at, rows = at.cpu().long(), rows.cpu().long()
    order = at.argsort()
    sample = order[torch.searchsorted(at[order], rows).clamp_max(len(at) - 1)]
    mine = (at[sample] == rows).nonzero().flatten()
    sample = sample[mine]
    plain, stored = x.detach().cpu().float(), x_adv.detach().cpu().float()[mine]  # as the file holds them
    if len(mine) and violation(plain[sample], stored, threat):
        for i, s in enumerate(sample.tolist()):
            wrong = violation(plain[s : s + 1], stored[i : i + 1], threat)
            if wrong:
                raise EvidenceBroken(
                    f"the stored example of row {int(at[s])} is none under {threat}: it {wrong}. The file was changed, "
                    "or is of other data or another split; take an older copy, or begin a new corpus."
                )
    return mine, sample


def correct(model: nn.Module, points: Sequence[Tensor], y: Tensor, *, seed: int) -> tuple[Tensor, Tensor, int]:
    """Whether the model is right, bool [P], its margin, float [P], and the passes that it took to know.

    points hold P samples in all, one after another, of the classes y [P]. A model that answers at random is judged by
    majority. Logits that are not finite are wrong, and their margin is infinite. The model is left exactly as it was.
    Raises ModelRejected.
    """
    where = home(model, points[0])
    whole = torch.cat([part.detach().to(*where) for part in points])
    logits, classes, passes = answers(model, whole.split(BLOCK), seed=seed)
    if logits.ndim != 2 or logits.shape[1] < 2 or int(y.max()) >= logits.shape[1]:
        raise ModelRejected(
            f"the model returned {list(logits.shape)} for {len(y)} samples with labels up to {int(y.max())}. It must "
            "return logits [B, C], one for every class and two at least."
        )
    finite = logits.isfinite().all(1)
    margin = margins(logits.float(), y).where(finite, torch.inf)
    return finite & (classes == y), margin, passes


def _check(rows: Tensor, x_adv: Tensor, x: Tensor, y: Tensor, at: Tensor, threat: ThreatModel) -> None:
    """Raise WrongInput unless the samples are a set that the stored examples can be of."""
    if len(x) == 0 or not y.shape == at.shape == x.shape[:1] or len(at.unique()) != len(at):
        raise WrongInput(
            f"x {list(x.shape)}, y {list(y.shape)} and rows {list(at.shape)} must hold the same number of samples, one "
            "at least, each with a row of its own."
        )
    if any(part.is_floating_point() for part in (rows, y, at)) or int(y.min()) < 0:
        raise WrongInput("rows and y must be integers, and y class numbers from 0 upwards.")
    if rows.shape != x_adv.shape[:1] or x.shape[1:] != x_adv.shape[1:]:
        raise WrongInput(
            f"stored are rows {list(rows.shape)} and x_adv {list(x_adv.shape)}, samples are {list(x.shape[1:])}. Give "
            "the data that the examples were made of."
        )
    if threat.features not in (None, x[0].numel()):
        raise WrongInput(f"the threat model's mask or scale has {threat.features} entries, a sample {x[0].numel()}.")
    if not x.is_floating_point() or not x.isfinite().all():
        raise WrongInput(f"x is {x.dtype} or holds values that are not finite. Give floats within {threat.bounds}.")
