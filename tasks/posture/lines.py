"""A history's numbers in the terminal: a line of blocks for each threat model, a line for each version."""

from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.posture.changes import CLEAN
from tasks.posture.console import VERDICTS, bar, percent, plain, sparkline
from tasks.posture.history import Group, History
from tasks.posture.record import Record, ThreatRecord

NAMES = 26  # columns for a version and its aliases
RANGE = 14  # columns for the versions that a line of blocks shows
LAYOUTS: tuple[frozenset[str], ...] = (  # what stands beside the numbers, the widest first
    frozenset({"bar", "replay", "when"}),
    frozenset({"replay", "when"}),
    frozenset({"when"}),
    frozenset(),
)


def sparklines(history: History, main: Group, width: int) -> Iterator[Text]:
    """A line of blocks for each threat model, over as many of the newest versions as fit."""
    labels = [plain(label) for label in main.labels]
    indent = min(max(map(cell_len, labels)), width // 3)
    shown = history.versions[-max(1, width - indent - RANGE) :]
    for place, label in enumerate(labels):
        numbers = main.series(place, shown)
        values = [number.robust.value if number else None for number in numbers]
        blocks = sparkline(values, [number is not None and not number.sound for number in numbers])
        line = Text(set_cell_size(label, indent) + "  ")
        line.append(blocks, style="cyan")
        yield line.append(f"  {shown[0]} to {shown[-1]}", style="dim")


def numbers(history: History, main: Group, versions: Sequence[int], width: int) -> Table:
    """One line for each version in the widest layout that fits; where none does, a block of lines for each."""
    console = Console(width=10_000)
    for beside in LAYOUTS:
        table = _lines(history, main, versions, beside)
        if console.measure(table).maximum <= width:
            return table
    return _blocks(history, main, versions)


def _lines(history: History, main: Group, versions: Sequence[int], beside: Collection[str]) -> Table:
    known = main.by_version()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    titles = ["version", *(["when"] if "when" in beside else []), "clean", *map(plain, main.labels), "verdict"]
    for title in titles:
        table.add_column(title, no_wrap=True)
    for version in versions:
        record = known.get(version)
        if record is None:
            table.add_row(_version(history, version), Text("not measured", style="dim"))
            continue
        when = [Text(plain(record.measured_at[:10]))] if "when" in beside else []
        threats = [_cell(threat, beside) for threat in record.threats]
        table.add_row(_version(history, version), *when, f"{record.clean.value:.1%}", *threats, _verdict(record))
    return table


def _blocks(history: History, main: Group, versions: Sequence[int]) -> Table:
    """For each version its name and verdict, and below a line for each number."""
    known = main.by_version()
    table = Table.grid(padding=(0, 2, 0, 0))
    for version in versions:
        record = known.get(version)
        if record is None:
            table.add_row(_version(history, version), Text("not measured", style="dim"))
            continue
        table.add_row(
            _version(history, version), Text(plain(record.measured_at[:10]), style="dim") + "  " + _verdict(record)
        )
        table.add_row(Text(f"  {CLEAN}"), Text(percent(record.clean)))
        for threat in record.threats:
            table.add_row(Text(f"  {plain(threat.label)}"), _cell(threat, LAYOUTS[0]))
    return table


def _cell(threat: ThreatRecord, beside: Collection[str]) -> Text:
    if not threat.sound:
        return Text(f"{threat.robust.value:.1%} void", style="bold red")
    cell = Text(percent(threat.robust))
    if "bar" in beside:
        cell = cell + " " + bar(threat.robust)
    if "replay" in beside and threat.replay:
        cell.append(f" replay {threat.replay.value:.0%}", style="dim")
    return cell


def _version(history: History, version: int) -> Text:
    cell = Text(str(version), style="bold")
    names = ", ".join(map(plain, history.named(version)))
    cell.append(f" {names}" if names else "")
    cell.truncate(NAMES, overflow="ellipsis")
    return cell


def _verdict(record: Record) -> Text:
    return Text(plain(record.verdict), style=VERDICTS.get(record.verdict, ""))
