"""The page's part on soundness, as values: each number's signs, and the samples that raised an alarm."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from tasks.evidence.belief import MEANINGS, TITLES, Belief, belief, cost, explain, fired
from tasks.evidence.story import Picture, Samples, Story
from tasks.metrics import Sign, Soundness, ThreatReport


@dataclass(frozen=True)
class ShownSign:
    """A sign with the anchors of its samples. Only a sign that fired has a meaning, links and further rows."""

    sign: Sign
    badge: str
    meaning: str = ""
    links: tuple[tuple[int, str], ...] = ()  # row, anchor
    further: tuple[int, ...] = ()  # rows without a picture


@dataclass(frozen=True)
class Section:
    """All that is said of one number."""

    anchor: str
    stage: str
    split: str
    report: ThreatReport
    belief: Belief
    sentence: str
    cost: str
    groups: tuple[tuple[str, tuple[ShownSign, ...]], ...]  # title, its signs
    figures: tuple[tuple[str, int, Picture, tuple[str, ...]], ...]  # anchor, row, picture, names of the signs

    @property
    def shown(self) -> tuple[ShownSign, ...]:
        """Every sign, in the groups' order."""
        return tuple(chain.from_iterable(signs for _, signs in self.groups))


def sections(story: Story, samples: Sequence[Samples] = ()) -> list[Section]:
    """One section for each chapter and threat model, in order. No two share an anchor, whatever the stages' names."""
    known = {(part.stage, part.threat): part for part in samples}
    made: list[Section] = []
    for chapter in story.chapters:
        for report in chapter.report.threats:
            base, taken = f"{_slug(chapter.stage)}-{_slug(report.threat.name)}", {section.anchor for section in made}
            name = next(n for n in chain([base], (f"{base}-again-{i}" for i in range(len(made)))) if n not in taken)
            part = known.get((chapter.stage, report.threat.name))
            made.append(_section(name, chapter.stage, chapter.report.split, report, part))
    return made


def to_picture(soundness: Soundness | None, limit: int) -> list[int]:
    """Places of the samples to show, at most `limit`: some of every sign that fired, unanswered ones first."""
    signs = [sign for sign in soundness.signs if fired(sign)] if soundness else []
    signs.sort(key=lambda sign: sign.state != "alarm")
    turns = chain.from_iterable(zip_longest(*(sign.samples for sign in signs)))
    return list(dict.fromkeys(place for place in turns if place is not None))[:limit]


def _section(name: str, stage: str, split: str, report: ThreatReport, samples: Samples | None) -> Section:
    signs = report.soundness.signs if report.soundness else ()
    rows = samples.rows if samples else range(report.robust.n)
    raised = {place for sign in signs if fired(sign) for place in sign.samples}
    pictures = {p: picture for p, picture in sorted(samples.pictures.items()) if p in raised} if samples else {}
    anchors = {place: f"sample-{name}-{rows[place]}" for place in pictures}
    figures = [
        (anchors[place], rows[place], picture, tuple(s.name for s in signs if fired(s) and place in s.samples))
        for place, picture in pictures.items()
    ]
    shown = [(sign.kind, _shown(sign, rows, anchors)) for sign in signs]
    groups = [(title, tuple(s for k, s in shown if k == kind)) for kind, title in TITLES.items()]
    return Section(
        anchor=name,
        stage=stage,
        split=split if samples else "",
        report=report,
        belief=belief(report),
        sentence=explain(report),
        cost=cost(report.soundness) if report.soundness else "",
        groups=tuple(group for group in groups if group[1]),
        figures=tuple(figures),
    )


def _shown(sign: Sign, rows: Sequence[int], anchors: Mapping[int, str]) -> ShownSign:
    if not fired(sign):
        return ShownSign(sign=sign, badge=sign.state)
    return ShownSign(
        sign=sign,
        badge="answered" if sign.answered else sign.state,
        meaning=MEANINGS[sign.kind],
        links=tuple((rows[place], anchors[place]) for place in sign.samples if place in anchors),
        further=tuple(rows[place] for place in sign.samples if place not in anchors),
    )


def _slug(name: str) -> str:
    """Letters, digits and what else an address may hold bare; so linf_0.1 and linf_0.01 stay apart."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-") or "unnamed"
