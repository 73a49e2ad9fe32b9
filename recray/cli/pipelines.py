"""Several stages in a row: `recray up`, `recray pipeline` and `recray refresh`."""

from typing import TYPE_CHECKING, Any

import click

from recray.cli.base import (
    PATH,
    SOURCE,
    Recipe,
    cli,
    default_out,
    shared,
    sources,
    wait_for_stop,
)
from recray.config import Settings
from recray.errors import CheckFailed, RecrayError
from recray.progress import Console
from recray.runtime.worker_range import WorkerRange

if TYPE_CHECKING:
    from recray.data.source import Source
    from recray.pipelines.stages import Stages


def _open(
    ui: Console,
    source: str,
    mirror: str | None,
    settings: Settings,
    out: str | None,
    workers: WorkerRange,
    address: str,
    final_fit: bool,
) -> "tuple[Source, Stages]":
    """Look at the source, and set up the stages that are shown on the console."""
    from recray.data.source import detect_source
    from recray.pipelines.stages import Stages
    from recray.storage import Folder
    from recray.training.export import Fits

    ratings = detect_source(source, settings, mirror)
    folder = Folder(out or default_out(ratings.name))
    fits: Fits = "final" if final_fit else "none"
    return ratings, Stages(folder, settings, workers, address, ui.log, ui.epoch, fits, ui.expect)


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
@shared("recipe", "worker_range", "final_fit", "columns", "mirror", "address")
def pipeline(
    ui: Console,
    source: str,
    out: str | None,
    registry: str | None,
    force: bool,
    refresh: bool,
    recipe: Recipe,
    workers: WorkerRange,
    final_fit: bool,
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
        if registry is None or out is None or recipe != Recipe():
            raise RecrayError(
                "--refresh needs --registry and --out, and has the settings of the current "
                "version: leave --preset, --config, --set and --columns out"
            )
        return train_again(
            ui, source, mirror, registry, out, None, True, force, workers, address, final_fit
        )
    ratings, stages = _open(ui, source, mirror, recipe.settings(), out, workers, address, final_fit)
    from recray.pipelines.stages import release

    result = release(ratings, stages, registry, force)
    ui.result(result, result.text())
    if not result.promoted:
        raise CheckFailed(result.verdict)
    return None


@cli.command()
@click.argument("source", type=SOURCE, shell_complete=sources)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Folder of all outputs.  [default: recray-out/NAME]"
)
@click.option("--once", is_flag=True, help="Serve, check over HTTP, stop and exit.")
@shared("recipe", "worker_range", "final_fit", "host", "port", "columns", "mirror", "address")
def up(
    ui: Console,
    source: str,
    out: str | None,
    once: bool,
    recipe: Recipe,
    workers: WorkerRange,
    final_fit: bool,
    host: str,
    port: int,
    mirror: str | None,
    address: str,
) -> None:
    """Do everything: prepare SOURCE, train, measure, serve, and check the service.

    \b
    Example:
        recray up sample
        recray up ml-100k --preset dot-mse --once --json
    """
    ratings, stages = _open(ui, source, mirror, recipe.settings(), out, workers, address, final_fit)
    from recray.pipelines.stages import up as run_all

    with run_all(ratings, stages, host, port) as result:
        ui.result(result, result.text())
        if not result.verified:
            raise CheckFailed("the service and the bundle disagree; see verification in --json")
        if not once:
            wait_for_stop(ui, result.url)


@cli.command()
@click.argument("registry", type=PATH, metavar="REGISTRY")
@click.argument("source", type=SOURCE)
@click.option(
    "--out", required=True, type=PATH, metavar="DIR", help="Folder of data, runs and bundles."
)
@click.option(
    "--ratings-log", type=PATH, metavar="DIR", help="The log.  [default: the registry's own]"
)
@click.option("--no-full", is_flag=True, help="Do not train from nothing to compare.")
@click.option("--force", is_flag=True, help="Promote even what is worse.")
@shared("worker_range", "final_fit", "mirror", "address")
def refresh(
    ui: Console,
    registry: str,
    source: str,
    out: str,
    ratings_log: str | None,
    no_full: bool,
    force: bool,
    workers: WorkerRange,
    final_fit: bool,
    mirror: str | None,
    address: str,
) -> None:
    """Train the live version of REGISTRY again on SOURCE and the ratings log.

    It starts from the live version: known users and films keep what was learned, new users are
    folded in first. Beside it a model is trained from nothing; the one that validates better is
    compared with the live version on the live one's hold-out, and promoted unless it is worse
    (exit 1: it is kept in the registry).

    \b
    Example:
        recray refresh registry ml-1m.zip --out refreshed
    """
    full = not no_full
    train_again(
        ui, source, mirror, registry, out, ratings_log, full, force, workers, address, final_fit
    )


def train_again(
    ui: Console,
    source: str,
    mirror: str | None,
    registry: str,
    out: str,
    *wanted: Any,
) -> None:
    """Refresh and tell of it; `wanted` holds the further fields of a RefreshRequest, in order."""
    from recray.data.source import detect_source
    from recray.pipelines import refresh as refreshing

    ratings = detect_source(source, refreshing.live_settings(registry), mirror)
    result = refreshing.refresh(ratings, refreshing.RefreshRequest(registry, out, *wanted), ui.log)
    ui.result(result, result.text())
    if not result.promoted:
        raise CheckFailed(result.verdict)
