"""Robust accuracy over the versions, as SVG that reads on light and on dark paper.

Drawn by hand: a plotting library takes longer to start than the whole page may take.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from tasks.posture.history import Group
from tasks.posture.record import ThreatRecord
from tasks.statistics import Share

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f")  # Okabe and Ito: told apart by everybody
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 24, 38
FEW = 40  # versions up to which marks are large
APART = 28.0  # between two words, lest they run into each other
TICKS = 8  # versions that are named, at most

Point = tuple[int, ThreatRecord]


def version_chart(group: Group, place: int, versions: Sequence[int], *, champion: int | None = None) -> str:
    """Robust accuracy of one group under the threat model at that place, as inline SVG. No text of a user's is in it.

    versions ascending, one at least. The line breaks where a version was not measured and where its number is void; a
    void number is a hollow mark, and has neither line nor band.
    """
    numbers = group.series(place, versions)
    scale = _Scale(versions[0], versions[-1])
    runs = list(_runs(versions, numbers))
    found = [(version, number) for version, number in zip(versions, numbers, strict=True) if number]
    size = 3.5 if len(versions) <= FEW else 1.2
    parts = [*_grid(scale, versions), *_champion(scale, champion if champion in versions else None)]
    parts += _floor(scale, found)
    parts.append(f'<g style="color:{COLOURS[place % len(COLOURS)]}">')
    parts += [part for run in runs for part in _band(scale, run)]
    parts += [part for run in runs for part in _line(scale, run, size)]
    parts += ["</g>", *_void(scale, found, size)]
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="versions">\n{body}\n</svg>'


class _Scale:
    """Where a version and a share stand on the paper."""

    def __init__(self, first: int, last: int):
        self.first, self.span = first - 0.5, last - first + 1

    def x(self, version: float) -> float:
        return round(LEFT + (version - self.first) / self.span * (WIDTH - LEFT - RIGHT), 1)

    def y(self, share: float) -> float:
        return round(TOP + (1 - share) * (HEIGHT - TOP - BOTTOM), 1)


def _runs(versions: Sequence[int], numbers: Sequence[ThreatRecord | None]) -> Iterator[list[Point]]:
    """The stretches of versions that follow one another with numbers that may be believed."""
    for holds, stretch in groupby(
        zip(versions, numbers, strict=True), key=lambda pair: pair[1] is not None and pair[1].sound
    ):
        if holds:
            yield [(version, number) for version, number in stretch if number]


def _grid(scale: _Scale, versions: Sequence[int]) -> Iterator[str]:
    for quarter in range(5):
        y = scale.y(quarter / 4)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{quarter * 25}%</text>'
    step = _step(versions[-1] - versions[0])
    for version in versions:
        if version % step == 0 or len(versions) == 1:
            x, y = scale.x(version), scale.y(0)
            yield f'<line class="tick" x1="{x}" x2="{x}" y1="{y}" y2="{y + 4}"/>'
            yield f'<text x="{x}" y="{y + 17}" text-anchor="middle">{version}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">version</text>'


def _step(span: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that divides the span into no more parts than are named."""
    steps: list[int] = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return next(step for step in steps if span <= TICKS * step)


def _champion(scale: _Scale, version: int | None) -> Iterator[str]:
    if version is not None:
        x = scale.x(version)
        side = "end" if x > WIDTH - 40 else "start" if x < LEFT + 30 else "middle"
        yield f'<line class="champion" x1="{x}" x2="{x}" y1="{TOP}" y2="{scale.y(0)}"/>'
        yield f'<text x="{x}" y="{TOP - 7}" text-anchor="{side}">champion</text>'


def _band(scale: _Scale, run: Sequence[Point]) -> Iterator[str]:
    """The interval; of a version that stands alone, a bar."""
    if len(run) == 1:
        version, number = run[0]
        x, lo, hi = scale.x(version), scale.y(number.robust.lo), scale.y(number.robust.hi)
        yield f'<line class="bar" x1="{x}" x2="{x}" y1="{lo}" y2="{hi}"/>'
        return
    above = [f"{scale.x(version)},{scale.y(number.robust.hi)}" for version, number in run]
    below = [f"{scale.x(version)},{scale.y(number.robust.lo)}" for version, number in reversed(run)]
    yield f'<polygon class="band" points="{" ".join([*above, *below])}"/>'


def _line(scale: _Scale, run: Sequence[Point], size: float) -> Iterator[str]:
    points = [(scale.x(version), scale.y(number.robust.value)) for version, number in run]
    if len(points) > 1:
        yield f'<polyline class="line" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'
    for (x, y), (version, number) in zip(points, run, strict=True):
        told = _told(version, number.robust)
        yield f'<circle class="dot" cx="{x}" cy="{y}" r="{size}"><title>{told}</title></circle>'


def _void(scale: _Scale, found: Sequence[Point], size: float) -> Iterator[str]:
    named = -APART
    for version, number in found:
        if not number.sound:
            x, y = scale.x(version), scale.y(number.robust.value)
            told = f"{_told(version, number.robust)}, void"
            yield f'<circle class="hollow" cx="{x}" cy="{y}" r="{size + 1.5}"><title>{told}</title></circle>'
            if x - named >= APART:
                yield f'<text class="small" x="{x}" y="{y - 8}" text-anchor="middle">void</text>'
                named = x


def _floor(scale: _Scale, found: Sequence[Point]) -> Iterator[str]:
    """The policy's floor as a dashed line with a step where it moved, its newest height in words."""
    if not found:
        return
    points, height = [f"M{LEFT},{scale.y(found[0][1].floor)}"], found[0][1].floor
    for version, number in found:
        if number.floor != height:
            points.append(f"H{scale.x(version - 0.5)}V{scale.y(number.floor)}")
            height = number.floor
    yield f'<path class="floor" d="{"".join(points)}H{WIDTH - RIGHT}"/>'
    x, y = WIDTH - RIGHT, scale.y(height) - 4
    yield f'<text class="small" x="{x}" y="{y}" text-anchor="end">floor {height:.0%}</text>'


def _told(version: int, share: Share) -> str:
    return f"version {version}: {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]"
