"""The command that takes scheduled and queued runs from a Prefect server."""

import click


@click.command()
@click.option("--pool", default="redoubt", show_default=True, help="The work pool; made where it is absent.")
@click.option("--limit", default=1, show_default=True, help="Runs at once. Each gets its share of the cores.")
@click.option("--name", help="What the server calls this worker.")
def worker(pool: str, limit: int, name: str | None) -> None:
    """Take runs from a work pool of the server that PREFECT_API_URL names, until Ctrl-C.

    Every run has a process of its own, with everything loaded already.
    """
    from flows.commands.running import show_steps
    from flows.settle import settle

    settle()
    show_steps()
    from flows.worker import work

    work(pool, limit=limit, name=name)
