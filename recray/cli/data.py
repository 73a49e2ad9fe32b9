"""What one does with raw data: list, fetch, describe."""

import click

from recray.cli.base import Commands, cli, shared, sources
from recray.config import load_settings
from recray.progress import Console
from recray.reporting import terminal


@cli.group(cls=Commands)
def data() -> None:
    """Raw data: list the releases, fetch one, describe what came in."""


@data.command("list")
@shared()
def data_list(ui: Console) -> None:
    """Show the MovieLens releases that are known by name, and which are in the cache.

    \b
    Example:
        recray data list
    """
    from recray.data import movielens

    rows = [vars(r) | {"cached": movielens.is_cached(r.name)} for r in movielens.RELEASES.values()]
    ui.result(
        {"releases": rows, "licence": movielens.LICENCE}, terminal.releases(rows, movielens.LICENCE)
    )


@data.command("fetch")
@click.argument("name", shell_complete=sources)
@shared("mirror")
def data_fetch(ui: Console, name: str, mirror: str | None) -> None:
    """Download the release NAME, compare its sha256, and keep it in the cache (RECRAY_CACHE).

    \b
    Example:
        recray data fetch ml-1m
    """
    from recray.data import movielens

    release = movielens.release(name)
    size = f"{release.bytes / 1e6:,.1f} MB" if release.bytes else "size not known"
    ui.log(f"{name}: {size}, {release.ratings:,} ratings; {movielens.LICENCE}")
    path = movielens.fetch(name, mirror)
    ui.result({"name": name, "path": str(path), "sha256": release.sha256}, str(path))


@data.command("describe")
@click.argument("source", shell_complete=sources)
@shared("columns", "mirror")
def data_describe(ui: Console, source: str, columns: tuple[str, ...], mirror: str | None) -> None:
    """Count what is in SOURCE, or in the folder of a prepared data set.

    \b
    Example:
        recray data describe ml-100k.zip
    """
    from recray.data import describe
    from recray.data.dataset import Prepared
    from recray.data.source import detect_source
    from recray.storage import Folder

    if Folder(source).published():
        facts = describe.describe_prepared(Prepared.open(source))
    else:
        settings = load_settings(overrides=columns)
        with ui.during(f"read {source}"):
            facts = describe.describe_source(detect_source(source, settings, mirror))
    ui.result(facts, terminal.description(facts))
