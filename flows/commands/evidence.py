"""Commands that hold what is kept against what was measured."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.exits import EXIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.metrics.transfer import Transfer
    from tasks.verify import Verified


@click.command()
@click.argument("name")
@click.option("--version", "number", type=click.IntRange(min=1), help="Only this version.")
@click.option(
    "--public-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A PEM file: every evidence must bear a signature of its key.",
)
@click.option(
    "--head", "heads", multiple=True, metavar="SHA", help="Evidence that must be in a chain: keep them elsewhere."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def verify(name: str, number: int | None, public_key: Path | None, heads: tuple[str, ...], as_json: bool) -> None:
    """Recompute the evidence of NAME: every link of every version's chain, every file, the data, the store of cells.

    Names the first thing that does not match. Exit code 1 where anything does not. With a public key the links must
    be signed by it, from a version's first signed one on. The newest digest of each chain is its head: a copy of it
    elsewhere, given with --head, shows that newer evidence was dropped, which nothing in the store can show.
    """
    from flows.settle import settle

    settle()
    from tasks.evaluate import cells
    from tasks.verify import lost_heads, verify_model

    def tell(version: int) -> None:
        click.echo(f"looking at version {version} of {name} ...", err=True)

    found = verify_model(name, number, public_key=public_key, tell=tell)
    broken, lost = list(cells().problems()), lost_heads(found, heads)
    if as_json:
        newest = {each.version: each.chain[0] for each in found if each.chain}
        told = {"versions": [asdict(each) for each in found], "heads": newest, "lost": lost, "cells": broken}
        click.echo(json.dumps(told, indent=2))
    else:
        from tasks.posture.console import plain

        for each in found:
            click.echo(each.says)
            for mismatch in each.mismatches:
                click.echo(plain(f"  does not match: {mismatch}"))
            for note in each.notes:
                click.echo(plain(f"  note: {note}"))
        for mismatch in lost:
            click.echo(plain(f"does not match: {mismatch}"))
        _tell_of_cells(broken)
        _tell_of_signatures(found, checked=public_key is not None)
    sys.exit(EXIT["fail"] if broken or lost or any(each.mismatches for each in found) else 0)


def _tell_of_cells(broken: "Sequence[str]") -> None:
    whole = "every file is whole; whether it is true, `redoubt reproduce RUN` measures again."
    click.echo(f"Cells: {len(broken)} do not match." if broken else f"Cells: {whole}")
    for problem in broken:
        click.echo(f"  does not match: {problem}")


def _tell_of_signatures(found: "Sequence[Verified]", *, checked: bool) -> None:
    links, signed = sum(each.evidences for each in found), sum(each.signed for each in found)
    if links and not signed:
        click.echo("Unsigned: whoever can write to the store can rewrite all of this.")
    elif signed and not checked:
        click.echo("Signatures were not checked, so they tell nothing: give --public-key.")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def reproduce(run_id: str, as_json: bool) -> None:
    """Evaluate again from RUN's evidence alone. Exit code 1 unless the very same samples are fooled."""
    from flows.settle import settle

    settle()
    from tasks.reproduce import reproduce_run

    found = reproduce_run(run_id)
    click.echo(json.dumps(asdict(found) | {"same": found.same}, indent=2) if as_json else "\n".join(found.lines()))
    sys.exit(0 if found.same else EXIT["fail"])


@click.command()
@click.argument("name")
@click.option("--versions", "which", default="all", show_default=True, help="live (with an alias), all, or e.g. 1,2.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def transfer(name: str, which: str, as_json: bool) -> None:
    """Show which version's exploits still work on which: every version's stored examples against every version."""
    from flows.settle import settle

    settle()
    from flows.asked import chosen, which_versions
    from tasks.recall import known_of
    from tasks.replay import transfer_matrix

    found = transfer_matrix(known_of(name), chosen(name, which_versions(which)))
    if as_json:
        click.echo(json.dumps([matrix.model_dump(mode="json") for matrix in found], indent=2))
    else:
        click.echo("\n\n".join(_table(matrix) for matrix in found))


def _table(matrix: "Transfer") -> str:
    """A row for each version whose exploits are tried, a column for each version that they are tried on."""
    lines = [f"{matrix.threat}: of the samples that a version gets right, how many fall to what fooled another"]
    lines.append("exploits of      " + "".join(f"{f'on v{j}':>9}" for j in matrix.versions))
    for i in matrix.versions:
        shares = [matrix.share(i, j) for j in matrix.versions]
        lines.append(f"version {i:<9}" + "".join(f"{'-' if s is None else f'{s.value:.1%}':>9}" for s in shares))
    return "\n".join(lines)
