"""--workers: where a command's work goes, said to everything that the command starts."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tasks.workers import WORKERS, check_workers

Command = TypeVar("Command", bound=Callable[..., Any])


def workers_option(command: Command) -> Command:
    """The command with --workers, which wins over REDOUBT_WORKERS and is checked before anything starts."""
    return click.option(
        "--workers",
        envvar=WORKERS,
        expose_value=False,
        callback=_use,
        help="Attack on 4 processes, on dask or ray here, or on dask=tcp://host:8786, ray=ray://host:10001.",
    )(command)


def _use(context: click.Context, option: click.Parameter, words: str | None) -> None:  # noqa: ARG001
    if words and words.strip() not in ("", "1"):
        check_workers(words.strip())
    if words is not None:
        os.environ[WORKERS] = words
