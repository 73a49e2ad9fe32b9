"""Hyperparameter search: its commands."""

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from recray.cli.base import cli, shared
from recray.cli.stages import refuse_groups
from recray.cli.trials import Watch, summary
from recray.config import load_settings
from recray.errors import RecrayError
from recray.progress import Console

if TYPE_CHECKING:
    from recray.tuning.request import Search


def _concurrent(_context: click.Context, _option: click.Parameter, given: str) -> int | None:
    if given == "auto":
        return None
    if given.isdigit() and int(given):
        return int(given)
    raise click.BadParameter(f"{given!r}: auto, or a number from 1")


@cli.command()
@click.argument("prepared", required=False)
@click.option("--out", metavar="SWEEP", help="Folder of the sweep.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[SWEEP]",
    help="Continue this sweep, or that of --out; what it was started with need not be given again.",
)
@click.option("--trials", default=20, show_default=True, type=int, help="Trials in all.")
@click.option(
    "--concurrent",
    default="auto",
    show_default=True,
    callback=_concurrent,
    metavar="auto|N",
    help="Trials at once.",
)
@click.option("--searcher", default="random", show_default=True, help="random, grid or tpe.")
@click.option("--scheduler", default="asha", show_default=True, help="none, asha or median.")
@click.option("--metric", help="Validation metric to search by.  [default: the preset's]")
@click.option("--space", metavar="FILE", help="YAML with a `search:` section.")
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    type=click.IntRange(min=0),
    help="Trainings of the winner, and of trial 0, that are measured on test; 0: none.",
)
@click.option(
    "--kfold",
    "folds",
    default=0,
    metavar="K",
    type=click.IntRange(min=0),
    help="Small data: K folds of the training and validation ratings validate each trial in turn.",
)
@click.option(
    "--workers-per-trial",
    "workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Processes of a trial; several are run by Ray Train.",
)
@click.option(
    "--gpus-per-trial",
    "gpus",
    default=0.0,
    metavar="SHARE",
    type=float,
    help="GPUs that a trial reserves, such as 0.5.",
)
@shared("preset", "config", "set", "address")
def tune(
    ui: Console,
    prepared: str | None,
    out: str | None,
    resume: str | None,
    metric: str | None,
    space: str | None,
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Search the settings of a preset on the validation split of PREPARED.

    Trial 0 is the preset itself. Test is opened at the end, for the winner and trial 0.

    \b
    Example:
        recray tune prepared/ml-1m --preset neumf --trials 64 --searcher tpe --out sweeps/neumf
        recray tune --resume sweeps/neumf
        recray train prepared/ml-1m --config sweeps/neumf/best.yaml --out runs/neumf
    """
    refuse_groups(overrides, ("data", "split"), "recray prepare")
    wanted = (*overrides, f"train.metric={metric}") if metric else overrides
    prepared, out = places(prepared, out, resume)
    search = _checked(prepared, out, resume, (preset, config, wanted), space, options)
    from recray.pipelines import search as champion

    with Watch(ui, search.goal.metric) as watch:
        result = champion.tune(search, watch.log, watch.tell)
    ui.result(result, summary(result))


@cli.command("tune export")
@click.argument("sweep")
@click.option(
    "--to", "store", required=True, metavar="FOLDER|URI", help="MLflow's store, or its server."
)
@click.option("--experiment", help="MLflow's name.  [default: data set and preset]")
@shared()
def tune_export(ui: Console, sweep: str, store: str, experiment: str | None) -> None:
    """Write the trials of a SWEEP to MLflow; again: those that have ended since.

    \b
    Example:
        recray tune export sweeps/neumf --to mlruns
        MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri mlruns
    """
    from recray.tuning.mlflow_export import export

    result = export(sweep, store, experiment)
    text = (
        f"{result['added']} of {result['trials']} trials added to {result['experiment']} in "
        f"{result['store']} (run {result['run']})"
    )
    ui.result(result, text)


def places(prepared: str | None, out: str | None, resume: str | None) -> tuple[str | None, str]:
    """PREPARED and SWEEP from what stands where: `--resume X` takes the word after it.

    Raises:
        RecrayError: There is no SWEEP, or there are two; or nothing to search on.
    """
    if resume and out is None:
        return prepared, resume
    if resume and prepared is None:  # --out SWEEP --resume PREPARED
        return resume, str(out)
    if resume and resume != out:
        raise RecrayError(f"--out {out} and --resume {resume}: give one folder of a sweep")
    if out is None:
        raise RecrayError("give PREPARED and --out SWEEP, or --resume SWEEP")
    if prepared is None and resume is None:
        raise RecrayError("give PREPARED, the folder that `recray prepare` wrote")
    return prepared, out


def _checked(
    prepared: str | None,
    out: str,
    resume: str | None,
    given: tuple[str | None, str | None, tuple[str, ...]],
    space: str | None,
    options: dict[str, Any],
) -> "Search":
    """The order, with what a resumed sweep knows already."""
    from recray.tuning import request as orders
    from recray.tuning.resume import Resumed
    from recray.tuning.space import load_space
    from recray.tuning.store import SweepFolder

    if resume is not None and (prepared is None or SweepFolder(out).before() is not None):
        before = Resumed(out)
        source = click.get_current_context().get_parameter_source
        typed = {n: v for n, v in options.items() if source(n) != ParameterSource.DEFAULT}
        options = options | before.options() | typed
        options["prepared"] = prepared or options["prepared"]
        settings = before.settings(*given)
        searched = before.space(settings, space)
    else:
        settings = load_settings(*given)
        options["prepared"] = prepared
        searched = load_space(settings, space)
    if settings.train.fit_on != "train":
        raise RecrayError(
            "--set train.fit_on=train+valid: a search needs the validation rows apart"
        )
    order = orders.Order(out=out, resume=resume is not None, **options)
    return orders.check(order, settings, searched)
