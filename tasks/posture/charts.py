"""Robust accuracy over the versions: one chart for each threat model of a comparable group."""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tasks.posture.history import Group
from tasks.posture.ink import COLOURS, INK, inked, to_svg
from tasks.posture.record import ThreatRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 470, 254  # points, as all lengths here
LEFT, RIGHT, TOP, BOTTOM = 48, 42, 24, 42
ACROSS, TALL = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
TEXT, SMALL = 12, 11
FEW = 40  # versions up to which marks are large
APART = 28  # between two words, lest they run into each other
TICKS = 8  # steps between the versions that are named, at most
GAP = math.nan

Numbers = dict[int, ThreatRecord]


def version_chart(group: Group, place: int, versions: Sequence[int], *, champion: int | None = None) -> str:
    """Robust accuracy of one group under the threat model at that place, as inline SVG. No text of a user's is in it.

    versions ascending, one at least. The line breaks where a version was not measured and where its number is void; a
    void number is a hollow mark, and has neither line nor band. Each mark tells its number to who points at it.
    """
    from matplotlib.figure import Figure

    found = {version: number for version, number in zip(versions, group.series(place, versions), strict=True) if number}
    sound = _of(found, sound=True)
    colour = COLOURS[place % len(COLOURS)]
    with inked():
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = _axes(figure, versions)
        if champion is not None and champion in versions:
            _champion(axes, champion)
        _floor(axes, found, versions)
        _interval(axes, sound, versions, colour)
        _line(axes, sound, versions, colour)
        _void(axes, found, versions)
        svg = to_svg(figure, f"chart-{group.key}-{place}-")
    return _told(_told(svg, "sound", sound), "void", _of(found, sound=False))


def _of(numbers: Numbers, *, sound: bool) -> Numbers:
    return {version: number for version, number in numbers.items() if number.sound == sound}


def _axes(figure: "Figure", versions: Sequence[int]) -> "Axes":
    """An empty chart with its grid and its ticks. Every place is set here: finding one by measuring costs time."""
    first, last = versions[0], versions[-1]
    where = (LEFT / WIDTH, BOTTOM / HEIGHT, ACROSS / WIDTH, TALL / HEIGHT)
    axes = figure.add_axes(where, frameon=False, xlim=(first - 0.5, last + 0.5), ylim=(0, 1))
    axes.tick_params(labelsize=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=INK, alpha=0.15, clip_on=False)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0%", "25%", "50%", "75%", "100%"])
    step = _step(last - first)
    named = range(-(-first // step) * step, last + 1, step)
    axes.set_xticks(named, labels=[str(version) for version in named])
    axes.set_xlabel("version", fontsize=TEXT)
    axes.xaxis.set_label_coords(0.5, -25 / TALL)
    return axes


def _step(span: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that divides the span into no more parts than are named."""
    steps: list[int] = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return next(step for step in steps if span <= TICKS * step)


def _champion(axes: "Axes", version: int) -> None:
    axes.axvline(version, color=INK, linestyle=(0, (1.5, 3)), linewidth=1, alpha=0.7, clip_on=False, gid="champion")
    axes.text(version, 1 + 7 / TALL, "champion", ha="center", fontsize=TEXT)


def _floor(axes: "Axes", found: Numbers, versions: Sequence[int]) -> None:
    """The policy's floor as a dashed line with a step where it moved, its newest height in words."""
    if not found:
        return
    heights, edges = [], []
    for height, stretch in groupby(found, key=lambda version: found[version].floor):
        heights.append(height)
        edges.append(next(stretch) - 0.5)
    edges = [versions[0] - 0.5, *edges[1:], versions[-1] + 0.5]
    dashes: dict[str, Any] = {"linestyle": (0, (5, 3)), "linewidth": 1, "alpha": 0.65}
    axes.stairs(heights, edges, baseline=None, color=INK, clip_on=False, gid="floor", **dashes)
    x, y = edges[-1] + 5 * _point(versions), min(max(heights[-1], 0.1), 0.9)
    axes.text(x, y + 3 / TALL, "floor", fontsize=SMALL)
    axes.text(x, y - 11 / TALL, f"{heights[-1]:.0%}", fontsize=SMALL)


def _interval(axes: "Axes", sound: Numbers, versions: Sequence[int], colour: str) -> None:
    """The band of the intervals; of a version that stands alone, a bar."""
    runs = [list(run) for held, run in groupby(versions, key=sound.__contains__) if held]
    alone = [run[0] for run in runs if len(run) == 1]
    others = {version: number for version, number in sound.items() if version not in alone}
    shape: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "alpha": 0.2}
    axes.fill_between(versions, *_ends(others, versions), clip_on=False, gid="band", **shape)
    if alone:
        shape = {"color": colour, "alpha": 0.25, "linewidth": min(6, ACROSS / len(versions))}
        axes.vlines(alone, *_ends(sound, alone), clip_on=False, gid="alone", **shape)


def _ends(numbers: Numbers, versions: Sequence[int]) -> tuple[list[float], list[float]]:
    """The lower and the upper end for each of the versions."""
    shares = [numbers[version].robust if version in numbers else None for version in versions]
    return [share.lo if share else GAP for share in shares], [share.hi if share else GAP for share in shares]


def _line(axes: "Axes", sound: Numbers, versions: Sequence[int], colour: str) -> None:
    values = [sound[version].robust.value if version in sound else GAP for version in versions]
    shape: dict[str, Any] = {"linewidth": 1.6, "markersize": _size(versions), "markeredgewidth": 0}
    axes.plot(versions, values, "o-", color=colour, clip_on=False, gid="sound", **shape)


def _void(axes: "Axes", found: Numbers, versions: Sequence[int]) -> None:
    """Hollow marks, and the word beside them, above all numbers near it or below them."""
    void = _of(found, sound=False)
    values = [number.robust.value for number in void.values()]
    shape: dict[str, Any] = {"markersize": _size(versions) + 3, "markeredgewidth": 1.5, "markerfacecolor": "none"}
    axes.plot(list(void), values, "o", color=INK, clip_on=False, gid="void", **shape)
    named, apart = -math.inf, APART * _point(versions)
    for version in void:
        if version - named >= apart:
            near = [number.robust.value for other, number in found.items() if abs(other - version) <= apart / 2]
            y = max(near) + 8 / TALL if max(near) < 0.9 else min(near) - 16 / TALL  # where no number is hidden
            axes.text(version, y, "void", ha="center", fontsize=SMALL)
            named = version


def _size(versions: Sequence[int]) -> float:
    """The diameter of a mark."""
    return 7 if len(versions) <= FEW else 2.4


def _point(versions: Sequence[int]) -> float:
    """How many versions are as wide as a point."""
    return (versions[-1] - versions[0] + 1) / ACROSS


def _told(svg: str, marks: str, numbers: Numbers) -> str:
    """The SVG, each mark of that group with its number in words, which matplotlib has no way to give it."""
    before, group, after = svg.partition(f'-{marks}">')
    words = iter([_words(version, number) for version, number in numbers.items()])
    titled = lambda use: f"{use[1]}><title>{word}</title></use>" if (word := next(words, "")) else use[0]  # noqa: E731
    return before + group + re.sub(r"(<use[^>]*)/>", titled, after)


def _words(version: int, number: ThreatRecord) -> str:
    share = number.robust
    void = "" if number.sound else ", void"
    return f"version {version}: {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]{void}"
