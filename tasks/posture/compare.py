"""Two versions side by side as an HTML page, with pictures of what was lost and gained between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks.posture.paired import Comparison, Measured, Question, Tally, chance, compare
from tasks.posture.paper import png, render

__all__ = [
    "Comparison",
    "Measured",
    "Picture",
    "Question",
    "Tally",
    "compare",
    "compare_page",
    "pictures",
]

CHANGES = 6  # features shown of a tabular sample
Examples = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Picture:
    """One sample and what fooled one of the two versions, each of the shape of one sample.

    kind: regressed, where it fooled the later version only; repaired, where it fooled the earlier one only.
    """

    threat: str  # its name, as a question bears it
    kind: Literal["regressed", "repaired"]
    row: int
    x: np.ndarray | None  # as it is; None in examples that were stored without it
    x_adv: np.ndarray
    y: int | None
    prediction: int  # the class of x_adv


def pictures(
    comparison: Comparison, a_examples: Examples, b_examples: Examples, *, limit: int = 12
) -> tuple[Picture, ...]:
    """Of samples that regressed what fooled the later version, of repaired ones what had fooled the earlier one.

    a_examples and b_examples hold the earlier and the later version's examples under each threat model's name: rows
    [F], x_adv [F, ...], prediction [F], and x [F, ...] and y [F] where they were stored. At most `limit` of each kind
    under each threat model, the first by row. A sample that is wrong as it is has no example, so it has no picture.
    """
    return tuple(
        picture
        for question in comparison.questions
        if question.threat
        for kind, rows, examples in (
            ("regressed", question.regressed, b_examples),
            ("repaired", question.repaired, a_examples),
        )
        for picture in _of(question.threat, kind, rows, examples.get(question.threat, {}), limit)
    )


def _of(threat: str, kind: Any, rows: Sequence[int], stored: Mapping[str, np.ndarray], limit: int) -> Iterator[Picture]:
    """The pictures of the first of these rows that have an example."""
    if not rows or "rows" not in stored:
        return
    places = {int(row): place for place, row in enumerate(stored["rows"])}
    arrays = {name: stored[name] for name in ("x", "x_adv", "y", "prediction") if name in stored}  # read each once
    for row in [row for row in rows if row in places][:limit]:
        of = {name: array[places[row]] for name, array in arrays.items()}
        y = int(of["y"]) if "y" in of else None
        yield Picture(threat, kind, row, of.get("x"), of["x_adv"], y, int(of["prediction"]))


def compare_page(comparison: Comparison, shown: Sequence[Picture] = ()) -> str:
    """The comparison as one self-contained HTML page, which loads nothing."""
    return render(
        "compare.html.jinja",
        found=comparison,
        alpha=1 - comparison.confidence,
        galleries=[gallery for question in comparison.questions for gallery in _galleries(question, shown)],
        headline=headline(comparison),
        chance=chance,
        figure=_figure,
    )


def headline(comparison: Comparison) -> str:
    """What the comparison comes to in one sentence."""
    before, after = comparison.names
    named: dict[str, list[str]] = {}
    for question in comparison.questions:
        named.setdefault(question.outcome, []).append(question.label)
    says = {
        "lower": "is lower than {} beyond chance: {}",
        "void": "cannot be held against {} where a number is void: {}",
        "higher": "is higher than {} beyond chance: {}",
        "within chance": "differs from {} within chance: {}",
    }
    told = [text.format(before, ", ".join(named[outcome])) for outcome, text in says.items() if outcome in named]
    return f"{after[:1].upper()}{after[1:]} {'; it '.join(told)}."


def _galleries(question: Question, shown: Sequence[Picture]) -> Iterator[dict[str, Any]]:
    """The pictures under one threat model, the lost ones first, with how many samples there are in all."""
    for kind, rows in (("regressed", question.regressed), ("repaired", question.repaired)):
        found = [picture for picture in shown if (picture.threat, picture.kind) == (question.threat, kind)]
        if found:
            yield {"label": question.label, "kind": kind, "pictures": found, "all": len(rows)}


def _figure(picture: Picture) -> dict[str, Any]:
    """What the page shows of one sample: images, or the features that moved most; without x, x_adv alone."""
    x_adv = np.asarray(picture.x_adv, dtype=float)
    x = None if picture.x is None else np.asarray(picture.x, dtype=float)
    delta = None if x is None else x_adv - x
    moved = f"largest change {np.abs(delta).max():.3g}, length {np.linalg.norm(delta):.3g}" if delta is not None else ""
    if x_adv.ndim == 3 and x_adv.shape[0] in (1, 3):
        images = [("adversarial", x_adv)]
        if x is not None and delta is not None:
            span = max(float(np.abs(delta).max()), 1e-12)
            images = [("clean", x), ("adversarial", x_adv), ("difference", 0.5 + delta / (2 * span))]
        return {"moved": moved, "images": [(caption, png(array)) for caption, array in images]}
    order = np.argsort(-np.abs(x_adv if delta is None else delta).ravel(), kind="stable")[:CHANGES]
    was = ["" if x is None else f"{x.ravel()[i]:.3f}" for i in order]
    changes = [(f"feature {i}", old, f"{x_adv.ravel()[i]:.3f}") for i, old in zip(order, was, strict=True)]
    return {"moved": moved, "changes": changes}
