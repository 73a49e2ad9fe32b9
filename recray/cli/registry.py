"""Versions of a bundle: add, list, promote, rollback."""

import click

from recray.cli.base import Commands, cli, shared
from recray.progress import Console
from recray.reporting import terminal


@cli.group(cls=Commands)
def registry() -> None:
    """Versions of a bundle: add, list, promote, rollback."""


@registry.command("add")
@click.argument("path", metavar="REGISTRY")
@click.argument("bundle")
@click.option("--promote", is_flag=True, help="Make it current at once, unless it is worse.")
@shared()
def registry_add(ui: Console, path: str, bundle: str, promote: bool) -> None:
    """Copy a BUNDLE into a REGISTRY; nothing is served from it before it is promoted.

    \b
    Example:
        recray registry add registry bundles/mse --promote
    """
    from recray.serving.registry import Registry

    versions = Registry(path)
    version = versions.add(bundle)
    promotion = versions.promote(version).model_dump() if promote else {}
    ui.result({"registry": path, "version": version, **promotion})


@registry.command("list")
@click.argument("path", metavar="REGISTRY")
@shared()
def registry_list(ui: Console, path: str) -> None:
    """Show the versions of a REGISTRY.

    \b
    Example:
        recray registry list registry
    """
    from recray.serving.registry import Registry

    versions = [entry.model_dump() for entry in Registry(path).versions()]
    columns = ["version", "dataset", "preset", "created", "current"]
    rows = [
        [("*" if v[c] else "") if c == "current" else str(v[c]) for c in columns] for v in versions
    ]
    ui.result({"versions": versions}, terminal.table("", columns, rows))


@registry.command("promote")
@click.argument("path", metavar="REGISTRY")
@click.argument("version")
@click.option("--force", is_flag=True, help="Even if it is worse, or was trained on the hold-out.")
@shared()
def registry_promote(ui: Console, path: str, version: str, force: bool) -> None:
    """Make VERSION current, unless it is worse than the one that is.

    \b
    Example:
        recray registry promote registry 0123456789ab
    """
    from recray.serving.registry import Registry

    ui.result(Registry(path).promote(version, force).model_dump())


@registry.command("rollback")
@click.argument("path", metavar="REGISTRY")
@shared()
def registry_rollback(ui: Console, path: str) -> None:
    """Go back to the version before the current one.

    \b
    Example:
        recray registry rollback registry
    """
    from recray.serving.registry import Registry

    ui.result(Registry(path).rollback().model_dump())
