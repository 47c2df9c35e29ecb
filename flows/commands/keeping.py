"""Commands that look after what is kept."""

import sys

import click

from flows.exits import BROKE, EXIT


@click.command()
def deliver() -> None:
    """Deliver what runs could not log while MLflow did not answer.

    It lies in the spool, a folder of REDOUBT_HOME, and every command delivers it when the server answers. Exit code 1
    where the server refuses some of it, 4 where some still waits.
    """
    from flows.settle import settle

    settle()
    from tasks.track import patient

    done = patient().left_over  # delivered as by any command, when the server first answered
    click.echo(f"{done}.")
    if done.kept:
        click.echo(f"redoubt: {done.failure}", err=True)
    sys.exit(EXIT["fail"] if done.refused else BROKE if done.kept else 0)
