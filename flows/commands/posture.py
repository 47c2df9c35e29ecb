"""Commands that tell what is known. They load neither torch nor Prefect, so the answer is there in seconds."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

if TYPE_CHECKING:
    from tasks.recall import Known


@click.command()
@click.argument("name")
@click.option("--last", type=click.IntRange(min=1), default=30, show_default=True, help="So many versions are shown.")
@click.option("--html", is_flag=True, help="Write the posture page, and print its path.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a row for each version and threat model.")
def history(name: str, last: int, html: bool, as_json: bool, as_csv: bool) -> None:
    """Show the versions of NAME over time: clean and robust accuracy, verdict, alias, and what changed."""
    _one_of(html=html, json=as_json, csv=as_csv)
    _settled()
    from tasks.posture.terminal import render_history
    from tasks.recall import known_of

    known = known_of(name)
    if html:
        click.echo(f"Posture: {_written(f'posture-{name}', _posture(known))}")
    elif as_json:
        click.echo(known.history.to_json())
    elif as_csv:
        click.echo(known.history.to_csv(), nl=False)
    else:
        click.echo(render_history(known.history, last=last, **_screen()), nl=False)


@click.command()
@click.argument("name")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--html", is_flag=True, help="Write a page with pictures of the samples, and print its path.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def compare(name: str, first: str, second: str, html: bool, as_json: bool) -> None:
    """Compare versions A and B of NAME on the same samples: paired test, what regressed, what was repaired.

    A and B are numbers or aliases. Unequal evaluations are refused, with the reason.
    """
    _one_of(html=html, json=as_json)
    _settled()
    from tasks.posture.compare import compare as compared
    from tasks.posture.compare import compare_page, pictures
    from tasks.posture.terminal import render_compare
    from tasks.recall import adversarial_of, known_of, to_compare

    known = known_of(name)
    a, b = to_compare(known, known.numbered(first), known.numbered(second))
    found = compared(a, b)
    if html:
        shown = pictures(found, adversarial_of(a.record), adversarial_of(b.record))
        page = compare_page(found, shown)
        click.echo(f"Comparison: {_written(f'compare-{name}-{a.record.version}-{b.record.version}', page)}")
    elif as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        click.echo(render_compare(found, **_screen()), nl=False)


@click.command()
@click.argument("name")
@click.option("--card", is_flag=True, help="Print the model card (Markdown).")
@click.option("--bom", is_flag=True, help="Print the bill of materials (CycloneDX JSON).")
def report(name: str, card: bool, bom: bool) -> None:
    """Show the newest report on NAME, or on NAME@ALIAS: verdict, numbers, and the path of the page."""
    if card and bom:
        raise click.UsageError("--card and --bom are two files. Ask for one of them.")
    _settled()
    from tasks.posture.console import plain
    from tasks.posture.history import History
    from tasks.posture.terminal import render_explain, render_history
    from tasks.recall import compared, known_of, newest_measured, page_of, told_by
    from tasks.results import BOM, CARD, VERDICT, load_json

    bare, _, alias = name.partition("@")
    known = known_of(bare)
    record = newest_measured(known, known.numbered(alias) if alias else None)
    if card or bom:
        kept_file = told_by(record.run_id, CARD if card else BOM).decode(errors="replace")
        click.echo("\n".join(plain(line) for line in kept_file.split("\n")), nl=False)
        return
    only = History.of(bare, [record], known.aliases, [record.version])
    click.echo(render_history(only, **_screen()), nl=False)
    kept = load_json(record.run_id, VERDICT)
    click.echo(render_explain(kept["verdict"], kept["policy"], record, compared=compared(kept), **_screen()), nl=False)
    page = page_of(record.run_id)
    if page:
        from tasks.posture.paper import held

        html = told_by(*page).decode()
        click.echo(f"Report: {_written(f'{bare}-{page[0]}', held(html))}")


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def explain(run: str, as_json: bool) -> None:
    """Say why RUN ended with its verdict: each check with its answer, what decided first.

    RUN is a run of an evaluation or of the whole path, or NAME@ALIAS, or models:/NAME/3.
    """
    _settled()
    from tasks.posture.terminal import render_explain
    from tasks.recall import compared, decided, record_of

    run_id, kept = decided(run)
    if as_json:
        click.echo(json.dumps({"run_id": run_id, **kept}, indent=2))
    else:
        click.echo(
            render_explain(kept["verdict"], kept["policy"], record_of(run_id), compared=compared(kept), **_screen()),
            nl=False,
        )


@click.command()
@click.argument("name")
@click.option("--accept", "accepted", metavar="ID", help="Accept one: needs --owner, --until, --reason.")
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--until", default="", metavar="DATE", help="When the acceptance ends, e.g. 2027-01-31.")
@click.option("--reason", default="", help="Why it may stay.")
@click.option("--reopen", "reopened", metavar="ID", help="Open one again: needs --reason.")
@click.option("--replay", "replayed", metavar="ID", help="Replay a finding's examples.")
@click.option("--on", "version", default="", metavar="VERSION", help="With --replay: another than the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def findings(
    name: str,
    accepted: str | None,
    owner: str,
    until: str,
    reason: str,
    reopened: str | None,
    replayed: str | None,
    version: str,
    as_json: bool,
) -> None:
    """List the weaknesses of NAME: state, age, first version, catalogue ids, what an attack costs, how to reproduce."""
    _one_of(accept=accepted, replay=replayed)
    _one_of(reopen=reopened, replay=replayed)
    _belong("--accept", accepted, owner=owner, until=until)
    _belong("--accept or --reopen", accepted or reopened, reason=reason)
    _belong("--replay", replayed, on=version)
    _settled()
    from datetime import UTC, datetime

    from tasks.ledger import accept_finding, reopen_finding
    from tasks.posture.findings import at
    from tasks.posture.terminal import render_findings
    from tasks.recall import known_of, patience_of
    from tasks.reserve import reserved

    known, now = known_of(name), datetime.now(UTC)
    if replayed:
        from tasks.replay import replay_finding

        said = replay_finding(known, replayed, known.numbered(version) if version else known.versions[-1].number)
        click.echo(json.dumps(asdict(said), indent=2) if as_json else said.says)
        sys.exit(1 if said.fooled else 0)
    if accepted or reopened:
        with reserved(name):  # an evaluation may be about to write it down
            if accepted:
                accept_finding(known_of(name), accepted, owner=owner, expires=until, reason=reason, now=now)
            if reopened:
                reopen_finding(known_of(name), reopened, reason=reason, now=now)
        known = known_of(name)
    ledger = [at(finding, now) for finding in known.findings]
    if as_json:
        click.echo(json.dumps([finding.model_dump(mode="json") for finding in ledger], indent=2))
    else:
        click.echo(render_findings(ledger, now, max_days=patience_of(known), **_screen()), nl=False)


def _one_of(**given: object) -> None:
    """Raise UsageError for more than one option that says what is to be done or written."""
    named = [f"--{option}" for option, value in given.items() if value]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} do not go together. Ask for one of them.")


def _belong(to: str, wanted: object, /, **given: object) -> None:
    """Raise UsageError for options that mean nothing without the one that they belong to."""
    alone = [f"--{option}" for option, value in given.items() if value and not wanted]
    if alone:
        raise click.UsageError(f"{' and '.join(alone)} without {to}: nothing would be done. Write {to} as well.")


def _posture(known: "Known") -> str:
    """The posture page of a registered model."""
    from datetime import UTC, datetime

    from tasks.posture.coverage import coverage
    from tasks.posture.findings import at
    from tasks.posture.page import posture_page
    from tasks.recall import patience_of

    now = datetime.now(UTC)
    ledger = [at(finding, now) for finding in known.findings]
    return posture_page(known.history, ledger, coverage(known.records), now=now, max_days=patience_of(known))


def _settled() -> None:
    """The same stores as a run; and no collection of garbage while the libraries are loaded."""
    import gc

    gc.disable()
    from flows.settle import settle

    settle()


class Screen(TypedDict):
    """How wide, and whether in colour."""

    width: int
    color: bool


def _screen() -> Screen:
    return {"width": min(shutil.get_terminal_size().columns, 140), "color": sys.stdout.isatty()}


def _written(stem: str, page: str) -> Path:
    import re

    from tasks.home import folder

    path = folder("reports") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)}.html"
    path.write_text(page, encoding="utf-8")
    return path
