"""What one does with a bundle: evaluate, recommend, explain."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from recray.cli.base import PATH, SOURCE, cli, default_out, shared
from recray.cli.filter_options import filter_options, parse_filters
from recray.config import Settings, load_settings
from recray.data.ids import IdMap, RawId
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import terminal

if TYPE_CHECKING:
    from recray.pipelines.crossvalidation import FoldsReport


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
@shared("preset", "config", "set", "workers", "address")
def evaluate(
    ui: Console,
    bundle: str,
    prepared: str | None,
    k: tuple[int, ...],
    relevant_from: float | None,
    baselines: str | None,
    slices: bool,
    among: str,
    protocol: Literal["full", "sampled"],
    negatives: str | None,
    kfold: int | None,
    folds: str | None,
    seeds: int | None,
    refit: bool,
    out: str | None,
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    workers: int,
    address: str,
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
    chosen_ways = [name for name, value in ways.items() if value is not None]
    if len(chosen_ways) > 1:
        raise RecrayError(f"{' and '.join(chosen_ways)} exclude each other: give one")
    if chosen_ways:
        _refuse_those_of_a_bundle(chosen_ways[0])
        settings = load_settings(preset, config, overrides)
        result = measure_folds(
            ui, bundle, settings, kfold, _names(folds), seeds, refit, out, address
        )
        from recray.pipelines import summaries

        ui.result(result, summaries.folds(result))
        return
    if refit or out or preset or config or overrides:
        raise RecrayError("--refit, --out, --preset, --config and --set go with folds or seeds")
    from recray.evaluation.protocol import Kind, Protocol
    from recray.pipelines import stages
    from recray.serving.registry import resolve_bundle

    given = {"k": list(k) or None, "relevant_from": relevant_from}
    changes = {name: value for name, value in given.items() if value is not None}
    if among == "rated" and protocol == "sampled":
        raise RecrayError("--among rated and --protocol sampled exclude each other: give one")
    kind: Kind = "rated" if among == "rated" else protocol
    chosen = Protocol(_names(baselines), kind, negatives)
    path = resolve_bundle(bundle)
    with ui.during(f"measure {path} on its test split"):
        report = stages.evaluate(path, changes, prepared, workers, address, chosen)
    ui.result(report.plain(), terminal.evaluation(report, slices))


def _refuse_those_of_a_bundle(way: str) -> None:
    """Folds are measured as training measures, and by one worker each."""
    source = click.get_current_context().get_parameter_source
    own = ("k", "relevant_from", "baselines", "slices", "among", "protocol", "negatives")
    given = [n for n in (*own, "prepared", "workers") if source(n) == ParameterSource.COMMANDLINE]
    if given:
        words = " and ".join("-k" if n == "k" else f"--{n.replace('_', '-')}" for n in given)
        raise RecrayError(
            f"{words}: of a BUNDLE only; {way} takes settings, such as --set evaluate.k=20"
        )


def measure_folds(
    ui: Console,
    source: str,
    settings: Settings,
    kfold: int | None,
    names: tuple[str, ...] | None,
    seeds: int | None,
    refit: bool,
    out: str | None,
    address: str,
) -> "FoldsReport":
    """Train and measure the recipe on every fold or seed of a source."""
    from recray.pipelines import crossvalidation

    if kfold is not None:
        folds = crossvalidation.kfold(settings, kfold)
    elif names is not None:
        folds = crossvalidation.given_folds(settings, list(names))
    else:
        folds = crossvalidation.seeds(settings, seeds or 1)
    base = source.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    folder = out or default_out(f"folds-{base}")
    return crossvalidation.run(source, folds, folder, refit, address, ui.log)


def _names(written: str | None) -> tuple[str, ...] | None:
    """Names between commas; None where the option is not given."""
    if written is None:
        return None
    return tuple(name.strip() for name in written.split(",") if name.strip())


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--user", help="A user of the data set.")
@click.option("--rate", multiple=True, metavar="ITEM=STARS", help="Ratings of somebody new.")
@click.option("--all", "everyone", is_flag=True, help="Every user, as parquet into --out.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder for --all.")
@filter_options
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
    from recray.inference.recommender import Recommender
    from recray.serving.registry import resolve_bundle

    recommender = Recommender.open(resolve_bundle(bundle))
    if everyone:
        if any(filters.values()):
            raise RecrayError("--all writes plain lists: filters go with --user and --rate")
        from recray.inference import batch

        with ui.during(f"lists of everybody into {out}"):
            lists = batch.recommend_all(recommender.bundle, str(out), k, address, ui.log)
        ui.result(asdict(lists), terminal.lists(asdict(lists)))
        return
    chosen = parse_filters(recommender, **filters)
    if user is None:
        new = _raw_items(recommender.items, ratings)
        answer = recommender.recommend_from(new, k, filters=chosen)
    else:
        try:
            answer = recommender.recommend(recommender.users.parse(user), k, filters=chosen)
        except KeyError:
            raise RecrayError(f"no user {user} in {recommender.bundle.config['dataset']}") from None
    ui.result(answer.plain(), terminal.recommendations(answer.plain()))


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
def explain(ui: Console, bundle: str, user: str, k: int) -> None:
    """Show what a user of a BUNDLE rated best, is recommended, and rated in the test split.

    \b
    Example:
        recray explain bundles/mse --user 4
    """
    from recray.inference.inspect_user import inspect_user
    from recray.inference.recommender import Recommender
    from recray.serving.registry import resolve_bundle

    recommender = Recommender.open(resolve_bundle(bundle))
    try:
        result = asdict(inspect_user(recommender, recommender.users.parse(user), k))
    except KeyError:
        raise RecrayError(f"no user {user} in {recommender.bundle.config['dataset']}") from None
    ui.result(result, terminal.explanation(result, k))
