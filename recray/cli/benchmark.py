"""Benchmarks, each beside what it is compared with."""

import click

from recray.cli.base import PATH, cli, shared
from recray.progress import Console
from recray.reporting import terminal


@cli.command()
@click.argument("name")
@click.option("--quick", is_flag=True, help="Leave out what takes long; under 3 minutes.")
@click.option(
    "--data",
    type=PATH,
    metavar="FOLDER",
    help="quality, search, tune: archives such as ml-100k.zip.",
)
@click.option("--only", metavar="FIGURE", help="quality: one row, such as rmse_1m.")
@click.option("--device", metavar="DEVICE", help="train: cpu (the default) or cuda.")
@shared()
def benchmark(ui: Console, name: str, quick: bool, **options: str | None) -> None:
    """Run the benchmark NAME: evaluate, ingest, quality, scale, search, serve, train or tune.

    \b
    Example:
        recray benchmark ingest --quick
        recray benchmark evaluate --quick
    """
    from recray import benchmarks

    result = benchmarks.run(name, quick, ui.log, **options)
    ui.result(result, terminal.benchmark(name, result))
