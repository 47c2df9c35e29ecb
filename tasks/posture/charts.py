"""Robust accuracy over the versions: one chart for each threat model of a comparable group."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tasks.posture.history import Group
from tasks.posture.ink import COLOURS, INK, inked, to_svg
from tasks.posture.record import ThreatRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 460, 250  # points, as all lengths here
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 24, 38
ACROSS, TALL = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
TEXT, SMALL = 12, 11
FEW = 40  # versions up to which marks are large
APART = 28  # between two words, lest they run into each other
TICKS = 8  # steps between the versions that are named, at most
GAP = float("nan")


def version_chart(group: Group, place: int, versions: Sequence[int], *, champion: int | None = None) -> str:
    """Robust accuracy of one group under the threat model at that place, as inline SVG. No text of a user's is in it.

    versions ascending, one at least. The line breaks where a version was not measured and where its number is void; a
    void number is a hollow mark, and has neither line nor band. Each mark tells its number to who points at it.
    """
    numbers = group.series(place, versions)
    found = {version: number for version, number in zip(versions, numbers, strict=True) if number}
    sound = {version: number for version, number in found.items() if number.sound}
    void = {version: number for version, number in found.items() if not number.sound}
    with inked():
        axes = _axes(versions)
        if champion in versions:
            _champion(axes, champion, versions)
        _floor(axes, found, versions)
        _interval(axes, sound, versions, COLOURS[place % len(COLOURS)])
        _marks(axes, sound, void, versions, COLOURS[place % len(COLOURS)])
        svg = to_svg(axes.figure, f"chart-{group.key}-{place}-")
    return _told(_told(svg, "sound", sound), "void", void)


def _axes(versions: Sequence[int]) -> "Axes":
    """An empty chart with its grid and its ticks. Every place is set here: finding one by measuring costs time."""
    from matplotlib.figure import Figure

    first, last = versions[0], versions[-1]
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    where = (LEFT / WIDTH, BOTTOM / HEIGHT, ACROSS / WIDTH, TALL / HEIGHT)
    axes = figure.add_axes(where, frameon=False, xlim=(first - 0.5, last + 0.5), ylim=(0, 1))
    step = _step(last - first)
    named = range(-(-first // step) * step, last + 1, step)
    axes.set_xticks(named, labels=[str(version) for version in named])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0%", "25%", "50%", "75%", "100%"])
    axes.tick_params(labelsize=TEXT, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=INK, alpha=0.15, clip_on=False)
    axes.set_xlabel("version", fontsize=TEXT)
    axes.xaxis.set_label_coords(0.5, -20 / TALL)
    return axes


def _step(span: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that divides the span into no more parts than are named."""
    steps: list[int] = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return next(step for step in steps if span <= TICKS * step)


def _champion(axes: "Axes", version: int, versions: Sequence[int]) -> None:
    axes.axvline(version, color=INK, linestyle=(0, (1.5, 3)), linewidth=1, alpha=0.7, clip_on=False, gid="champion")
    x = (version - versions[0] + 0.5) / (versions[-1] - versions[0] + 1) * ACROSS
    side = "right" if x > ACROSS - 28 else "left" if x < 30 else "center"
    axes.text(version, 1 + 7 / TALL, "champion", ha=side, fontsize=TEXT)


def _floor(axes: "Axes", found: dict[int, ThreatRecord], versions: Sequence[int]) -> None:
    """The policy's floor as a dashed line with a step where it moved, its newest height in words."""
    if not found:
        return
    heights, edges = [], []
    for height, stretch in groupby(found, key=lambda version: found[version].floor):
        heights.append(height)
        edges.append(next(stretch) - 0.5)
    edges = [versions[0] - 0.5, *edges[1:], versions[-1] + 0.5]
    dashes = {"linestyle": (0, (5, 3)), "linewidth": 1, "alpha": 0.65}
    axes.stairs(heights, edges, baseline=None, color=INK, clip_on=False, gid="floor", **dashes)
    _note(axes, edges[-1], heights[-1], f"floor {heights[-1]:.0%}", away=4, ha="right")


def _interval(axes: "Axes", sound: dict[int, ThreatRecord], versions: Sequence[int], colour: str) -> None:
    """The band of the intervals; of a version that stands alone, a bar."""
    lo = [sound[version].robust.lo if version in sound else GAP for version in versions]
    hi = [sound[version].robust.hi if version in sound else GAP for version in versions]
    axes.fill_between(versions, lo, hi, color=colour, alpha=0.2, linewidth=0, clip_on=False, gid="band")
    runs = [list(run) for held, run in groupby(range(len(versions)), key=lambda i: versions[i] in sound) if held]
    alone = [run[0] for run in runs if len(run) == 1]
    if alone:
        x, bottom, top = ([values[i] for i in alone] for values in (versions, lo, hi))
        wide = min(6, ACROSS / len(versions))
        axes.vlines(x, bottom, top, color=colour, alpha=0.25, linewidth=wide, clip_on=False, gid="alone")


def _marks(
    axes: "Axes", sound: dict[int, ThreatRecord], void: dict[int, ThreatRecord], versions: Sequence[int], colour: str
) -> None:
    """The line with its marks, and the hollow marks beside it."""
    size = 7.0 if len(versions) <= FEW else 2.4
    line = [sound[version].robust.value if version in sound else GAP for version in versions]
    shape = {"marker": "o", "clip_on": False}
    axes.plot(versions, line, color=colour, linewidth=1.6, markersize=size, markeredgewidth=0, gid="sound", **shape)
    heights = [number.robust.value for number in void.values()]
    hollow = {"linestyle": "none", "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.5}
    axes.plot(list(void), heights, markersize=size + 3, gid="void", **shape, **hollow)
    apart, named = APART * (versions[-1] - versions[0] + 1) / ACROSS, -APART * 1.0
    for version, number in void.items():
        if version - named >= apart:
            _note(axes, version, number.robust.value, "void", away=8, ha="center")
            named = version


def _note(axes: "Axes", x: float, share: float, says: str, *, away: float, ha: str) -> None:
    """Small words that far above a share, or below it where they would leave the grid."""
    above = share * TALL + away + SMALL <= TALL
    y = share + (away if above else -away) / TALL
    axes.text(x, y, says, ha=ha, va="baseline" if above else "top", fontsize=SMALL)


def _told(svg: str, marks: str, numbers: dict[int, ThreatRecord]) -> str:
    """The SVG in which each mark of that group has its number in words, which matplotlib cannot give it."""
    before, name, after = svg.partition(f'-{marks}">')
    said = iter(
        [
            f"version {version}: {number.robust.value:.1%} [{number.robust.lo:.1%}, {number.robust.hi:.1%}]"
            + ("" if number.sound else ", void")
            for version, number in numbers.items()
        ]
    )
    titled = lambda use: f"<use{use[1]}><title>{next(said)}</title></use>"  # noqa: E731
    return before + name + re.sub(r"<use([^>]*)/>", titled, after, count=len(numbers))
