"""The `recray` command: parse, call one function, print the result. No logic lives here.

Modules that load torch or Ray are imported by the commands that need them, so that `recray --help`
is immediate.
"""

import os
import signal
import sys

import click

from recray.cli import (  # noqa: F401 - each adds its commands
    benchmark,
    bundles,
    data,
    refresh,
    registry,
    serving,
    stages,
    tune,
    up,
)
from recray.cli.base import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Entry point; stopped by Ctrl-C it exits with 130."""
    try:
        status = cli.main(standalone_mode=False)
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
