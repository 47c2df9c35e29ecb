"""The command line: `redoubt run | evaluate | check | history | compare | verify | ...`; `redoubt --help` lists all."""

import sys
import traceback
from typing import NoReturn

import click

from flows.commands import COMMANDS
from flows.exits import BROKE, EXIT, WRONG_INPUT
from tasks.errors import RedoubtError, WrongInput

RESUMED = ("run", "evaluate", "reattack", "watch", "harden")  # commands that have runs, and go on where they stood
LONGEST = 4000  # characters of a line of a message

__all__ = ["EXIT", "cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redoubt")
def cli() -> None:
    """Redoubt doubts your models again.

    Validate data, train, attack, decide, harden, attack again, promote; every number and artifact in MLflow.
    Exit codes: 0 pass, 1 fail, 2 cannot tell, 3 wrong input, 4 the run broke or was stopped.
    """


for command in COMMANDS:
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line; every error becomes one clear message and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.format_message())
        sys.exit(WRONG_INPUT)  # 0 would say that a model passes
    except click.UsageError as error:
        _fail(error.format_message(), WRONG_INPUT)
    except WrongInput as error:
        _fail(str(error), WRONG_INPUT)
    except RedoubtError as error:
        _fail(str(error), BROKE)
    except (KeyboardInterrupt, click.Abort):
        resumed = next((word for word in sys.argv[1:] if not word.startswith("-")), "") in RESUMED
        goes_on = " The run is marked as killed; the same command goes on from the last checkpoint."
        _fail("stopped." + goes_on * resumed, BROKE)
    except Exception as error:
        _fail(f"the run broke: {type(error).__name__}: {error}\n{_keep_traceback()}", BROKE)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    from tasks.posture.console import plain
    from tasks.redact import redacted

    for line in redacted(message).splitlines():
        click.echo(f"redoubt: {plain(line[:LONGEST])}", err=True)
    sys.exit(code)


def _keep_traceback() -> str:
    from tasks.home import folder
    from tasks.redact import redacted

    told = redacted(traceback.format_exc())
    try:
        path = folder("reports") / "last-traceback.txt"
        path.write_text(told, encoding="utf-8")
    except (RedoubtError, OSError):
        return told
    return f"The traceback is in {path}."


if __name__ == "__main__":
    main()
