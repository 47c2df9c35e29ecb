"""Charts as SVG that reads on light and on dark paper."""

from collections.abc import Sequence

from tasks.attacks.threat import NAMES
from tasks.evidence.belief import causes
from tasks.evidence.story import Chapter
from tasks.posture.ink import COLOURS, INK, inked, to_svg

MARKERS = "osD^v"


def curve_chart(chapters: Sequence[Chapter], number: int, floor: float) -> str:
    """Accuracy against eps under the threat model of that number, one line for each chapter, as inline SVG."""
    from matplotlib.figure import Figure

    with inked():
        figure = Figure(figsize=(6.2, 3.7))  # a layout that measures itself takes twice as long to draw
        figure.subplots_adjust(left=0.13, right=0.985, bottom=0.13, top=0.975)
        axes = figure.add_subplot()
        for i, chapter in enumerate(chapters):
            report, colour = chapter.report.threats[number], COLOURS[i % len(COLOURS)]
            eps = [point.eps for point in report.curve]
            label = chapter.stage if chapter.version is None else f"{chapter.stage} (version {chapter.version})"
            label += ", void" if causes(report) else ""
            lo, hi = ([getattr(point.robust, end) for point in report.curve] for end in ("lo", "hi"))
            axes.fill_between(eps, lo, hi, color=colour, alpha=0.18, linewidth=0)
            values = [point.robust.value for point in report.curve]
            axes.plot(eps, values, color=colour, marker=MARKERS[i % len(MARKERS)], label=label, linewidth=2)
        threat = chapters[0].report.threats[number].threat
        axes.axhline(floor, color=INK, linestyle="--", linewidth=1, alpha=0.7)
        axes.annotate(f"floor {floor:.0%}", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        axes.axvline(threat.eps, color=INK, linestyle=":", linewidth=1.2, alpha=0.8)
        axes.set(xlabel=f"eps ({NAMES[threat.norm]})", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, loc="best")
        return to_svg(figure, f"chart-{number}-")
