"""Everything: `recray up`, then serve; `recray pipeline`, then promote."""

import signal

import click

from recray.cli.base import PATH, SOURCE, cli, default_out, shared, sources
from recray.cli.refresh import train_again
from recray.config import load_settings
from recray.errors import CheckFailed, RecrayError
from recray.progress import Console


def wait_for_stop(ui: Console, url: str) -> None:
    """Sleep until a signal ends the process."""
    ui.log(f"serving on {url}; Ctrl-C stops it")
    signal.pause()


@cli.command()
@click.argument("source", type=SOURCE, shell_complete=sources)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Folder of all outputs.  [default: recray-out/NAME]"
)
@click.option(
    "--registry",
    type=PATH,
    metavar="REGISTRY",
    help="Where it is promoted.  [default: registry in --out]",
)
@click.option("--force", is_flag=True, help="Promote even what is worse than the current version.")
@click.option(
    "--refresh",
    is_flag=True,
    help="Start from the current version, with the ratings it was given: recray refresh.",
)
@shared("preset", "config", "set", "workers", "columns", "mirror", "address")
def pipeline(
    ui: Console,
    source: str,
    out: str | None,
    registry: str | None,
    force: bool,
    refresh: bool,
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    workers: int,
    columns: tuple[str, ...],
    mirror: str | None,
    address: str,
) -> None:
    """Prepare SOURCE, train, measure, and promote what is not worse than the current version.

    A stage whose output is there and matches is skipped, so a broken off pipeline is run again.
    Exit 1 if the new version is worse: it is kept in the registry and not promoted.

    \b
    Example:
        recray pipeline ml-100k --out work/ml-100k --registry registry
        recray serve registry
    """
    if refresh:
        if registry is None or out is None or preset or config or overrides or columns:
            raise RecrayError(
                "--refresh needs --registry and --out, and has the settings of the current "
                "version: leave --preset, --config, --set and --columns out"
            )
        return train_again(ui, source, mirror, registry, out, None, True, force, workers, address)
    settings = load_settings(preset, config, (*overrides, *columns))
    from recray.data.source import detect_source
    from recray.pipelines import stages, summaries

    ui.expect(settings.train.epochs, settings.metric)
    given = detect_source(source, settings, mirror)
    folder = out or default_out(given.name)
    result = stages.release(
        given, folder, settings, registry, force, workers, address, ui.log, ui.epoch
    )
    ui.result(result, summaries.release(result))
    if not result.promoted:
        raise CheckFailed(result.verdict)
    return None


@cli.command()
@click.argument("source", type=SOURCE, shell_complete=sources)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Folder of all outputs.  [default: recray-out/NAME]"
)
@click.option("--once", is_flag=True, help="Serve, check over HTTP, stop and exit.")
@shared("preset", "config", "set", "workers", "host", "port", "columns", "mirror", "address")
def up(
    ui: Console,
    source: str,
    out: str | None,
    once: bool,
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    workers: int,
    host: str,
    port: int,
    columns: tuple[str, ...],
    mirror: str | None,
    address: str,
) -> None:
    """Do everything: prepare SOURCE, train, measure, serve, and check the service.

    \b
    Example:
        recray up sample
        recray up ml-100k --preset dot-mse --once --json
    """
    settings = load_settings(preset, config, (*overrides, *columns))
    from recray.data.source import detect_source
    from recray.pipelines import stages, summaries

    ui.expect(settings.train.epochs, settings.metric)
    ratings = detect_source(source, settings, mirror)
    running = stages.up(
        ratings,
        out or default_out(ratings.name),
        settings,
        workers,
        host,
        port,
        address,
        ui.log,
        ui.epoch,
    )
    with running as result:
        ui.result(result, summaries.up(result))
        if not result.verified:
            raise CheckFailed("the service and the bundle disagree; see verification in --json")
        if not once:
            wait_for_stop(ui, result.url)
