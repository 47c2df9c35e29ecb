"""Commands that doubt a model that exists, and the signs of soundness themselves."""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from flows.exits import EXIT, worst
from flows.workers import workers_option

if TYPE_CHECKING:
    from flows.config import EvaluateConfig


@click.command()
@click.argument("model")
@click.option("--dataset", help="A name, 'package.module:function', a CSV, a folder; that of the last time if none.")
@click.option("--like", metavar="RECIPE", help="A recipe, a YAML file, or models:/NAME/3: as it was measured last.")
@click.option("--name", help="Of the experiment, for a model that is not registered.")
@click.option("--norm", help="Of the threat model whose radius --eps gives; linf if none.")
@click.option("--eps", help="Its radius: 0.03 or 8/255.")
@click.option("--suite", help="quick, standard or deep.")
@click.option("--samples", type=click.IntRange(min=1), help="How many of the test split; all if none.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the attacks.")
@click.option("--floor", type=click.FloatRange(0, 1), help="Robust accuracy that is asked for.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="e.g. --set evaluation.seeds=3; repeatable.")
@click.option("--again", is_flag=True, help="Anew, though it was measured in this very way before.")
@click.option(
    "--consent", "consent", multiple=True, metavar="DIGEST", help="sha256:... of a pickle that may be loaded."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
@workers_option
def evaluate(model: str, again: bool, consent: tuple[str, ...], as_json: bool, **words: Any) -> None:
    """Attack MODEL, decide, and keep what was found, whoever trained it.

    MODEL is models:/NAME/3, models:/NAME@champion, an ONNX file, or 'package.module:function'. What was measured in
    this very way before is told from the store. Exit codes as for `run`.
    """
    from flows.commands.running import report_story, show_steps
    from flows.ephemeral import prefect_api
    from flows.settle import settle

    settle()
    _consent(consent)
    from flows.asked import asked

    config = asked(model, **words)
    from flows.beforehand import check_parts

    check_parts(config)
    if not again and (done := _done(config)):
        from tasks.posture.console import plain

        told = plain("{verdict}: measured {measured_at}. {reason}".format(**done))
        click.echo(json.dumps(done, indent=2) if as_json else told)
        sys.exit(EXIT[done["verdict"]])
    if not as_json:
        show_steps()
    with prefect_api() as ready:
        from flows.evaluate import evaluate_model

        ready()
        story = evaluate_model(config, again=again)
    report_story(story, as_json=as_json)


@click.command()
@click.argument("name")
@click.option("--versions", "which", default="live", show_default=True, help="live (with an alias), all, or e.g. 1,2.")
@click.option("--suite", help="Another suite than the last time.")
@click.option("--like", metavar="VERSION", help="As this version was measured last, e.g. 3 or @champion.")
@click.option("--again", is_flag=True, help="Anew, though they were measured in this very way before.")
@click.option(
    "--consent", "consent", multiple=True, metavar="DIGEST", help="sha256:... of a pickle that may be loaded."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
@workers_option
def reattack(
    name: str, which: str, suite: str | None, like: str | None, again: bool, consent: tuple[str, ...], as_json: bool
) -> None:
    """Measure versions of NAME under the current suite (new-attack day).

    Each is measured as --like says, or as it was the last time, or else as its model's newest measured version was.
    Exit code 0 where every one passes, else that of the worst: 1 where one fails, then 4, then 2.
    """
    from flows.commands.running import show_steps
    from flows.ephemeral import prefect_api
    from flows.settle import settle

    settle()
    _consent(consent)
    from flows.asked import which_versions

    versions = which_versions(which)
    if not as_json:
        show_steps()
    with prefect_api() as ready:
        from flows.reattack import Reattacked, reattack_versions

        ready()
        results: list[Reattacked] = reattack_versions(name, versions, suite=suite, again=again, like=like)
    if as_json:
        click.echo(json.dumps([result.model_dump() for result in results], indent=2))
    else:
        from tasks.posture.console import plain

        click.echo("\n".join(plain(result.says) for result in results))
    sys.exit(worst([result.exit_code for result in results]))


def _consent(words: tuple[str, ...]) -> None:
    """Let what this process loads know which pickles the user has consented to. Raises WrongInput."""
    from tasks.models.pickled import CONSENT, consents

    if words:
        os.environ[CONSENT] = ",".join(sorted(consents(words)))


def _done(config: "EvaluateConfig") -> dict[str, Any] | None:
    """What a registered version came to when it was measured in this very way before."""
    from flows.asked import already
    from tasks.fetch import version_named
    from tasks.lookup import REGISTERED

    if not REGISTERED.fullmatch(config.model):
        return None
    record = already(version_named(config.model), config)
    return record.model_dump(mode="json") if record else None


@click.command()
@click.argument("model")
@click.option("--dataset", required=True, help="As in a config: a name, 'package.module:function', a CSV, a folder.")
@click.option("--norm", default="linf", show_default=True, help="Of the threat model.")
@click.option("--eps", help="Its radius: 0.03 or 8/255. Unbounded needs none.")
@click.option(
    "--floor", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Robust accuracy that is asked for."
)
@click.option("--suite", default="standard", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--planted",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Plant an example near so many samples: does the suite find it?",
)
@click.option(
    "--consent", "consent", multiple=True, metavar="DIGEST", help="sha256:... of a pickle that may be loaded."
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
    consent: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure MODEL on as few samples as show on which side of the floor it is.

    MODEL is models:/NAME/3, models:/NAME@champion, an ONNX file, or 'package.module:function'. With --planted the suite
    must also find adversarial examples that are known to exist (the binarisation test). Exit codes as for `run`.
    """
    from flows.check import check as decision
    from flows.config import threat_of
    from flows.settle import settle

    settle()
    _consent(consent)
    threat = threat_of(norm, eps)
    found = decision(model, dataset, threat=threat, floor=floor, suite=suite, seed=seed, planted=planted)
    click.echo(json.dumps(found.values(), indent=2) if as_json else "\n".join(found.lines()))
    sys.exit(EXIT[found.verdict])


@click.command()
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
