"""The `recray` command: parse, call one function, print the result. No logic lives here.

Modules that load torch or Ray are imported by the commands that need them, so that `recray --help`
is immediate.
"""

import os
import signal
import sys
from typing import Any

import click

from recray.cli import (  # noqa: F401 - each adds its commands
    benchmark,
    bundles,
    completion,
    data,
    doctor,
    jobs,
    refresh,
    registry,
    report,
    serving,
    stages,
    tune,
    up,
)
from recray.cli.base import cli

__all__ = ["cli", "main"]


def main(command: str | None = None, **defaults: Any) -> None:
    """Entry point; stopped by Ctrl-C it exits with 130.

    Args:
        command: What to run with the arguments of the process; None: the first of them says.
        **defaults: Other defaults for the options of that command.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    known = {} if command is None else {command: defaults}
    try:
        status = cli.main(arguments, "recray", standalone_mode=False, default_map=known)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `recray ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    sys.exit(status if isinstance(status, int) else 0)
