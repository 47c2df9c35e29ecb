"""Commands that run the whole path, and those that say what can be run."""

import gc
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from flows.exits import EXIT
from flows.workers import workers_option

if TYPE_CHECKING:
    from tasks.evidence import Story
    from tasks.metrics import ThreatReport


@click.command()
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="e.g. --set policy.floor=0.7; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
@workers_option
def run(recipe: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Run the whole path for RECIPE, a name from `redoubt recipes` or a YAML file."""
    from flows.ephemeral import prefect_api
    from flows.settle import settle

    settle()
    gc.set_threshold(100_000, 50, 50)  # the libraries make a million lasting objects; looking them through costs 1.5 s
    if not as_json:
        show_steps()
    with prefect_api() as ready:
        from flows.recipes import configured

        config = configured(recipe, changes)
        from flows.beforehand import check_parts

        check_parts(config)
        from tasks.track import client

        client()  # a store that is down ends the run here, not after training
        from flows.pipeline import posture_pipeline

        ready()
        story = posture_pipeline(config)
    report_story(story, as_json=as_json)


@click.command()
def recipes() -> None:
    """List the runs that have a name."""
    from flows.recipes import RECIPES

    for name, recipe in RECIPES.items():
        click.echo(f"{name:12} {(recipe.__doc__ or '').strip().splitlines()[0]}")


@click.command()
def suites() -> None:
    """Show the suites: their attacks in order, with every parameter, and the digest that stands beside a number."""
    from tasks.attacks import SUITES

    click.echo("\n\n".join(str(suite) for suite in SUITES.values()))


@click.command()
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value first.")
def config(recipe: str, changes: tuple[str, ...]) -> None:
    """Print RECIPE as YAML, to start a config of your own from."""
    import yaml

    from flows.beforehand import check_parts
    from flows.recipes import configured

    config = configured(recipe, changes)
    check_parts(config)
    click.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)


@click.command()
@click.option("--mlflow-port", default=5000, show_default=True)
@click.option("--prefect-port", default=4200, show_default=True)
def ui(mlflow_port: int, prefect_port: int) -> None:
    """Start MLflow's and Prefect's pages on the embedded stores, until Ctrl-C."""
    from flows.pages import show_pages
    from flows.settle import settle

    settle()
    show_pages(mlflow_port=mlflow_port, prefect_port=prefect_port)


def report_story(story: "Story", *, as_json: bool) -> NoReturn:
    """Print what the story came to, and end with its exit code."""
    if as_json:
        click.echo(json.dumps(_summary(story), indent=2))
    else:
        from tasks.evidence import render_summary

        width = min(shutil.get_terminal_size().columns, 110)
        click.echo(render_summary(story, width=width, color=sys.stdout.isatty()), nl=False)
        click.echo(f"Report: {_report_path(story)}")
    sys.exit(EXIT[story.verdict.outcome])


def show_steps() -> None:
    """Print each step with its seconds on standard error as it ends."""
    log = logging.getLogger("redoubt")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Harmless("  %(message)s"))
    handler.addFilter(lambda record: not hasattr(record, "result"))  # which the command prints itself
    log.addHandler(handler)


class _Harmless(logging.Formatter):
    """Lines that neither tell a secret nor move the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        from tasks.posture.console import plain
        from tasks.redact import redacted

        return "\n".join(plain(line) for line in redacted(super().format(record)).split("\n"))


def _alarms(report: "ThreatReport") -> list[str] | None:
    """The signs that stand unanswered; None where none was asked."""
    return [sign.name for sign in report.soundness.alarms] if report.soundness else None


def _report_path(story: "Story") -> Path:
    from tasks.publish import page_path

    return page_path(story)


def _summary(story: "Story") -> dict[str, Any]:
    """What --json prints."""
    return {
        "verdict": story.verdict.outcome,
        "reasons": list(story.verdict.reasons),
        "model": story.name,
        "version": story.version,
        "champion": story.champion,
        "previous": story.previous,
        "run_id": story.run_id,
        "report": str(_report_path(story)),
        "stages": [
            {
                "stage": chapter.stage,
                "split": chapter.report.split,
                "verdict": chapter.verdict.outcome,
                "version": chapter.version,
                "clean_accuracy": chapter.report.clean.model_dump(),
                "robust_accuracy": {t.threat.name: t.robust.model_dump() for t in chapter.report.threats},
                "sound": chapter.report.sound,
                "alarms": {t.threat.name: _alarms(t) for t in chapter.report.threats},
                "pairs": {t.threat.name: [p.model_dump() for p in t.pairs] for t in chapter.report.threats if t.pairs},
                "seeds": chapter.report.seeds,
            }
            for chapter in (*story.chapters[:1], *story.rounds, *story.chapters[1:])
        ],
        "seconds": {step: round(value, 2) for step, value in story.seconds.items()},
    }
