"""`recray evaluate`: of a bundle, or of a recipe on folds."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from pydantic import JsonValue

from recray.cli.base import PATH, SOURCE, Recipe, cli, default_out, shared
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import terminal

if TYPE_CHECKING:
    from recray.evaluation.protocol import Kind, NextKind


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
    "--baselines",
    metavar="NAME,...",
    help="Of popularity, bias-only, item-knn, ease, markov, recent-popular, last-item-knn.",
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
@click.option(
    "--next",
    "next_",
    type=click.Choice(["last", "successive", "all"]),
    help="Look for one target at a time, from all that was known before it.",
)
@click.option(
    "--against",
    multiple=True,
    type=PATH,
    metavar="BUNDLE",
    help="Another bundle of the same prepared data set, on the same targets; repeatable.",
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
        recray evaluate bundles/next --next last --against bundles/markov
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
    next_: "NextKind | None",
    against: tuple[str, ...],
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
        measured = Protocol(_names(baselines), kind, negatives, next=next_)
        others = [resolve_bundle(other) for other in against]
        report = stages.evaluate(path, changes, prepared, workers, address, measured, others)
    ui.result(report.plain(), terminal.evaluation(report, slices))


def _refuse_those_of_a_bundle(way: str, of_bundle: Iterable[str]) -> None:
    """Folds are measured as training measures, and by one worker each."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in of_bundle if source(name) == ParameterSource.COMMANDLINE]
    if given:
        flags = (f"--{name.strip('_').replace('_', '-')}" for name in given)
        words = " and ".join("-k" if flag == "--k" else flag for flag in flags)
        raise RecrayError(
            f"{words}: of a BUNDLE only; {way} takes settings, such as --set evaluate.k=20"
        )


def _names(written: str | None) -> tuple[str, ...] | None:
    """Names between commas; None where the option is not given."""
    if written is None:
        return None
    return tuple(name.strip() for name in written.split(",") if name.strip())
