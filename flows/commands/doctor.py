"""The command that looks an installation over."""

import json
import sys
from dataclasses import asdict

import click

from flows.exits import EXIT


@click.command()
@click.option("--pool", default="redoubt", show_default=True, help="The work pool whose workers are looked for.")
@click.option("--only", multiple=True, metavar="CHECK", help="e.g. --only worker; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def doctor(pool: str, only: tuple[str, ...], as_json: bool) -> None:
    """Look this installation over: versions, disks, secrets, MLflow, Prefect, clocks, workers.

    A line for each check: ok, warn, fail or not applicable, what was found, and the command that mends it. It really
    writes to every store, and takes that away again. Exit code 1 where anything fails.
    """
    from tasks.doctor import diagnose, named

    found = {}
    for name, finding in diagnose(named(pool), only):
        found[name] = finding
        if not as_json:
            click.echo(finding.line(name))
    outcomes = [finding.outcome for finding in found.values()]
    if as_json:
        checks = [{"check": name} | asdict(finding) for name, finding in found.items()]
        click.echo(json.dumps({"healthy": "fail" not in outcomes, "checks": checks}, indent=2))
    else:
        click.echo(f"{outcomes.count('fail')} fail, {outcomes.count('warn')} warn.")
    sys.exit(EXIT["fail"] if "fail" in outcomes else 0)
