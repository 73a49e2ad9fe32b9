"""The `recray` command: parse, call one function, print the result. No logic lives here."""

from recray.cli import (  # noqa: F401 - each adds its commands
    bundles,
    cluster,
    evaluation,
    pipelines,
    serving,
    stages,
    tune,
)
from recray.cli.base import cli, main

__all__ = ["cli", "main"]
