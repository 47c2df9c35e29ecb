"""The report and the validation page: one self-contained HTML file each, which loads nothing."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, Template
from markupsafe import Markup

from tasks.evidence.alarms import sections
from tasks.evidence.belief import belief, causes
from tasks.evidence.charts import curve_chart
from tasks.evidence.story import Picture, Samples, Story
from tasks.metrics import Share, ThreatReport
from tasks.posture.paper import guard, png

CHANGES = 6  # features shown of a tabular sample


def render_page(story: Story, pictures: Sequence[Picture] = (), samples: Sequence[Samples] = ()) -> str:
    """The report of a run as one HTML page. Names and messages are shown as text, whatever they hold.

    pictures show what fooled the models; samples those that raised an alarm, one entry for each number that has any.
    """
    first, last = story.chapters[0].report, story.chapters[-1].report
    floors = {t.threat: story.policy.floors.get(t.threat.name, story.policy.floor) for t in last.threats}
    charts = [
        (
            str(t.threat),
            Markup(curve_chart(story.chapters, i, floors[t.threat])),
        )
        for i, t in enumerate(last.threats)
        if t.curve
    ]
    key = lambda picture: (picture.stage, picture.threat)  # noqa: E731
    galleries = [(*names, list(group)) for names, group in groupby(pictures, key=key)]
    return _render(
        "report.html.jinja",
        story=story,
        headline=headline(story),
        pairs=list(zip(first.threats, last.threats, strict=True)),
        move=_move if len(story.chapters) > 1 else lambda _, after: _move(None, after),
        belief=belief,
        figure=_figure,
        sections=sections(story, samples),
        charts=charts,
        galleries=galleries,
    )


def render_validation(result: Mapping[str, Any]) -> str:
    """The result of checking a data contract as one HTML page."""
    return _render("validation.html.jinja", **result)


def headline(story: Story) -> str:
    """The outcome of a run in one plain sentence."""
    last, outcome = story.chapters[-1], story.verdict.outcome
    worst = min(last.report.threats, key=lambda t: t.robust.value)
    number = f"Version {last.version} of {story.name}" if last.version else story.name
    share = f"{worst.robust.value:.1%} of the samples under {worst.threat}"
    fact = f"{number} ({last.stage}) withstands the attacks on {share}"
    doubt = f"number is void: {'; '.join(causes(worst))}." if causes(worst) else ""
    if outcome == "pass":
        return f"{fact}, and clears every floor of its policy."
    if outcome == "fail":
        low = worst.robust.hi < story.policy.floors.get(worst.threat.name, story.policy.floor)
        enough = "; that is not enough." if low else f", but {story.verdict.reasons[0]}."
        return f"{fact}{enough}" + (f" The {doubt}" if doubt else "")
    return f"{fact}, but that {doubt}" if doubt else f"{fact}, but that cannot decide: {story.verdict.reasons[0]}."


def _move(before: ThreatReport | Share | None, after: ThreatReport | Share) -> Markup:
    start = Markup("") if before is None else Markup('{}<span class="arrow">→</span>').format(_value(before))
    share = after.robust if isinstance(after, ThreatReport) else after
    interval = Markup('<div class="interval">[{:.1%}, {:.1%}], {} samples</div>').format(share.lo, share.hi, share.n)
    return Markup('<div class="move">{}{}</div>{}').format(start, _value(after), interval)


def _value(number: ThreatReport | Share) -> Markup:
    """Clean or robust accuracy; struck through where it is void."""
    if isinstance(number, Share):
        return Markup("{:.1%}").format(number.value)
    template = Markup('<s title="void">{:.1%}</s>' if causes(number) else "{:.1%}")
    return template.format(number.robust.value)


def _figure(picture: Picture) -> dict[str, Any]:
    """What the page shows of one sample: images, or the features that moved, or the largest where nothing fooled."""
    x, turned = picture.x.float().numpy(), picture.x_adv is not None
    x_adv = x if picture.x_adv is None else picture.x_adv.float().numpy()
    delta = x_adv - x
    shown: dict[str, Any] = {"y": picture.y, "prediction": picture.prediction, "turned": turned, "moved": ""}
    if turned:
        shown["moved"] = f"largest change {np.abs(delta).max():.3g}, length {np.linalg.norm(delta):.3g}"
    if x.ndim == 3 and x.shape[0] in (1, 3):
        span = max(float(np.abs(delta).max()), 1e-12)
        trio = (("clean", x), ("adversarial", x_adv), ("difference", 0.5 + delta / (2 * span)))
        return shown | {"images": [(caption, png(array)) for caption, array in trio[: 3 if turned else 1]]}
    order = np.argsort(-np.abs(delta if turned else x).ravel(), kind="stable")[:CHANGES]
    rows = [(f"feature {i}", f"{x.ravel()[i]:.3f}", f"{x_adv.ravel()[i]:.3f}") for i in order]
    return shown | {"changes": rows}


def _render(name: str, **values: Any) -> str:
    style = _read("style.css")
    return template(name).render(**values, style=Markup(style), guard=guard(style))


def template(name: str) -> Template:
    """A page's template, compiled once in a process: that takes longer than filling it in."""
    return _templates().get_template(name)


@cache
def _templates() -> Environment:
    return Environment(loader=FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _read(name: str) -> str:
    return files("tasks.evidence").joinpath(name).read_text(encoding="utf-8")
