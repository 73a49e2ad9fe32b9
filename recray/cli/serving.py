"""The commands around the service: serve, key, verify; and similar items."""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from recray.cli.base import cli, shared
from recray.cli.up import wait_for_stop
from recray.errors import CheckFailed, RecrayError
from recray.progress import Console

if TYPE_CHECKING:
    from recray.serving.deployment import Profile
    from recray.serving.guard import LogLevel, ServiceLimits


@cli.command()
@click.argument("bundle")
@click.option("--item", required=True, metavar="ID|TITLE", help="An item of the data set.")
@shared("k")
def similar(ui: Console, bundle: str, item: str, k: int) -> None:
    """Find what is most like an item in a BUNDLE, by the model's vectors.

    \b
    Example:
        recray similar bundles/mse --item 50
        recray similar bundles/mse --item "the shawshank" -k 5
    """
    from recray.inference.recommender import Recommender
    from recray.reporting import terminal
    from recray.serving.registry import resolve_bundle

    recommender = Recommender.open(resolve_bundle(bundle))
    raw = recommender.find_item(item)
    try:
        answer = recommender.similar(raw, k).plain()
    except KeyError:
        raise RecrayError(f"--item {item}: the model was not trained on it") from None
    facts = recommender.item(raw)
    text = f"like {facts.title} ({raw})\n{terminal.recommendations(answer)}"
    ui.result({"item": asdict(facts), **answer}, text)


_LIMIT_OPTIONS = (
    click.option("--api-keys", metavar="FILE", help="Keys made by `recray key`, one a line."),
    click.option(
        "--max-body",
        default=4,
        show_default=True,
        type=click.IntRange(1, 1024),
        metavar="MIB",
        help="Largest body.",
    ),
    click.option(
        "--timeout",
        default=10.0,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Until a request is given up.",
    ),
    click.option(
        "--queue",
        default=64,
        show_default=True,
        type=click.IntRange(min=1),
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
    click.option("--cors", multiple=True, metavar="ORIGIN", help="Pages that may ask; repeatable."),
    click.option(
        "--log",
        default="errors",
        show_default=True,
        type=click.Choice(["errors", "requests", "users"]),
        help="What each replica logs; users adds paths with user ids.",
    ),
)


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ServiceLimits."""
    for option in reversed(_LIMIT_OPTIONS):
        command = option(command)
    return command


def _limits(
    api_keys: str | None,
    max_body: int,
    timeout: float,
    queue: int,
    rate: float,
    cors: tuple[str, ...],
    log: "LogLevel",
) -> "ServiceLimits":
    from recray.serving.auth import load_keys
    from recray.serving.guard import ServiceLimits

    return ServiceLimits(
        load_keys(api_keys), max_body << 20, timeout, queue, rate, cors=cors, log=log
    )


@cli.command()
@click.argument("bundle")
@click.option(
    "--replicas", default=1, show_default=True, type=click.IntRange(min=1), help="Processes."
)
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

    options = ServiceOptions(ratings_log, second, share, shadow)
    running = serving(bundle, host, port, replicas, address, service_limits, profile, options)
    with running as url:
        _show_service(ui, bundle, url)
        wait_for_stop(ui, url)


def _show_service(ui: Console, bundle: str, url: str) -> None:
    from recray.serving.registry import is_registry

    follows = is_registry(bundle)
    text = f"service: {url}  (a page to try it; documentation: {url}/docs)"
    text += f"\nfollows: {bundle}, which `recray registry promote` changes" if follows else ""
    ui.result({"url": url, "bundle": bundle, "follows": follows}, text)


@cli.command()
@click.argument("name")
@click.option("--add-to", metavar="FILE", help="Add its line to this file of keys.")
@shared()
def key(ui: Console, name: str, add_to: str | None) -> None:
    """Make an API key for NAME: shown once, kept as its sha256 alone.

    \b
    Example:
        recray key shop --add-to keys
        recray serve bundles/mse --host 0.0.0.0 --api-keys keys
    """
    from recray.serving.auth import add_line, new_key

    secret, line = new_key(name)
    if add_to is not None:
        add_line(add_to, line)
    ui.result({"key": secret, "line": line}, f"key:  {secret}\nline: {line}")


@cli.command()
@click.argument("url")
@click.argument("bundle")
@click.option(
    "--users", default=500, show_default=True, type=click.IntRange(min=1), help="At most."
)
@shared("k")
def verify(ui: Console, url: str, bundle: str, users: int, k: int) -> None:
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
    result = verification.verify(url, recommender, users, k, key)
    ui.result(result.model_dump())
    if not result.verified:
        raise CheckFailed(f"{url} and {bundle} disagree: {result.differences[0]}")
