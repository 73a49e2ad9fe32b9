"""What one does with a bundle: evaluate, recommend, explain, similar."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from pydantic import JsonValue

from recray.cli.base import PATH, SOURCE, Recipe, cli, default_out, options, shared
from recray.data.ids import IdMap, RawId
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import terminal

if TYPE_CHECKING:
    from recray.evaluation.protocol import Kind
    from recray.inference.catalog import Filters
    from recray.inference.recommender import Recommender


@cli.command()
@click.argument("bundle", type=SOURCE)
@click.option(
    "--prepared",
    type=PATH,
    metavar="PREPARED",
    help="Insist that the bundle comes from this data set.",
)
@click.option("-k", multiple=True, type=click.IntRange(min=1), help="Cut-off; may be repeated.")
@click.option("--relevant-from", type=float, metavar="STARS", help="Held-out ratings that count.")
@click.option(
    "--baselines", metavar="NAME,...", help="Of popularity, bias-only, item-knn and ease."
)
@click.option(
    "--slices",
    is_flag=True,
    help="Show groups of users and of items as well; --json has them always.",
)
@click.option(
    "--among",
    default="all",
    show_default=True,
    type=click.Choice(["all", "rated"]),
    help="rated: rank only what the user has rated; not honest.",
)
@click.option(
    "--protocol",
    default="full",
    show_default=True,
    type=click.Choice(["full", "sampled"]),
    help="sampled: rank among candidates from a file, as papers do.",
)
@click.option(
    "--negatives", type=PATH, metavar="FILE", help="sampled: csv of user,item in raw ids."
)
@click.option("--kfold", type=click.IntRange(min=2), help="Train and measure so many folds.")
@click.option("--folds", metavar="u1,u2,...", help="The same on given u1.base, u1.test, ...")
@click.option("--seeds", type=click.IntRange(min=1), help="The same with so many seeds.")
@click.option("--refit", is_flag=True, help="Folds: train again on train + valid first.")
@click.option(
    "--out", type=PATH, metavar="DIR", help="Of the folds.  [default: recray-out/folds-NAME]"
)
@shared("recipe", "workers", "address")
def evaluate(
    ui: Console,
    bundle: str,
    kfold: int | None,
    folds: str | None,
    seeds: int | None,
    refit: bool,
    out: str | None,
    recipe: Recipe,
    address: str,
    **of_bundle: Any,
) -> None:
    """Measure a BUNDLE on its test split; the digits do not depend on --workers.

    With --kfold, --folds or --seeds BUNDLE is a SOURCE, and the recipe is trained on every fold.

    \b
    Example:
        recray evaluate bundles/mse --workers 2 -k 10 -k 20
        recray evaluate bundles/mse --baselines popularity,item-knn,ease --slices
        recray evaluate bundles/mse --protocol sampled --negatives candidates.csv
        recray evaluate ml-100k --preset rating --folds u1,u2,u3,u4,u5 --set split.valid=0
    """
    ways = {"--kfold": kfold, "--folds": folds, "--seeds": seeds}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) > 1:
        raise RecrayError(f"{' and '.join(chosen)} exclude each other: give one")
    if not chosen:
        if refit or out or recipe != Recipe():
            raise RecrayError("--refit, --out, --preset, --config and --set go with folds or seeds")
        return _evaluate_bundle(ui, bundle, address, **of_bundle)
    _refuse_those_of_a_bundle(chosen[0], of_bundle)
    settings = recipe.settings()
    from recray.pipelines import repetition

    repeated = repetition.repetitions(settings, kfold, _names(folds), seeds)
    base = bundle.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    folder = out or default_out(f"folds-{base}")
    result = repetition.run(bundle, repeated, folder, refit, address, ui.log)
    return ui.result(result, result.text())


def _evaluate_bundle(
    ui: Console,
    bundle: str,
    address: str,
    prepared: str | None,
    k: tuple[int, ...],
    relevant_from: float | None,
    baselines: str | None,
    slices: bool,
    among: str,
    protocol: "Kind",
    negatives: str | None,
    workers: int,
) -> None:
    from recray.evaluation.protocol import Protocol
    from recray.pipelines import stages
    from recray.serving.registry import resolve_bundle

    if among == "rated" and protocol == "sampled":
        raise RecrayError("--among rated and --protocol sampled exclude each other: give one")
    changes: dict[str, JsonValue] = {"k": [*k]} if k else {}
    if relevant_from is not None:
        changes["relevant_from"] = relevant_from
    kind = "rated" if among == "rated" else protocol
    path = resolve_bundle(bundle)
    with ui.during(f"measure {path} on its test split"):
        measured = Protocol(_names(baselines), kind, negatives)
        report = stages.evaluate(path, changes, prepared, workers, address, measured)
    ui.result(report.plain(), terminal.evaluation(report, slices))


def _refuse_those_of_a_bundle(way: str, of_bundle: Iterable[str]) -> None:
    """Folds are measured as training measures, and by one worker each."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in of_bundle if source(name) == ParameterSource.COMMANDLINE]
    if given:
        words = " and ".join("-k" if n == "k" else f"--{n.replace('_', '-')}" for n in given)
        raise RecrayError(
            f"{words}: of a BUNDLE only; {way} takes settings, such as --set evaluate.k=20"
        )


def _names(written: str | None) -> tuple[str, ...] | None:
    """Names between commas; None where the option is not given."""
    if written is None:
        return None
    return tuple(name.strip() for name in written.split(",") if name.strip())


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
@click.option("--all", "everyone", is_flag=True, help="Every user, as parquet into --out.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder for --all.")
@_filter_options
@shared("k", "address")
def recommend(
    ui: Console,
    bundle: str,
    user: str | None,
    rate: tuple[str, ...],
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
    recommender = _recommender(bundle)
    if everyone:
        if any(filters.values()):
            raise RecrayError("--all writes plain lists: filters go with --user and --rate")
        return _recommend_all(ui, recommender, str(out), k, address)
    chosen = _filters(recommender, **filters)
    if user is None:
        new = _raw_items(recommender.items, ratings)
        answer = recommender.recommend_from(new, k, filters=chosen)
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
