"""Corpus: adversarial examples of a model's earlier versions, kept, and shown to every later one.

To withstand them is necessary and never enough: a version trained on just these examples withstands them all and falls
to a fresh attack as it did before. So replay() is a regression test beside the headline, and begin_at() a head start
for the attack that makes the headline.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import SLACK
from tasks.errors import EvidenceBroken, WrongInput
from tasks.files import read_arrays
from tasks.metrics.transfer import correct, placed
from tasks.statistics import Share

TENSORS = {"rows": torch.int64, "x_adv": torch.float32, "y": torch.int64, "version": torch.int64}
WORDS = ("data_digest", "threat")


@dataclass(frozen=True, eq=False)
class Corpus:
    """What fooled the versions of one model, on one split of one dataset, under one threat model; all on the CPU.

    Raises WrongInput unless every example is finite and in the box, no two of a row are equal, and a row has one label.
    Whether an example lies in the ball only its sample can tell: it is measured again whenever it is used.
    """

    rows: Tensor  # int64 [C]: places of the samples in the split
    x_adv: Tensor  # float32 [C, ...]
    y: Tensor  # int64 [C]: the true classes
    version: Tensor  # int64 [C]: on which it was first found, from 1
    data_digest: str
    threat: ThreatModel

    def __post_init__(self) -> None:
        complaint = _complaint(self)
        if complaint:
            raise WrongInput(f"this is no corpus: {complaint}.")

    @classmethod
    def empty(cls, shape: Sequence[int], *, data_digest: str, threat: ThreatModel) -> "Corpus":
        """A corpus without examples, for samples of this shape."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(none, torch.zeros(0, *shape, dtype=torch.float32), none, none, data_digest, threat)

    def with_found(self, version: int, rows: Tensor, x_adv: Tensor, y: Tensor, *, per_row: int = 4) -> "Corpus":
        """With what fooled this version: rows [F] in the split, x_adv [F, ...], y [F]; at most per_row of each row.

        An example that is known already, to the byte, keeps the earliest version that it was found on. Of a row's
        examples those stay that come first when its versions take turns, the newest first, then the oldest, then
        downwards from the second newest: the newest are nearest to the model at hand, and the oldest show whether a
        mended weakness is back. Among one version's the digest of the content decides. So what stays of distinct
        examples is the same in whatever order, and in however many portions, they came.

        Raises WrongInput for what does not fit this corpus.
        """
        if version < 1 or per_row < 1 or rows.is_floating_point() or y.is_floating_point():
            raise WrongInput(f"version={version} and per_row={per_row} count from 1, rows and y must be integers.")
        if x_adv.shape[1:] != self.x_adv.shape[1:] or not rows.shape == y.shape == x_adv.shape[:1]:
            raise WrongInput(
                f"rows {list(rows.shape)}, x_adv {list(x_adv.shape)} and y {list(y.shape)} do not fit. Give one of "
                f"each for every example, which is {list(self.x_adv.shape[1:])} in this corpus."
            )
        rows, y = torch.cat([self.rows, rows.cpu().long()]), torch.cat([self.y, y.cpu().long()])
        x_adv = torch.cat([self.x_adv, x_adv.detach().cpu().float()])
        versions = torch.cat([self.version, torch.full((len(rows) - len(self.rows),), version)])
        torn = _two_labels(rows, y)  # asked before one of the two is dropped
        if torn:
            raise WrongInput(f"{torn}. Give the labels of the data that this corpus is of, {self.data_digest}.")
        kept = torch.tensor(_kept(rows.tolist(), versions.tolist(), _contents(x_adv), per_row), dtype=torch.int64)
        return Corpus(rows[kept], x_adv[kept], y[kept], versions[kept], self.data_digest, self.threat)

    def by_version(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Rows [F] and x_adv [F, ...] of each version that some were first found on, oldest first."""
        of = {int(v): self.version == v for v in self.version.unique()}
        return {v: (self.rows[those], self.x_adv[those]) for v, those in of.items()}

    @property
    def digest(self) -> str:
        """Sixteen hex digits that follow from the content, in whatever order it stands."""
        facts = zip(self.rows.tolist(), self.y.tolist(), self.version.tolist(), _contents(self.x_adv), strict=True)
        whole = [self.data_digest, self.threat.digest, list(self.x_adv.shape[1:]), sorted(facts)]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """The corpus as an .npz file without pickle."""
        raw = io.BytesIO()
        tensors: dict[str, Any] = {name: getattr(self, name).numpy() for name in TENSORS}
        np.savez_compressed(
            raw, **tensors, data_digest=np.array(self.data_digest), threat=np.array(self.threat.model_dump_json())
        )
        return raw.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Corpus":
        """The corpus that to_bytes() wrote. Raises EvidenceBroken for a file that is not one; unpickles nothing."""
        try:
            arrays = read_arrays(raw)
            if set(arrays) != {*TENSORS, *WORDS}:
                raise WrongInput(f"it holds {', '.join(sorted(arrays)) or 'nothing'}")
            tensors = {name: torch.from_numpy(arrays[name]) for name in TENSORS}
            data_digest, threat = (str(arrays[name].item()) for name in WORDS)
            return cls(**tensors, data_digest=data_digest, threat=ThreatModel.model_validate_json(threat))
        except Exception as error:  # a broken file makes zip, numpy, torch and pydantic raise many kinds
            raise EvidenceBroken(
                f"the stored adversarial examples cannot be used: {type(error).__name__}: {error} The file was changed "
                "or cut short; take an older copy, or begin a new corpus."
            ) from error


@dataclass(frozen=True)
class Replay:
    """What a model made of the stored examples. A necessary test: no number in it is a robust accuracy."""

    fooled: Tensor  # bool [N]: wrong on the sample itself, or on one of its stored examples at least
    tried: Tensor  # bool [N]: has stored examples
    standing: Share | None  # of the samples with stored examples: right as they are and on all of these
    of_version: dict[int, tuple[int, int]]  # version first found on -> its examples that fool, of how many
    passes: int  # forward, in samples


def replay(
    model: nn.Module, corpus: Corpus, x: Tensor, y: Tensor, *, rows: Tensor, seed: int = 0, confidence: float = 0.95
) -> Replay:
    """Show the model every stored example of the measured samples, and say which of the samples fell.

    x [N, ...], y [N] are the samples, rows [N] their places in the split; examples of other rows are left out. Logits
    that are not finite count as wrong, and a model that answers at random is judged by majority. The model, which maps
    x to logits [N, C], is left exactly as it was. Raises EvidenceBroken for an example that is not in the ball of its
    sample or bears another label, WrongInput or ModelRejected for what does not fit.
    """
    mine, sample = _own(corpus, x, y, rows)
    y = y.cpu().long()
    right, _, passes = correct(model, [x, corpus.x_adv[mine]], torch.cat([y, y[sample]]), seed=seed)
    clean, held = right[: len(x)], right[len(x) :]
    fooled, tried = ~clean, torch.zeros_like(clean)
    tried[sample] = True
    fooled[sample[~held]] = True
    n, version = int(tried.sum()), corpus.version[mine]
    return Replay(
        fooled=fooled,
        tried=tried,
        standing=Share.of(int((tried & ~fooled).sum()), n, confidence=confidence) if n else None,
        of_version={int(v): (int((~held[version == v]).sum()), int((version == v).sum())) for v in version.unique()},
        passes=passes,
    )


def begin_at(model: nn.Module, corpus: Corpus, x: Tensor, *, y: Tensor, rows: Tensor, seed: int = 0) -> Tensor:
    """For each sample the stored example of smallest margin on this model, x itself where there is none: [N, ...].

    To be given to measure(warm=...). Arguments and errors are those of replay(). Of equal margins the first counts.
    """
    mine, sample = _own(corpus, x, y, rows)
    begin = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)  # a half cannot hold the examples
    if not len(mine):
        return begin
    stored = corpus.x_adv[mine]
    _, margin, _ = correct(model, [stored], y.cpu().long()[sample], seed=seed)
    least = torch.full((len(x),), float("inf"), dtype=torch.float32).scatter_reduce(0, sample, margin, "amin")
    place = torch.where(margin == least[sample], torch.arange(len(mine)), len(mine))
    first = torch.full((len(x),), len(mine)).scatter_reduce(0, sample, place, "amin")
    has = first < len(mine)
    begin[has.to(x.device)] = stored[first[has]].to(begin)
    return begin


def _own(corpus: Corpus, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The corpus entries of the measured samples and the samples that they are of, as placed(); labels agree too."""
    mine, sample = placed(corpus.rows, corpus.x_adv, x, y, at=rows, threat=corpus.threat)
    torn = (corpus.y[mine] != y.cpu()[sample]).nonzero().flatten()
    if len(torn):
        first = torn[0]
        raise EvidenceBroken(
            f"the stored example of row {int(corpus.rows[mine[first]])} is labelled {int(corpus.y[mine[first]])}, the "
            f"sample {int(y[sample[first]])}. The file was changed, or is of other data or another split than "
            f"{corpus.data_digest}."
        )
    return mine, sample


def _complaint(corpus: Corpus) -> str | None:
    """What makes this no corpus, in words; None if nothing does."""
    for name, kind in TENSORS.items():
        tensor = getattr(corpus, name)
        if tensor.dtype != kind or tensor.device.type != "cpu":
            return f"{name} is {tensor.dtype} on {tensor.device}, and must be {kind} on the CPU"
        if tensor.shape[:1] != corpus.rows.shape or (tensor.ndim > 1) != (name == "x_adv"):
            return f"{name} is {list(tensor.shape)} for rows {list(corpus.rows.shape)}"
    if not len(corpus.rows):
        return None
    if corpus.rows.min() < 0 or corpus.y.min() < 0 or corpus.version.min() < 1:
        return "rows and y count from 0, versions from 1"
    if corpus.threat.features not in (None, corpus.x_adv[0].numel()):
        return f"the threat model has {corpus.threat.features} features, an example {corpus.x_adv[0].numel()}"
    if not corpus.x_adv.isfinite().all():
        return "x_adv holds values that are not finite"
    low, high = corpus.threat.bounds
    least, most, slack = corpus.x_adv.amin().item(), corpus.x_adv.amax().item(), SLACK * (high - low)
    if least < low - slack or most > high + slack:
        return f"x_adv spans {least:.4g}..{most:.4g}, the box is {low:g}..{high:g}"
    if len({*zip(corpus.rows.tolist(), _contents(corpus.x_adv), strict=True)}) < len(corpus.rows):
        return "it holds an example twice"
    return _two_labels(corpus.rows, corpus.y)


def _two_labels(rows: Tensor, y: Tensor) -> str | None:
    """The first row that bears two labels, in words."""
    label: dict[int, int] = {}
    for row, cls in zip(rows.tolist(), y.tolist(), strict=True):
        if label.setdefault(row, cls) != cls:
            return f"row {row} is labelled {label[row]} and {cls}"
    return None


def _contents(x_adv: Tensor) -> list[str]:
    """A digest of each example's bytes."""
    return [hashlib.blake2b(one.tobytes(), digest_size=16).hexdigest() for one in x_adv.numpy()]


def _kept(rows: list[int], version: list[int], content: list[str], per_row: int) -> list[int]:
    """The places of what with_found() keeps, by row, version and content."""
    first: dict[tuple[int, str], int] = {}
    for place in sorted(range(len(rows)), key=lambda place: version[place]):
        first.setdefault((rows[place], content[place]), place)
    of_row: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place in sorted(first.values(), key=lambda place: content[place]):
        of_row[rows[place]][version[place]].append(place)
    kept: list[int] = []
    for of_version in of_row.values():
        newest, *others = sorted(of_version, reverse=True)
        turns = [newest, *others[-1:], *others[:-1]]
        rounds = zip_longest(*(of_version[v] for v in turns))
        kept += [place for one in rounds for place in one if place is not None][:per_row]
    return sorted(kept, key=lambda place: (rows[place], version[place], content[place]))
