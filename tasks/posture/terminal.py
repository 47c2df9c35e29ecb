"""History, comparison, findings and verdict in the terminal: values in, text of at most `width` columns out."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tasks.errors import WrongInput
from tasks.posture.advice import advice
from tasks.posture.changes import Kind
from tasks.posture.console import VERDICTS, bar, count, percent, plain, show
from tasks.posture.finding import Finding, State
from tasks.posture.history import History
from tasks.posture.lines import numbers, sparklines
from tasks.posture.listing import Listed, by_age
from tasks.posture.paired import Comparison, Question, chance
from tasks.posture.record import Record
from tasks.posture.sentences import ranges

ORDER = {"fail": 0, "cannot tell": 1, "pass": 2}  # the worst check is what decides
GRAVE: dict[Kind, str] = {
    "weights changed": "bold red",
    "unsound": "red",
    "regression": "red",
    "verdict changed": "yellow",
    "not comparable": "yellow",
    "measurement": "cyan",
    "sound again": "green",
    "improvement": "green",
    "within chance": "dim",
}
OUTCOMES = {"lower": "red", "higher": "green", "void": "bold red", "within chance": "dim"}
STATES: dict[State, str] = {
    "regressed": "bold red",
    "open": "red",
    "mitigated": "yellow",
    "accepted": "cyan",
    "verified": "green",
}
TOLD = 12  # changes that are told, and rows that are named


def render_history(history: History, *, width: int = 100, color: bool = True, last: int = 30) -> str:
    """Every version of the main group, the newest last, with a line of blocks for each threat model above.

    last: how many of the newest versions have a line; the blocks show as many as fit. Void numbers are marked.
    """
    main, versions = history.main, history.versions
    parts: list[RenderableType] = ["", Text(f"{plain(history.name)}: {count(len(versions), 'version')}")]
    if main is None:
        parts.append(Text("Nothing was measured yet."))
    else:
        shown = versions[-last:] if last > 0 else ()
        parts += [Text(f"Measured with {plain(main.title)}.", style="dim"), "", *sparklines(history, main, width), ""]
        parts.append(numbers(history, main, shown, width))
        if len(shown) < len(versions):
            told = f"{count(len(versions) - len(shown), 'earlier version')} hidden; --last {len(versions)} shows all."
            parts.append(Text(told, style="dim"))
        parts += ["", *_changes(history)]
    for group in history.groups[1:]:
        told = f"{count(len(group.records), 'version')} ({ranges(group.versions)}) measured with {plain(group.title)}"
        parts.append(Text(f"{told}: never drawn in the same line.", style="dim"))
    if history.unmeasured:
        under = " in this way" if main else ""
        parts.append(
            Text(f"Versions not measured{under}: {ranges(history.unmeasured)}. Measure: {plain(history.command)}")
        )
    parts += [Text(plain(note), style="dim") for note in history.notes]
    return show(parts, width, color)


def _changes(history: History) -> Iterator[RenderableType]:
    """The newest changes in sentences, and how many there are besides."""
    told = history.told
    for kind, says in told[:TOLD]:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=max(map(len, GRAVE)))
        table.add_row(Text(kind, style=GRAVE[kind]), Text(plain(says)))
        yield table
    if len(told) > TOLD:
        yield Text(f"{count(len(told) - TOLD, 'older change')} not told here; --json tells all.", style="dim")


def render_compare(comparison: Comparison, *, width: int = 100, color: bool = True) -> str:
    """Each number of both versions, what was lost and gained between them, and which samples."""
    before, after = (plain(name) for name in comparison.names)
    samples = f"{comparison.after.samples:,} samples of {plain(comparison.after.data)}"
    parts: list[RenderableType] = ["", Text(f"{after} against {before}, on the same {samples}")]
    for question in comparison.questions:
        heading = Text.assemble("\n", (plain(question.label), "bold"), "  ")
        heading.append(question.outcome, style=OUTCOMES[question.outcome])
        rows = Table.grid(padding=(0, 2, 0, 0))
        for name, share in ((before, question.before), (after, question.after)):
            rows.add_row(Text(name), Text(percent(share)), bar(share))
        parts += [heading, Padding(Group(rows, *_pairs(question, 1 - comparison.confidence)), (0, 0, 0, 2))]
    told = "p is McNemar's: exact, two-sided, corrected for the number of questions by Holm's method."
    parts += ["", Text(told, style="dim"), *(Text(plain(note), style="dim") for note in comparison.notes)]
    return show(parts, width, color)


def _pairs(question: Question, alpha: float) -> Iterator[Text]:
    """What was lost and gained, which rows, and the classes where that is more than chance."""
    if question.outcome == "void":
        yield Text("One of the two numbers is void, so what follows decides nothing.", style="bold red")
    loss = f"loss {question.loss:+.1%} [{question.loss_lo:+.1%}, {question.loss_hi:+.1%}], p {chance(question.p)}"
    yield Text(loss)
    for what, rows in (("regressed", question.regressed), ("repaired", question.repaired)):
        more = ", ..." if len(rows) > TOLD else ""
        named = f": rows {', '.join(map(str, rows[:TOLD]))}{more}" if rows else ""
        yield Text(f"{len(rows):,} {what}{named}", style="" if rows else "dim")
    if question.classes is None:
        yield Text("By class: not known, since the tables are old and do not tell the classes.", style="dim")
    for tally in question.classes or ():
        if tally.p <= alpha:
            yield Text(f"class {tally.cls}: {tally.lost} of {tally.n} lost, {tally.gained} gained, p {chance(tally.p)}")


def render_findings(
    findings: Sequence[Finding],
    now: datetime,
    *,
    max_days: float | None = None,
    width: int = 100,
    color: bool = True,
) -> str:
    """The findings as they stand now, the overdue ones first, then those that stand, the oldest first.

    max_days: how long a finding may stand before it is overdue; None, and none is.
    """
    listed = by_age(findings, now, max_days=max_days)
    standing = sum(one.stands for one in listed)
    late = sum(one.overdue for one in listed)
    head = f"{count(len(listed), 'finding')}, {standing} of them open, {late} overdue." if listed else "No findings."
    parts: list[RenderableType] = ["", Text(head), ""]
    for one in listed:
        parts += _finding(one)
    return show(parts, width, color)


def _finding(one: Listed) -> Iterator[RenderableType]:
    finding = one.finding
    head = Text.assemble((finding.state, STATES[finding.state]), (" OVERDUE" if one.overdue else "", "bold red"))
    subject = f", {finding.subject}" if finding.subject else ""
    yield head.append(f"  {count(one.days, 'day')}  {finding.id}  {plain(finding.label)}{plain(subject)}")
    facts = [one.versions, ", ".join(finding.ids), one.costs]
    command = f"see it again: {finding.reproducer.command}" if finding.reproducer else ""
    yield Padding(Text(plain(finding.says)), (0, 0, 0, 4))
    for line in ("; ".join(fact for fact in facts if fact), one.ends, command):
        if line:
            yield Padding(Text(plain(line), style="dim"), (0, 0, 0, 4))


def render_explain(
    verdict: Mapping[str, Any],
    policy: Mapping[str, Any],
    record: Record | None,
    *,
    compared: str = "",
    width: int = 100,
    color: bool = True,
) -> str:
    """Why a verdict is what it is: each check, the decisive ones first, then what to do next and the policy.

    verdict and policy are the values of a Verdict and of a Policy; compared says what it was compared with. Raises
    WrongInput where the verdict has no checks.
    """
    outcome, checks = str(verdict.get("outcome", "")), list(verdict.get("checks", ()))
    if outcome not in VERDICTS or not checks:
        raise WrongInput(
            f"this is no verdict: outcome {outcome!r} with {len(checks)} checks. Measure the version again."
        )
    of = f" on version {record.version} of {plain(record.name)}" if record else ""
    parts: list[RenderableType] = ["", Text.assemble(f"The verdict{of}: ", (outcome, VERDICTS[outcome])), ""]
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in sorted(checks, key=lambda check: ORDER.get(check["outcome"], 0)):
        style = VERDICTS.get(check["outcome"], "")
        name, reason = plain(check["name"]), plain(check["reason"])
        under = name.partition(" under ")[2]
        reason = reason.removesuffix(f" under {under}") if under else reason  # which the name has said
        told = Text(reason) if reason.startswith(name) else Text(f"{name}: {reason}")
        table.add_row(Text(check["outcome"], style=style), told)
    parts += [table, ""]
    if compared:
        parts += [Text(plain(compared)), ""]
    next_steps = advice(checks, record)
    parts += [Text("What to do next", style="bold")] if next_steps else []
    todo = Table.grid(padding=(0, 1, 0, 0))
    for step in next_steps:
        todo.add_row("-", Text(plain(step)))
    parts.append(todo)
    asked = ", ".join(f"{plain(str(name))} {plain(str(value))}" for name, value in policy.items() if value != {})
    parts += ["", Text(f"The policy: {asked}.", style="dim")] if asked else []
    if record:
        facts = f"Measured {record.measured_at[:10]} with suite {record.suite} ({record.suite_digest[:8]}) on "
        parts.append(
            Text(plain(f"{facts}{record.samples:,} samples of {record.data}; run {record.run_id}."), style="dim")
        )
    return show(parts, width, color)
