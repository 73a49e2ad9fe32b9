"""`recray refresh`: train again with what was rated meanwhile."""

from typing import Any

import click

from recray.cli.base import PATH, SOURCE, cli, shared
from recray.errors import CheckFailed
from recray.progress import Console


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
@shared("workers", "mirror", "address")
def refresh(
    ui: Console,
    registry: str,
    source: str,
    out: str,
    ratings_log: str | None,
    no_full: bool,
    force: bool,
    workers: int,
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
    train_again(
        ui, source, mirror, registry, out, ratings_log, not no_full, force, workers, address
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
    from recray.pipelines import summaries

    ratings = detect_source(source, refreshing.live_settings(registry), mirror)
    result = refreshing.refresh(ratings, refreshing.RefreshRequest(registry, out, *wanted), ui.log)
    ui.result(result, summaries.refreshed(result))
    if not result.promoted:
        raise CheckFailed(result.verdict)
