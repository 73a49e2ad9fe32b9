"""`recray doctor`: is this cluster fit for the work?"""

import click

from recray.cli.base import cli, shared
from recray.progress import Console


@cli.command()
@click.option("--storage", metavar="DIR", help="Folder or URI of outputs.  [default: this folder]")
@click.option("--data", metavar="SOURCE", help="Data set that the memory is to hold.")
@shared("workers", "port", "address")
def doctor(
    ui: Console, storage: str | None, data: str | None, workers: int, port: int, address: str
) -> None:
    """Check versions, storage, data, ports, token, dashboard, GPUs and memory of every node.

    Exit 1 if there is a problem; each line says what to do.

    \b
    Example:
        recray doctor
        recray doctor --address 10.0.0.5:6379 --storage /mnt/shared --data ml-25m --workers 4
    """
    from recray.pipelines import doctor as checks
    from recray.pipelines import summaries

    found = checks.examine(checks.Plan(storage, data, workers, port), address)
    rows = [vars(finding) for finding in found]
    problems = sum(row["level"] == "problem" for row in rows)
    ui.result({"problems": problems, "checks": rows}, summaries.findings(found))
    click.get_current_context().exit(1 if problems else 0)
