"""The small parts of which the terminal's pages are made."""

import io
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tasks.statistics import Share

BLOCKS, GAP, VOID = "▁▂▃▄▅▆▇█", " ", "x"
BAR = 8
VERDICTS = {"pass": "bold green", "fail": "bold red", "cannot tell": "bold yellow"}


def show(parts: Sequence[RenderableType], width: int, color: bool) -> str:
    """The parts one under another, in lines of at most `width` columns."""
    output = io.StringIO()
    console = Console(
        file=output, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()) + "\n"


def plain(text: str) -> str:
    """The text without what moves a terminal's cursor or turns its writing round: such a character shows as �."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def sparkline(values: Sequence[float | None], void: Sequence[bool]) -> str:
    """One character for each value in 0..1: a block of its eighth, a blank where there is none, x where it is void."""
    return "".join(
        GAP if value is None else VOID if hollow else BLOCKS[min(len(BLOCKS) - 1, int(value * len(BLOCKS)))]
        for value, hollow in zip(values, void, strict=True)
    )


def percent(share: Share) -> str:
    """E.g. 66.2% [61.9, 70.2]."""
    return f"{share.value:.1%} [{share.lo * 100:.1f}, {share.hi * 100:.1f}]"


def bar(share: Share) -> Text:
    """The share as a bar of eight columns."""
    full = round(share.value * BAR)
    return Text("█" * full, style="cyan") + Text("░" * (BAR - full), style="bright_black")


def count(number: int, what: str) -> str:
    """E.g. 1 version, 2 versions."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
