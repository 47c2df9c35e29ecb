"""The story of a run in the terminal, and as Markdown."""

import io
import re

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tasks.evidence.belief import Belief, belief, line
from tasks.evidence.page import headline
from tasks.evidence.story import Chapter, Story
from tasks.metrics import Share, ThreatReport
from tasks.posture.console import plain

COLOURS = {"pass": "bold green", "fail": "bold red", "cannot tell": "bold yellow"}
DOUBTS: dict[Belief, str] = {"void": "red", "not checked": "yellow", "answered": ""}
BAR = 10
NARROW = 100  # columns below which there is no room for bars


def render_summary(story: Story, *, width: int = 100, color: bool = True) -> str:
    """What a person reads at the end of a run, at most `width` columns wide."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model")
    table.add_column("clean accuracy")
    for threat in story.chapters[0].report.threats:
        table.add_column(f"under {threat.threat}")
    table.add_column("verdict")
    for chapter in story.chapters:
        outcome = chapter.verdict.outcome
        bar = BAR if width >= NARROW else 0
        cells = [_cell(chapter.report.clean, bar), *(_robust(threat, bar) for threat in chapter.report.threats)]
        table.add_row(Text(plain(_name(chapter))), *cells, Text(outcome, style=COLOURS[outcome]))
    parts: list[object] = ["", table, ""]
    for chapter in story.chapters:
        if chapter.verdict.outcome != "pass":
            parts += [
                Padding(Text(plain(f"{chapter.stage}: {reason}")), (0, 0, 0, 2)) for reason in chapter.verdict.reasons
            ]
    parts += [Padding(doubt, (0, 0, 0, 2)) for doubt in _doubts(story)]
    parts += [
        "",
        Text(plain(headline(story)), style=COLOURS[story.verdict.outcome]),
        Text(plain(_place(story)), style="dim"),
    ]
    if story.seconds:
        took = ", ".join(f"{step} {seconds:.1f}" for step, seconds in story.seconds.items())
        parts.append(Text(f"Seconds: {took}", style="dim"))
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(Group(*parts))  # type: ignore[arg-type]
    return output.getvalue()


def render_markdown(story: Story) -> str:
    """The same facts as Markdown."""
    threats = [str(threat.threat) for threat in story.chapters[0].report.threats]
    lines = [f"# {_escaped(story.name)}: {story.verdict.outcome}", "", _escaped(headline(story)), ""]
    lines += ["| model | clean | " + " | ".join(threats) + " | verdict |", "|---" * (len(threats) + 3) + "|"]
    for chapter in story.chapters:
        marked = [f"{t.robust} (void)" if belief(t) == "void" else str(t.robust) for t in chapter.report.threats]
        cells = [_escaped(_name(chapter)), str(chapter.report.clean), *marked, chapter.verdict.outcome]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for chapter in story.chapters:
        lines += [f"- {_escaped(chapter.stage)}, {c.outcome}: {_escaped(c.reason)}" for c in chapter.verdict.checks]
    lines += ["", "## Can these numbers be believed?", ""]
    lines += [f"- {_escaped(line(c.stage, threat))}" for c in story.chapters for threat in c.report.threats]
    lines += ["", _place(story), f"Data `{story.data.digest}`, run `{story.run_id}`."]
    return "\n".join(lines)


def _doubts(story: Story) -> list[Text]:
    """A line for each number whose alarms were answered or not, or that nothing checked."""
    numbers = [(chapter.stage, threat) for chapter in story.chapters for threat in chapter.report.threats]
    return [
        Text(plain(line(*number)), style=DOUBTS[kind]) for number in numbers if (kind := belief(number[1])) in DOUBTS
    ]


def _name(chapter: Chapter) -> str:
    return chapter.stage if chapter.version is None else f"{chapter.stage}, v{chapter.version}"


def _cell(share: Share, size: int) -> Text:
    full = round(share.value * size)
    bar = Text("█" * full, style="cyan") + Text("░" * (size - full), style="bright_black")
    return (
        Text(f"{share.value:6.1%}  " if size else f"{share.value:.1%}")
        + bar
        + Text(f"\n[{share.lo:.1%}, {share.hi:.1%}]", style="dim")
    )


def _robust(threat: ThreatReport, size: int) -> Text:
    cell = _cell(threat.robust, size)
    return cell + Text("\nvoid", style="bold red") if belief(threat) == "void" else cell


def _place(story: Story) -> str:
    if story.champion is None:
        return "No version is champion."
    before = f"; before it version {story.previous}" if story.previous else ""
    return f"Champion of {story.name}: version {story.champion}{before}."


def _escaped(text: str) -> str:
    text = text.replace("<", "&lt;").replace("\n", " ")
    return re.sub(r"([\\|\[\]`])", r"\\\1", text)  # no links and no images: a page that shows it would load them
