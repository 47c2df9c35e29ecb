"""Charts as SVG that reads on light and on dark paper."""

import io
import re
from collections.abc import Sequence

from tasks.attacks.threat import NAMES
from tasks.evidence.belief import causes
from tasks.evidence.story import Chapter

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8c6d1f")  # Okabe and Ito: told apart by everybody
INK = "#010203"  # stands for the page's own text colour
MARKERS = "osD^v"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "redoubt", "font.family": "sans-serif"}
STYLE |= {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
STYLE |= {f"axes.{part}color": INK for part in ("edge", "label")}


def curve_chart(chapters: Sequence[Chapter], number: int, floor: float) -> str:
    """Accuracy against eps under the threat model of that number, one line for each chapter, as inline SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs list every key by name
        figure = Figure(figsize=(6.2, 3.7), layout="constrained")
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
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return _inline(svg.getvalue(), f"chart-{number}-")


def _inline(svg: str, name: str) -> str:
    """Only the <svg> element, its ink the page's and its ids its own, without the metadata that links elsewhere."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*" height="[^"]*"|(<svg\b[^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}", svg)
    return svg.replace(INK, "currentColor")
