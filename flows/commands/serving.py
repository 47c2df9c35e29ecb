"""Commands for what runs by itself: plans, the watch, hardening, deployments, and one machine that does it all."""

import sys

import click
import yaml

from flows.exits import BROKE, EXIT


@click.command()
@click.argument("name")
@click.option("--like", metavar="RECIPE", help="A recipe or a YAML file; without it the plan is printed.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="e.g. --set policy.floor=0.7; repeatable.")
def adopt(name: str, like: str | None, changes: tuple[str, ...]) -> None:
    """Give the registered model NAME a plan, by which it is measured and hardened when nobody asks.

    Works before a version is registered. `redoubt run` makes its own config the plan of its model.
    """
    from flows.settle import settle

    settle()
    from flows.plans import adopt as adopted
    from flows.plans import plan_of
    from tasks.errors import WrongInput

    if like is None and changes:
        raise WrongInput("--set changes what --like names. Write both, e.g. --like digits --set policy.floor=0.7")
    plan = adopted(name, like, changes) if like else plan_of(name)
    if plan is None:
        raise WrongInput(f"{name!r} has no plan. Give it one: --like RECIPE")
    click.echo(yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False), nl=False)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--promote", is_flag=True, help="A version that passes and is newer than the champion takes its place.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
def watch(names: tuple[str, ...], promote: bool, as_json: bool) -> None:
    """Measure, once, what has no verdict under the current suite, data and policy: of NAMES, or of every model.

    Exit code 4 where something could not be measured; a fail is no error of the watch.
    """
    from flows.commands.running import show_steps
    from flows.ephemeral import prefect_api
    from flows.settle import settle

    settle()
    if not as_json:
        show_steps()
    with prefect_api() as ready:
        from flows.watch import Watched
        from flows.watch import watch as watched

        ready()
        found: Watched = watched(list(names) or None, promote=promote)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(found.lines()))
    sys.exit(0 if all(result.measured for result in found.measured) else BROKE)


@click.command()
@click.argument("name")
@click.option("--version", "number", type=click.IntRange(min=1), help="The one that failed; the newest if none.")
@click.option("--cooldown", default=24.0, show_default=True, help="Hours since the last try in which nothing is done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
def harden(name: str, number: int | None, cooldown: float, as_json: bool) -> None:
    """Harden the registered model NAME by its plan, attack it again, and make it champion if it passes.

    Exit codes as for `run`; 0 where nothing was to be done, 3 for a model or a version that is not registered, or
    where there is no plan.
    """
    from flows.commands.running import show_steps
    from flows.ephemeral import prefect_api
    from flows.settle import settle

    settle()
    from flows.plans import check_hardening

    check_hardening(name, number)
    if not as_json:
        show_steps()
    with prefect_api() as ready:
        from flows.harden import harden_model

        ready()
        found = harden_model(name, number, reason="by hand", cooldown_hours=cooldown)
    click.echo(found.model_dump_json(indent=2) if as_json else found.says)
    sys.exit(EXIT[found.verdict] if found.hardened else 0)


@click.command()
@click.argument("name")
def rollback(name: str) -> None:
    """Make the version of the model NAME champion again that was so before; a second time undoes it."""
    from flows.settle import settle

    settle()
    from tasks.promote import roll_back

    click.echo(f"{name} version {roll_back(name)} is champion again.")


@click.command()
@click.option("--pool", default="redoubt", show_default=True, help="The work pool, which is made if it is absent.")
def deploy(pool: str) -> None:
    """Register every schedule and trigger on the Prefect server that PREFECT_API_URL names.

    Doing it twice is as good as once. REDOUBT_WEBHOOK_URL names where notifications go; it is kept in a block of
    Prefect's, and nowhere else.
    """
    from flows.settle import settle

    settle()
    from flows.deployments import deploy_all

    click.echo("\n".join(deploy_all(pool)))


@click.command()
@click.option("--watch-every", type=click.IntRange(min=10), help="Seconds; those of infra/prefect.yaml if none.")
@click.option("--limit", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at the same time.")
@click.option("--port", default=4200, show_default=True, help="Of the Prefect server that is started.")
def serve(watch_every: int | None, limit: int, port: int) -> None:
    """Do all of it on this machine, until Ctrl-C: Prefect's server, the schedules, and the work.

    Where PREFECT_API_URL names a server, that one is used.
    """
    from flows.serving import serve as served
    from flows.settle import settle

    settle(server=True)
    served(watch_every=watch_every, limit=limit, port=port)
