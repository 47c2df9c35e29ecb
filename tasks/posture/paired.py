"""compare(): two measured versions on the same samples, question by question: what was lost, what was gained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from tasks.errors import EvidenceBroken, WrongInput
from tasks.posture.changes import CLEAN, measured_at, subject
from tasks.posture.mending import again, alike
from tasks.posture.record import Record
from tasks.statistics import Share, holm, mcnemar, paired_loss

Table = Mapping[str, np.ndarray]
Outcome = Literal["lower", "higher", "within chance", "void"]


@dataclass(frozen=True)
class Measured:
    """A record and, under each threat model's name, the table of its N samples, by column.

    row int [N]: each one's place in the split; clean_correct and fooled bool [N]; y int [N], absent in old tables;
    fooled_by and prediction are not asked for.
    """

    record: Record
    outcomes: Mapping[str, Table]


class Tally(BaseModel, frozen=True, extra="forbid"):
    """The samples of one class that only one of the two versions withstood. p is McNemar's, corrected by Holm."""

    cls: int
    n: int = Field(ge=1)
    lost: int = Field(ge=0)
    gained: int = Field(ge=0)
    p: float = Field(ge=0, le=1)


class Question(BaseModel, frozen=True, extra="forbid"):
    """One number of both versions, paired sample by sample. Void where either may not be believed."""

    threat: str = Field(description="the threat model's name; empty for clean accuracy")
    label: str
    before: Share
    after: Share
    regressed: tuple[int, ...] = Field(description="rows of the split that only the earlier one withstood")
    repaired: tuple[int, ...] = Field(description="rows that only the later one withstood")
    loss: float = Field(description="share lost less share gained, -1..1")
    loss_lo: float = Field(description="of its two-sided interval, at the confidence of the comparison")
    loss_hi: float
    p_alone: float = Field(ge=0, le=1, description="exact, two-sided, of McNemar's test")
    p: float = Field(ge=0, le=1, description="corrected for the number of questions by Holm's method")
    outcome: Outcome
    says: str = Field("", description="the outcome in a sentence")
    classes: tuple[Tally, ...] | None = Field(description="by class; None where a table does not tell the classes")


class Comparison(BaseModel, frozen=True, extra="forbid"):
    """Two measurements that may be compared, held against each other: clean accuracy first, then each threat model."""

    before: Record
    after: Record
    confidence: float = Field(gt=0, lt=1, description="of the intervals; p is held against what it leaves")
    questions: tuple[Question, ...] = Field(min_length=1)
    notes: tuple[str, ...] = Field(description="what differs and may matter, a sentence each")

    @property
    def names(self) -> tuple[str, str]:
        """How the two are called in a sentence: version 3, or with the model's name where that differs."""
        one = self.before.name == self.after.name
        pair = [f"version {r.version}" if one else f"{r.name} version {r.version}" for r in (self.before, self.after)]
        return pair[0], pair[1]


def compare(before: Measured, after: Measured) -> Comparison:
    """The later measurement against the earlier one, on the same samples.

    Raises WrongInput where the two are not of the same samples, threat models and suite, with the command that mends
    it; EvidenceBroken where a table does not hold what its record says.
    """
    old, new = before.record, after.record
    difference = old.differs_from(new)
    if difference:
        raise WrongInput(
            f"{_named(old)} and {_named(new)} cannot be compared: they were not measured with the same {difference}. "
            f"Measure both alike: {_alike(old, new)}"
        )
    confidence = max(old.confidence, new.confidence)
    pairs = [
        (_checked(before, place), _checked(after, place), threat.name, threat.label)
        for place, threat in enumerate(new.threats)
    ]
    for mine, theirs, name, _ in pairs:
        _same_samples(mine, theirs, old, new, name)
    sound = [a.sound and b.sound for a, b in zip(old.threats, new.threats, strict=True)]
    first = pairs[0]
    found = [_question(old.clean, new.clean, first[0], first[1], "clean_correct", "", CLEAN, confidence)]
    for (mine, theirs, name, label), a, b in zip(pairs, old.threats, new.threats, strict=True):
        found.append(_question(a.robust, b.robust, mine, theirs, "held", name, label, confidence))
    questions = _judged(found, [True, *sound], confidence)
    return Comparison(before=old, after=new, confidence=confidence, questions=questions, notes=_notes(old, new))


def _checked(measured: Measured, place: int) -> dict[str, np.ndarray]:
    """The table under the threat model at that place, by ascending row, with held bool [N] in it."""
    record, threat = measured.record, measured.record.threats[place]
    table = measured.outcomes.get(threat.name)
    what = f"the outcomes of {_named(record)} under {threat.label}"
    if table is None:
        raise WrongInput(f"{what} are not stored. Measure it again: {again(record)}")
    missing = {"row", "clean_correct", "fooled"} - set(table)
    if missing or len({len(table[name]) for name in table}) != 1:
        raise EvidenceBroken(f"{what} are no table: {', '.join(sorted(missing)) or 'columns'} missing or cut short.")
    order = np.argsort(table["row"], kind="stable")
    columns = {
        name: np.asarray(table[name])[order] for name in ("row", "clean_correct", "fooled", "y") if name in table
    }
    columns["clean_correct"] = columns["clean_correct"].astype(bool)
    columns["held"] = columns["clean_correct"] & ~columns["fooled"].astype(bool)
    counts = {"samples": len(order), "different rows": len(np.unique(columns["row"]))}
    counts |= {"withstood": int(columns["held"].sum())}
    said = {"samples": record.samples, "different rows": record.samples, "withstood": _count(threat.robust)}
    if place == 0:  # where clean accuracy was counted; a model that answers at random is right on others elsewhere
        counts |= {"right as they are": int(columns["clean_correct"].sum())}
        said |= {"right as they are": _count(record.clean)}
    for fact, count in counts.items():
        if count != said[fact]:
            raise EvidenceBroken(f"{what} do not match its record: {fact} {count}, the record says {said[fact]}.")
    return columns


def _count(share: Share) -> int:
    return round(share.value * share.n)


def _same_samples(mine: Table, theirs: Table, old: Record, new: Record, name: str) -> None:
    """Raises WrongInput or EvidenceBroken unless both tables are of the same rows and of the same classes."""
    if not np.array_equal(mine["row"], theirs["row"]):
        raise WrongInput(
            f"{_named(old)} and {_named(new)} cannot be compared: they were not measured on the same rows of "
            f"{new.split}. Measure both alike: {_alike(old, new)}"
        )
    if "y" in mine and "y" in theirs and not np.array_equal(mine["y"], theirs["y"]):
        raise EvidenceBroken(f"under {name} {_named(old)} and {_named(new)} name other classes for the same rows.")


def _question(
    before: Share, after: Share, mine: Table, theirs: Table, column: str, name: str, label: str, confidence: float
) -> Question:
    """One number of both, before it is corrected for the number of questions."""
    was, now, rows = mine[column], theirs[column], mine["row"]
    lost, gained = was & ~now, now & ~was
    counts = int(lost.sum()), int(gained.sum())
    two_sided = 0.5 + confidence / 2
    loss, highest = paired_loss(*counts, len(rows), confidence=two_sided)
    _, lowest = paired_loss(counts[1], counts[0], len(rows), confidence=two_sided)
    y = theirs.get("y", mine.get("y"))
    p = mcnemar(*counts)
    return Question(
        threat=name,
        label=label,
        before=before,
        after=after,
        regressed=tuple(map(int, rows[lost])),
        repaired=tuple(map(int, rows[gained])),
        loss=loss,
        loss_lo=-lowest,
        loss_hi=highest,
        p_alone=p,
        p=p,
        outcome="within chance",
        classes=None if y is None else _by_class(y, lost, gained),
    )


def _by_class(y: np.ndarray, lost: np.ndarray, gained: np.ndarray) -> tuple[Tally, ...]:
    """y int [N], lost and gained bool [N] -> each class's counts, p corrected for the number of classes."""
    of = [(int(c), y == c) for c in np.unique(y)]
    counts = [(cls, int(mask.sum()), int(lost[mask].sum()), int(gained[mask].sum())) for cls, mask in of]
    adjusted = holm([mcnemar(a, b) for _, _, a, b in counts])
    return tuple(Tally(cls=c, n=n, lost=a, gained=b, p=p) for (c, n, a, b), p in zip(counts, adjusted, strict=True))


def chance(p: float) -> str:
    """A p for people; what is too small for a float is no zero."""
    return f"{p:.2g}" if p else "below 1e-300"


def _judged(found: Sequence[Question], sound: Sequence[bool], confidence: float) -> tuple[Question, ...]:
    """With p corrected for the number of questions, and what follows from it."""
    judged = []
    for question, p, believed in zip(found, holm([question.p_alone for question in found]), sound, strict=True):
        moved: Outcome = "lower" if question.loss > 0 else "higher"
        outcome: Outcome = "within chance" if p > 1 - confidence else moved
        judged.append(question.model_copy(update={"p": p, "outcome": outcome if believed else "void"}))
    return tuple(question.model_copy(update={"says": _says(question, confidence)}) for question in judged)


def _says(question: Question, confidence: float) -> str:
    outcome = {
        "lower": "is lower, beyond chance",
        "higher": "is higher, beyond chance",
        "within chance": f"differs within chance (at {confidence:.0%})",
        "void": "cannot be compared, since one of its numbers is void",
    }[question.outcome]
    lost, gained = len(question.regressed), len(question.repaired)
    return (
        f"{subject(question.label)} {outcome}: of {question.after.n} samples {lost} regressed and {gained} were "
        f"repaired; loss {question.loss:+.1%} [{question.loss_lo:+.1%}, {question.loss_hi:+.1%}], McNemar's p "
        f"{chance(question.p)}."
    )


def _notes(old: Record, new: Record) -> tuple[str, ...]:
    """What differs beside the facts that must be equal."""
    notes = []
    if old.weights_digest == new.weights_digest:
        notes.append("The weights are the same: whatever differs comes from the measuring, not from the model.")
    if old.code != new.code:
        notes.append(f"Redoubt's own code differs ({old.code[:12]}, then {new.code[:12]}), which may matter.")
    for package in sorted({*old.environment, *new.environment}):
        versions = [record.environment.get(package, "unknown") for record in (old, new)]
        if versions[0] != versions[1]:
            notes.append(f"{package} differs ({versions[0]}, then {versions[1]}), which may matter.")
    if old.confidence != new.confidence:
        notes.append(f"The records' intervals are of {old.confidence:.0%} and of {new.confidence:.0%} confidence.")
    if measured_at(new) < measured_at(old):
        notes.append(
            f"Version {new.version}, which is called the later here, was measured before version {old.version}."
        )
    return tuple(notes)


def _named(record: Record) -> str:
    return f"version {record.version} of {record.name!r}"


def _alike(old: Record, new: Record) -> str:
    return alike(*sorted((old, new), key=measured_at))
