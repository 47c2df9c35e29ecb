"""How every chart is drawn: by matplotlib, as SVG that reads on light and on dark paper and loads nothing."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8c6d1f")  # Okabe and Ito: told apart by everybody
INK = "#010203"  # stands for the page's own text colour
STYLE: dict[str, str | bool] = {"svg.fonttype": "none", "svg.hashsalt": "redoubt"}
STYLE |= {"font.family": "sans-serif", "font.sans-serif": "DejaVu Sans"}
STYLE |= {"text.usetex": False, "text.parse_math": False, "path.simplify": False}  # names hold $; no point is left out
STYLE |= {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
STYLE |= {f"axes.{part}color": INK for part in ("edge", "label")}
TAG, STYLED = re.compile(r"<[a-z][^>]*>"), re.compile(r' style="([^"]*)"')
JOINS = '<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>'  # of matplotlib, for the page
UNTOLD = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def inked() -> Iterator[None]:
    """While it is open, matplotlib draws in this style; to_svg belongs inside too."""
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs list every key by name
        yield


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an <svg> element as wide as its place, its ink the page's, its ids beginning with that name.

    It holds no style element and no style attribute, so that a page may forbid both.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=UNTOLD)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    joins = 'stroke-linejoin="round" stroke-linecap="butt"'
    svg = re.sub(r'<svg\b[^>]*?( viewBox="[^"]*")[^>]*>', rf"<svg\1 {joins}>", svg, count=1).replace(JOINS, "")
    svg = TAG.sub(lambda tag: STYLED.sub(_attributes, tag[0]), svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}", svg)
    return svg.replace(INK, "currentColor")


def _attributes(style: re.Match[str]) -> str:
    """The declarations of a style attribute as attributes of their own, which SVG knows under the same names."""
    pairs = (declared.partition(":") for declared in style[1].split(";") if declared.strip())
    return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in pairs)
