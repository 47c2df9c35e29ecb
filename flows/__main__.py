"""The command line: redoubt run | check | recipes | suites | selftest | config | ui."""

import gc
import json
import logging
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tasks.errors import RedoubtError, WrongInput

if TYPE_CHECKING:
    from tasks.evidence import Story
    from tasks.metrics import ThreatReport

EXIT = {"pass": 0, "fail": 1, "cannot tell": 2}
WRONG_INPUT, BROKE = 3, 4


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redoubt")
def cli() -> None:
    """Redoubt doubts your models again.

    Validate data, train, attack, decide, harden, attack again, promote; every number and artifact in MLflow.
    Exit codes: 0 pass, 1 fail, 2 cannot tell, 3 wrong input, 4 the run broke.
    """


@cli.command()
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="e.g. --set policy.floor=0.7; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
def run(recipe: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Run the whole path for RECIPE, a name from `redoubt recipes` or a YAML file."""
    from flows.ephemeral import prefect_api
    from flows.settle import settle

    settle()
    gc.set_threshold(100_000, 50, 50)  # the libraries make a million lasting objects; looking them through costs 1.5 s
    if not as_json:
        _show_steps()
    with prefect_api() as ready:
        from flows.recipes import configured

        config = configured(recipe, changes)
        from tasks.track import client

        client()  # a store that is down ends the run here, not after training
        from flows.pipeline import posture_pipeline

        ready()
        story = posture_pipeline(config)
    if as_json:
        click.echo(json.dumps(_summary(story), indent=2))
    else:
        from tasks.evidence import render_summary

        width = min(shutil.get_terminal_size().columns, 110)
        click.echo(render_summary(story, width=width, color=sys.stdout.isatty()), nl=False)
        click.echo(f"Report: {_report_path(story)}")
    sys.exit(EXIT[story.verdict.outcome])


@cli.command()
def recipes() -> None:
    """List the runs that have a name."""
    from flows.recipes import RECIPES

    for name, recipe in RECIPES.items():
        click.echo(f"{name:12} {(recipe.__doc__ or '').strip().splitlines()[0]}")


@cli.command()
def suites() -> None:
    """Show the suites: their attacks in order, with every parameter, and the digest that stands beside a number."""
    from tasks.attacks import SUITES

    click.echo("\n\n".join(str(suite) for suite in SUITES.values()))


@cli.command()
@click.argument("model")
@click.option("--dataset", required=True, help="As in a config: a name, 'package.module:function', a CSV, a folder.")
@click.option("--norm", default="linf", show_default=True, help="Of the threat model.")
@click.option("--eps", help="Its radius: 0.03 or 8/255. Unbounded needs none.")
@click.option("--floor", default=0.5, show_default=True, help="Robust accuracy that is asked for.")
@click.option("--suite", default="standard", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--planted",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Plant an example near so many samples: does the suite find it?",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def check(
    model: str,
    dataset: str,
    norm: str,
    eps: str | None,
    floor: float,
    suite: str,
    seed: int,
    planted: int,
    as_json: bool,
) -> None:
    """Measure MODEL on as few samples as show on which side of the floor it is.

    MODEL is 'package.module:function', models:/NAME/3 or models:/NAME@champion. With --planted the suite must also
    find adversarial examples that are known to exist (the binarisation test). Exit codes as for `run`.
    """
    from flows.check import check as decision
    from flows.config import threat_of
    from flows.settle import settle

    settle()
    threat = threat_of(norm, eps)
    found = decision(model, dataset, threat=threat, floor=floor, suite=suite, seed=seed, planted=planted)
    click.echo(json.dumps(found.values(), indent=2) if as_json else "\n".join(found.lines()))
    sys.exit(EXIT[found.verdict])


@cli.command()
@click.option("--suite", default="standard", show_default=True, help="The attacks that measure each model.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the attacks.")
def selftest(suite: str, seed: int) -> None:
    """Plant known faults into small models and see that the signs of soundness catch each, and accuse no honest one.

    Exit code 1 where a fault goes unseen or an honest model is accused.
    """
    from tasks.attacks import as_suite
    from tasks.metrics.selftest import selftest as findings

    as_suite(suite)
    click.echo(f"{'model':41}{'PGD says':>9}{'suite':>8}{'at last':>9}  {'number':7}{'':8}signs that fired")
    wrong = 0
    for found in findings(suite, seed):
        wrong += not found.right
        number = "sound" if found.soundness.sound else "void"
        caught, spared = ("caught", "MISSED"), ("spared", "ACCUSED")
        how = (caught if found.faulty else spared)[not found.right]
        shares = f"{found.naive:9.1%}{found.before:8.1%}{found.after:9.1%}"
        more = f" (+{len(found.fired) - 2})" if len(found.fired) > 2 else ""
        click.echo(f"{found.name:41}{shares}  {number:7}{how:8}{', '.join(found.fired[:2])}{more}")
    click.echo(f"{wrong} wrong." if wrong else "Every fault was caught, and no honest model was accused.")
    sys.exit(1 if wrong else 0)


@cli.command()
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value first.")
def config(recipe: str, changes: tuple[str, ...]) -> None:
    """Print RECIPE as YAML, to start a config of your own from."""
    import yaml

    from flows.recipes import configured

    click.echo(yaml.safe_dump(configured(recipe, changes).model_dump(mode="json"), sort_keys=False), nl=False)


@cli.command()
@click.option("--mlflow-port", default=5000, show_default=True)
@click.option("--prefect-port", default=4200, show_default=True)
def ui(mlflow_port: int, prefect_port: int) -> None:
    """Start MLflow's and Prefect's pages on the embedded stores, until Ctrl-C."""
    from flows.pages import show_pages
    from flows.settle import settle

    settle()
    show_pages(mlflow_port=mlflow_port, prefect_port=prefect_port)


def main() -> NoReturn:
    """Run the command line; every error becomes one clear message and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        _fail(error.format_message(), WRONG_INPUT)
    except WrongInput as error:
        _fail(str(error), WRONG_INPUT)
    except RedoubtError as error:
        _fail(str(error), BROKE)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped. The run is marked as killed; the same command goes on from the last checkpoint.", BROKE)
    except Exception as error:
        _fail(f"the run broke: {type(error).__name__}: {error}\n{_keep_traceback()}", BROKE)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        click.echo(f"redoubt: {line}", err=True)
    sys.exit(code)


def _keep_traceback() -> str:
    from tasks.home import folder

    try:
        path = folder("reports") / "last-traceback.txt"
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except (RedoubtError, OSError):
        return traceback.format_exc()
    return f"The traceback is in {path}."


def _show_steps() -> None:
    log = logging.getLogger("redoubt")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    log.addHandler(handler)


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


if __name__ == "__main__":
    main()
