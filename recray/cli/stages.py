"""The stages from ratings to a bundle: prepare, train, export."""

import click

from recray.cli.base import PATH, SOURCE, cli, shared, sources
from recray.config import load_settings, preset_names
from recray.errors import CheckFailed, RecrayError
from recray.progress import Console
from recray.reporting import terminal


def refuse_groups(overrides: tuple[str, ...], groups: tuple[str, ...], command: str) -> None:
    """Refuse settings that another command takes, which would be ignored here.

    Raises:
        RecrayError: One of them is given.
    """
    for text in overrides:
        if text.split(".")[0].strip() in groups:
            raise RecrayError(f"--set {text}: this is decided by `{command}`; give it there")


@cli.command()
@click.argument("source", type=SOURCE, shell_complete=sources)
@click.option("--out", required=True, type=PATH, metavar="PREPARED", help="Folder of the data set.")
@click.option(
    "--ratings-log", type=PATH, metavar="DIR", help="Ratings that a service kept; they train."
)
@shared("preset", "config", "set", "columns", "mirror", "address")
def prepare(
    ui: Console,
    source: str,
    out: str,
    ratings_log: str | None,
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    columns: tuple[str, ...],
    mirror: str | None,
    address: str,
) -> None:
    """Read, check, split and encode SOURCE; --set data.* and split.* apply here.

    What a service has kept in --ratings-log is trained on as well. It never changes the splits: a
    film that is rated again keeps its place in them, with its new stars.

    \b
    Example:
        recray prepare ml-1m.zip --out prepared/ml-1m --set split.kind=leave-one-out
        recray prepare ml-1m.zip --out prepared/more --ratings-log registry/ratings
    """
    refuse_groups(overrides, ("model", "objective", "train", "evaluate"), "recray train")
    settings = load_settings(preset, config, (*overrides, *columns))
    from recray.data import ingest
    from recray.data.source import detect_source

    given = detect_source(source, settings, mirror)
    if ratings_log is not None:
        from recray.data.feedback_log import RatingsLog
        from recray.data.feedback_source import with_log

        given, added = with_log(given, RatingsLog.open(ratings_log))
        ui.log(terminal.ratings_log(ratings_log, added))
    with ui.during(f"prepare {source} into {out}"):
        made = ingest.prepare(given, out, settings, address)
    facts = {k: v for k, v in made.manifest.items() if k != "files"}
    ui.result({"prepared": made.folder.path, **facts}, terminal.prepared(made.manifest))


@cli.command()
@click.argument("prepared", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="RUN", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--max-failures",
    default=3,
    show_default=True,
    type=click.IntRange(min=0),
    help="Begin again from the last checkpoint when a worker dies, so often.",
)
@click.option(
    "--mlflow", "tracking", metavar="URI", help="Tell an MLflow server or store of each epoch."
)
@shared("preset", "config", "set", "workers", "address")
def train(
    ui: Console,
    prepared: str,
    out: str,
    resume: bool,
    max_failures: int,
    tracking: str | None,
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    workers: int,
    address: str,
) -> None:
    """Train a model on the PREPARED data set.

    \b
    Example:
        recray train prepared/ml-1m --out runs/mse --preset dot-mse --workers 2
    """
    refuse_groups(overrides, ("data", "split"), "recray prepare")
    settings = load_settings(preset, config, overrides)
    from recray.schema import TIMINGS
    from recray.training import callbacks, trainer

    loggers: list[callbacks.LoggerFactory] = [callbacks.TensorBoard]
    if tracking is not None:
        from recray.reporting.mlflow import mlflow_logger

        loggers.append(mlflow_logger(tracking))
    ui.expect(settings.train.epochs, settings.metric)
    watch = callbacks.Callbacks(ui.log, ui.epoch, tuple(loggers))
    summary = trainer.run(settings, prepared, out, workers, resume, address, watch, max_failures)
    if summary.already_finished:
        ui.log(f"{out} was finished before: {summary.epochs} epochs; nothing was trained")
    metrics = {k: v for k, v in summary.best.items() if isinstance(v, float)}
    best = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k not in TIMINGS)
    text = f"{out}: {summary.epochs} epochs, best epoch {summary.best_epoch} ({best})"
    ui.result(summary, text)


@cli.command()
@click.argument("run", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="BUNDLE", help="Folder of the bundle.")
@shared()
def export(ui: Console, run: str, out: str) -> None:
    """Write the best epoch of a RUN as a bundle, measured on the test split.

    \b
    Example:
        recray export runs/mse --out bundles/mse
    """
    from recray.evaluation.report import parse_report
    from recray.training import export as exporting

    with ui.during(f"measure {run} on the test split"):
        bundle = exporting.export(run, out)
    result = {"bundle": bundle.folder.path, "version": bundle.version, "evaluation": bundle.metrics}
    text = terminal.evaluation(parse_report(bundle.metrics))
    ui.result(result, f"{text}\nbundle: {bundle.folder} (version {bundle.version})")


@cli.command()
@click.argument("run", type=PATH)
@shared("address")
def reproduce(ui: Console, run: str, address: str) -> None:
    """Train a finished RUN again elsewhere; exit 1 if a single digit differs.

    \b
    Example:
        recray reproduce runs/mse
    """
    from recray.pipelines import reproduce as again

    with ui.during(f"train {run} again"):
        result = again.reproduce(run, address)
    words = "the digits agree" if result.agrees else "the digits differ"
    ui.result(result, "\n".join([f"{run}: {result.epochs} epochs; {words}", *result.differences]))
    if not result.agrees:
        raise CheckFailed(f"{run} does not reproduce: {result.differences[0]}")


@cli.command()
@shared()
def presets(ui: Console) -> None:
    """List the recipes that come with recray.

    \b
    Example:
        recray presets
    """
    names = preset_names()
    ui.result({"presets": names}, "\n".join(names))
