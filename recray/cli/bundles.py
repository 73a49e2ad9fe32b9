"""What one does with a bundle: evaluate, recommend."""

from typing import Any

import click

from recray import console
from recray.cli.base import cli, shared
from recray.cli.wishes import wish_of, wishes
from recray.console import Console
from recray.data.ids import IdMap, RawId
from recray.errors import RecrayError


@cli.command()
@click.argument("bundle")
@click.option(
    "--prepared", metavar="PREPARED", help="Insist that the bundle comes from this data set."
)
@click.option("-k", multiple=True, type=click.IntRange(min=1), help="Cut-off; may be repeated.")
@click.option("--relevant-from", type=float, metavar="STARS", help="Held-out ratings that count.")
@shared("workers", "address")
def evaluate(
    ui: Console,
    bundle: str,
    prepared: str | None,
    k: tuple[int, ...],
    relevant_from: float | None,
    workers: int,
    address: str,
) -> None:
    """Measure a BUNDLE on its test split; the digits do not depend on --workers.

    \b
    Example:
        recray evaluate bundles/mse --workers 2 -k 10 -k 20
    """
    from recray import pipeline
    from recray.registry import resolve_bundle

    given = {"k": list(k) or None, "relevant_from": relevant_from}
    changes = {name: value for name, value in given.items() if value is not None}
    report = pipeline.evaluate(resolve_bundle(bundle), changes, prepared, workers, address)
    ui.result(report, console.evaluation(report))


@cli.command()
@click.argument("bundle")
@click.option("--user", help="A user of the data set.")
@click.option("--rate", multiple=True, metavar="ITEM=STARS", help="Ratings of somebody new.")
@click.option("--all", "everyone", is_flag=True, help="Every user, as parquet into --out.")
@click.option("--out", metavar="DIR", help="Folder for --all.")
@wishes
@shared("k", "address")
def recommend(
    ui: Console,
    bundle: str,
    user: str | None,
    rate: tuple[str, ...],
    everyone: bool,
    out: str | None,
    k: int,
    address: str,
    **wanted: Any,
) -> None:
    """Recommend from a BUNDLE: to a user, to somebody new, or to everybody.

    \b
    Example:
        recray recommend bundles/mse --user 4
        recray recommend bundles/mse --rate 1=5 --rate 50=4.5
        recray recommend bundles/mse --user 4 --genres Drama --year-from 1990 --why
        recray recommend bundles/mse --all --out lists
    """
    if (user is not None) + bool(rate) + everyone != 1:
        raise RecrayError(
            "give exactly one of --user ID, --rate ITEM=STARS (repeated) and --all --out DIR"
        )
    if everyone and out is None:
        raise RecrayError("--all writes files: give --out DIR")
    ratings = [_parse_rating(text) for text in rate]
    from recray.recommender import Recommender
    from recray.registry import resolve_bundle

    recommender = Recommender.open(resolve_bundle(bundle))
    if everyone:
        if any(wanted.values()):
            raise RecrayError("--all writes plain lists: filters go with --user and --rate")
        from recray import batch

        result = batch.recommend_all(recommender.bundle, str(out), k, address)
        ui.result(result)
        return
    wish = wish_of(wanted, recommender)
    if user is None:
        answer = recommender.recommend_from(_raw_items(recommender.items, ratings), k, wish=wish)
    else:
        try:
            answer = recommender.recommend(recommender.users.parse(user), k, wish=wish)
        except KeyError:
            raise RecrayError(f"no user {user} in {recommender.bundle.config['dataset']}") from None
    ui.result(answer.plain(), console.recommendations(answer.plain()))


def _parse_rating(text: str) -> tuple[str, float]:
    item, _, stars = text.rpartition("=")
    try:
        return item, float(stars)
    except ValueError:
        raise RecrayError(f"--rate {text!r}: write ITEM=STARS, such as 50=4.5") from None


def _raw_items(items: IdMap, ratings: list[tuple[str, float]]) -> list[tuple[RawId, float]]:
    try:
        return [(items.parse(item), stars) for item, stars in ratings]
    except KeyError as error:
        raise RecrayError(
            f"--rate {error.args[0]}=...: the items of this data are numbers"
        ) from None
