"""What one does with a bundle: recommend, explain, similar."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from recray.cli.base import PATH, cli, options, shared
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import terminal

if TYPE_CHECKING:
    from recray.inference.catalog import Filters
    from recray.inference.raw_ratings import RawRatings
    from recray.inference.recommender import Recommender


_YEAR = click.IntRange(1, 9999)
_filter_options = options(
    click.option("--genres", multiple=True, metavar="NAME", help="At least one; repeatable."),
    click.option("--not-genres", multiple=True, metavar="NAME", help="None; repeatable."),
    click.option("--year-from", type=_YEAR, metavar="YEAR", help="First year."),
    click.option("--year-to", type=_YEAR, metavar="YEAR", help="Last year."),
    click.option("--exclude", multiple=True, metavar="ITEM", help="Not this; repeatable."),
    click.option(
        "--min-popularity",
        type=click.IntRange(min=0),
        metavar="N",
        help="Fewest training ratings.",
    ),
    click.option(
        "--diversity",
        type=click.FloatRange(0, 1),
        metavar="0..1",
        help="0 by score alone, 1 as varied as can be.",
    ),
    click.option("--why", is_flag=True, help="Name the rated items behind each."),
)


def _filters(
    recommender: "Recommender", exclude: Sequence[str] = (), why: bool = False, **filters: Any
) -> "Filters":
    """Make the recommender's filters of the values of the options.

    Raises:
        RecrayError: An id to exclude is a text, and the data set has numbers.
    """
    from recray.inference.catalog import Filters

    ids = []
    for text in exclude:
        try:
            ids.append(recommender.items.parse(text))
        except KeyError:
            raise RecrayError(f"--exclude {text}: the items of this data are numbers") from None
    used = {name: value for name, value in filters.items() if value}
    return Filters(exclude=ids, explain=why, **used)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--user", help="A user of the data set.")
@click.option("--rate", multiple=True, metavar="ITEM=STARS", help="Ratings of somebody new.")
@click.option(
    "--item", multiple=True, metavar="ID|TITLE", help="What somebody new took, the last one last."
)
@click.option("--all", "everyone", is_flag=True, help="Every user, as parquet into --out.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder for --all.")
@_filter_options
@shared("k", "address")
def recommend(
    ui: Console,
    bundle: str,
    user: str | None,
    rate: tuple[str, ...],
    item: tuple[str, ...],
    everyone: bool,
    out: str | None,
    k: int | None,
    address: str,
    **filters: Any,
) -> None:
    """Recommend from a BUNDLE: to a user, to somebody new, or to everybody.

    \b
    Example:
        recray recommend bundles/mse --user 4
        recray recommend bundles/mse --rate 1=5 --rate 50=4.5
        recray recommend bundles/next --item 1 --item "the shawshank" --why
        recray recommend bundles/mse --user 4 --genres Drama --year-from 1990 --why
        recray recommend bundles/mse --all --out lists
    """
    if (user is not None) + bool(rate) + bool(item) + everyone != 1:
        ways = "--user ID, --rate ITEM=STARS or --item ID|TITLE (repeated), and --all --out DIR"
        raise RecrayError(f"give exactly one of {ways}")
    if everyone and out is None:
        raise RecrayError("--all writes files: give --out DIR")
    ratings = [_parse_rating(text) for text in rate] or [(text, None) for text in item]
    recommender = _recommender(bundle)
    if everyone:
        if any(filters.values()):
            raise RecrayError("--all writes plain lists: filters go with --user, --rate and --item")
        return _recommend_all(ui, recommender, str(out), k, address)
    chosen = _filters(recommender, **filters)
    if user is None:
        answer = recommender.recommend_from(_found(recommender, ratings), k, filters=chosen)
    else:
        answer = recommender.recommend(_known_user(recommender, user), k, filters=chosen)
    return ui.result(answer.plain(), terminal.recommendations(answer))


def _recommend_all(
    ui: Console, recommender: "Recommender", out: str, k: int | None, address: str
) -> None:
    from recray.inference import batch

    with ui.during(f"lists of everybody into {out}"):
        lists = batch.recommend_all(recommender.bundle, out, k, address, ui.log)
    ui.result(asdict(lists), terminal.lists(lists))


def _recommender(bundle: str) -> "Recommender":
    """Open a bundle, or the current version of a registry."""
    from recray.inference.recommender import Recommender
    from recray.serving.registry import resolve_bundle

    return Recommender.open(resolve_bundle(bundle))


def _known_user(recommender: "Recommender", user: str) -> RawId:
    """The raw id of a user of the data set.

    Raises:
        RecrayError: There is no such user.
    """
    with contextlib.suppress(KeyError):
        raw = recommender.users.parse(user)
        if recommender.users.encode_one(raw) >= 0:
            return raw
    raise RecrayError(f"no user {user} in {recommender.bundle.config['dataset']}")


def _found(recommender: "Recommender", ratings: Sequence[tuple[str, float | None]]) -> "RawRatings":
    """Ratings of items that are named by id or title.

    Raises:
        RecrayError: The data set has no such item.
    """
    from recray.inference.raw_ratings import RawRating

    return [RawRating(recommender.find_item(text), stars) for text, stars in ratings]


def _parse_rating(text: str) -> tuple[str, float | None]:
    item, _, stars = text.rpartition("=")
    try:
        return item, float(stars)
    except ValueError:
        raise RecrayError(f"--rate {text!r}: write ITEM=STARS, such as 50=4.5") from None


@cli.command()
@click.argument("bundle")
@click.option("--user", required=True, help="A user of the data set.")
@shared("k")
def explain(ui: Console, bundle: str, user: str, k: int | None) -> None:
    """Show what a user of a BUNDLE rated best, is recommended, and rated in the test split.

    \b
    Example:
        recray explain bundles/mse --user 4
    """
    from recray.inference.inspect_user import inspect_user

    recommender = _recommender(bundle)
    k = recommender.check_k(k)
    result = inspect_user(recommender, _known_user(recommender, user), k)
    ui.result(asdict(result), terminal.explanation(result, k))


@cli.command()
@click.argument("bundle")
@click.option("--item", required=True, metavar="ID|TITLE", help="An item of the data set.")
@shared("k")
def similar(ui: Console, bundle: str, item: str, k: int | None) -> None:
    """Find what is most like an item in a BUNDLE, by the model's vectors.

    \b
    Example:
        recray similar bundles/mse --item 50
        recray similar bundles/mse --item "the shawshank" -k 5
    """
    from recray.inference.inspect_user import SimilarItems

    recommender = _recommender(bundle)
    raw = recommender.find_item(item)
    try:
        answer = recommender.similar(raw, k)
    except KeyError:
        raise RecrayError(f"--item {item}: the model was not trained on it") from None
    facts = recommender.item(raw)
    text = f"like {facts.title} ({raw})\n{terminal.recommendations(answer)}"
    result = SimilarItems(facts, answer.items, answer.source, answer.model_version)
    ui.result(asdict(result), text)
