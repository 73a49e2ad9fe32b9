"""The service and what it serves: serve, key, verify, and the versions of a registry."""

import os
from typing import TYPE_CHECKING, Any

import click

from recray.cli import results
from recray.cli.base import Commands, cli, number, options, shared, wait_for_stop
from recray.errors import CheckFailed
from recray.progress import Console
from recray.reporting import terminal

if TYPE_CHECKING:
    from recray.serving.deployment import Profile
    from recray.serving.options import ServiceLimits


_limit_options = options(
    click.option("--api-keys", metavar="FILE", help="Keys made by `recray key`, one a line."),
    number(
        "--max-body", default=1, range=click.IntRange(1, 1024), metavar="MIB", help="Largest body."
    ),
    number(
        "--timeout",
        default=10.0,
        range=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Until a request is given up.",
    ),
    number(
        "--budget",
        default=1.0,
        range=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Of a processor that one request may take.",
    ),
    number(
        "--queue",
        default=64,
        range=click.IntRange(min=1),
        metavar="N",
        help="Requests at once in each replica.",
    ),
    click.option(
        "--rate",
        default=0.0,
        show_default="no limit",
        type=click.FloatRange(min=0),
        metavar="N",
        help="Requests a second of each key in each replica.",
    ),
    number(
        "--ratings-per-day",
        default=100_000,
        range=click.IntRange(min=0),
        metavar="N",
        help="Ratings that a key may keep in a day in each replica; 0: no limit.",
    ),
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="NAME",
        help="Name of this service, where it has no keys; repeatable.",
    ),
    click.option("--cors", multiple=True, metavar="ORIGIN", help="Pages that may ask; repeatable."),
    click.option(
        "--log",
        default="errors",
        show_default=True,
        type=click.Choice(["errors", "requests", "users"]),
        help="What each replica logs; users adds paths with user ids.",
    ),
)


def _limits(
    api_keys: str | None,
    max_body: int,
    **others: Any,
) -> "ServiceLimits":
    """The limits: those with a unit of their own, and the others by their names."""
    from recray.serving.auth import load_keys
    from recray.serving.options import ServiceLimits

    return ServiceLimits(load_keys(api_keys), max_body << 20, **others)


@cli.command()
@click.argument("bundle")
@number("--replicas", default=1, range=click.IntRange(min=1), help="Processes.")
@click.option(
    "--profile",
    default="laptop",
    show_default=True,
    type=click.Choice(["laptop", "production"]),
    help="production: HAProxy, several times as fast; it binds every interface.",
)
@click.option(
    "--ratings-log", metavar="DIR", help="Where ratings are kept.  [default: in the registry]"
)
@click.option("--second", metavar="BUNDLE", help="Another model of the same data, to compare.")
@click.option(
    "--share",
    default=0.0,
    show_default=True,
    type=float,
    metavar="0..1",
    help="Users that the second model answers, always the same ones.",
)
@click.option("--shadow", is_flag=True, help="Give the second model a copy of the requests.")
@_limit_options
@shared("host", "port", "address")
def serve(
    ui: Console,
    bundle: str,
    replicas: int,
    profile: "Profile",
    ratings_log: str | None,
    second: str | None,
    share: float,
    shadow: bool,
    host: str,
    port: int,
    address: str,
    **limits: Any,
) -> None:
    """Serve a BUNDLE, or what is current in a registry, until Ctrl-C.

    A registry is followed: after `recray registry promote` or `rollback` the other version
    answers, and no request fails meanwhile.

    Other machines are let in with --host, and only with keys: --api-keys FILE, or the lines of such
    a file in RECRAY_API_KEYS.

    \b
    Example:
        recray serve bundles/mse --port 8000
        recray serve registry --replicas 2
        recray serve registry --second bundles/other --share 0.1
        recray serve bundles/mse --host 0.0.0.0 --api-keys keys --rate 50
    """
    service_limits = _limits(**limits)
    from recray.serving.deployment import serving
    from recray.serving.options import ServiceOptions

    more = ServiceOptions(ratings_log, second, share, shadow)
    running = serving(bundle, host, port, replicas, address, service_limits, profile, more)
    with running as url:
        _show_service(ui, bundle, url)
        wait_for_stop(ui, url)


def _show_service(ui: Console, bundle: str, url: str) -> None:
    from recray.inference.bundle import has_learned_all
    from recray.serving.registry import is_registry, resolve_bundle
    from recray.storage import Folder

    follows = is_registry(bundle)
    text = f"service: {url}  (a page to try it; documentation: {url}/docs)"
    text += f"\nfollows: {bundle}, which `recray registry promote` changes" if follows else ""
    if not has_learned_all(Folder(resolve_bundle(bundle))):
        text += "\nno final fit: this is the measured model, which has not learned from all ratings"
    ui.result(results.StartedService(url=url, bundle=bundle, follows=follows), text)


@cli.command()
@click.argument("name")
@click.option("--add-to", metavar="FILE", help="Add its line to this file of keys.")
@click.option("--user", metavar="ID", help="Keep and take back the ratings of this user alone.")
@shared()
def key(ui: Console, name: str, add_to: str | None, user: str | None) -> None:
    """Make an API key for NAME: shown once, kept as its sha256 alone.

    \b
    Example:
        recray key shop --add-to keys
        recray serve bundles/mse --host 0.0.0.0 --api-keys keys
    """
    from recray.serving.auth import add_line, new_key

    secret, line = new_key(name, user)
    if add_to is not None:
        add_line(add_to, line)
    ui.result(results.NewKey(key=secret, line=line), f"key:  {secret}\nline: {line}")


@cli.command()
@click.argument("url")
@click.argument("bundle")
@number("--users", default=500, range=click.IntRange(min=1), help="At most.")
@shared("k")
def verify(ui: Console, url: str, bundle: str, users: int, k: int | None) -> None:
    """Replay a BUNDLE's test users at URL and compare; exit 1 if anything differs.

    A service that asks for a key gets the one in RECRAY_API_KEY.

    \b
    Example:
        recray verify http://127.0.0.1:8000 bundles/mse
    """
    from recray.inference.recommender import Recommender
    from recray.serving import verify as verification
    from recray.serving.registry import resolve_bundle

    recommender = Recommender.open(resolve_bundle(bundle))
    key = os.environ.get(verification.KEY_VARIABLE)
    k = recommender.check_k(None) if k is None else k
    result = verification.verify(url, recommender, users, k, key)
    ui.result(result)
    if not result.verified:
        raise CheckFailed(f"{url} and {bundle} disagree: {result.differences[0]}")


@cli.command()
@click.argument("user")
@click.argument("path", metavar="REGISTRY")
@click.option(
    "--ratings-log", metavar="DIR", help="The log.  [default: the registry's own, if it has one]"
)
@shared()
def forget(ui: Console, user: str, path: str, ratings_log: str | None) -> None:
    """Remove a USER from a REGISTRY: from its ratings log, from all releases and their hold-outs.

    Every release is written again without the user, under a new version, and the old ones are
    deleted, so `rollback` goes back to releases that do not know the user either. Running services
    follow within a second. The registry then refuses data and bundles that hold the user again:
    remove the user from the source before the next refresh. What items have learned from the
    user's ratings stays until then.

    \b
    Example:
        recray forget 196 registry
    """
    from recray.serving import forget as forgetting

    done = forgetting.forget(path, user, ratings_log)
    ui.result(done, done.text())


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
    added = results.AddedVersion.model_validate({"registry": path, "version": version, **promotion})
    ui.result(added.model_dump(exclude_unset=True))


@registry.command("list")
@click.argument("path", metavar="REGISTRY")
@shared()
def registry_list(ui: Console, path: str) -> None:
    """Show the versions of a REGISTRY.

    \b
    Example:
        recray registry list registry
    """
    from recray.serving.registry import Registry, VersionList

    found = Registry(path).versions()
    rows = [
        [v.version, v.dataset or "", v.preset or "", v.created or "", "*" if v.current else ""]
        for v in found
    ]
    columns = ["version", "dataset", "preset", "created", "current"]
    ui.result(VersionList(versions=found), terminal.table("", columns, rows))
    for one in found:
        if one.unreadable is not None:
            ui.log(f"{one.version} cannot be read: {one.unreadable}")


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

    ui.result(Registry(path).promote(version, force))


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

    ui.result(Registry(path).rollback())
