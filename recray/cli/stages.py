"""The stages from raw data to a bundle and its report: data, prepare, train, export, report."""

import click

from recray.cli import results
from recray.cli.base import PATH, SOURCE, Commands, Recipe, cli, number, shared, sources
from recray.config import preset_names
from recray.errors import CheckFailed, RecrayError
from recray.progress import Console
from recray.reporting import data_text, terminal
from recray.runtime.worker_range import WorkerRange


@cli.group(cls=Commands)
def data() -> None:
    """Raw data: list the releases, fetch one, describe what came in."""


@data.command("list")
@shared()
def data_list(ui: Console) -> None:
    """Show the MovieLens releases that are known by name, and which are in the cache.

    \b
    Example:
        recray data list
    """
    from recray.data import movielens

    rows = [(release, movielens.is_cached(name)) for name, release in movielens.RELEASES.items()]
    known = [vars(release) | {"cached": cached} for release, cached in rows]
    result = results.ReleaseList.model_validate({"releases": known, "licence": movielens.LICENCE})
    ui.result(result, data_text.releases(rows, movielens.LICENCE))


@data.command("fetch")
@click.argument("name", shell_complete=sources)
@shared("mirror")
def data_fetch(ui: Console, name: str, mirror: str | None) -> None:
    """Download the release NAME, compare its sha256, and keep it in the cache (RECRAY_CACHE).

    \b
    Example:
        recray data fetch ml-1m
    """
    from recray.data import movielens

    release = movielens.release(name)
    size = f"{release.bytes / 1e6:,.1f} MB" if release.bytes else "size not known"
    ui.log(f"{name}: {size}, {release.ratings:,} ratings; {movielens.LICENCE}")
    path = movielens.fetch(name, mirror)
    fetched = results.FetchedRelease(name=name, path=str(path), sha256=release.sha256)
    ui.result(fetched, str(path))


@data.command("describe")
@click.argument("source", shell_complete=sources)
@shared("recipe", "columns", "mirror")
def data_describe(ui: Console, source: str, recipe: Recipe, mirror: str | None) -> None:
    """Count what is in SOURCE, or in the folder of a prepared data set.

    It needs nothing that can be read: it shows rejected rows, their lines and what would help.

    \b
    Example:
        recray data describe ml-100k.zip
        recray data describe plays.csv --columns user=customer,item=sku --set data.ids=text
    """
    from recray.data import describe
    from recray.data.dataset import Prepared
    from recray.data.source import detect_source
    from recray.storage import Folder

    if Folder(source).published():
        if recipe.overrides:
            raise RecrayError(f"{source} is prepared: --set and --columns go with its source")
        facts = describe.describe_prepared(Prepared.open(source))
    else:
        recipe.refuse_groups(("model", "objective", "train", "evaluate"), "recray train")
        with ui.during(f"read {source}"):
            facts = describe.describe_source(detect_source(source, recipe.settings(), mirror))
    described = results.Description.model_validate(facts)
    ui.result(described.model_dump(exclude_unset=True), data_text.description(facts))


@cli.command()
@click.argument("source", type=SOURCE, shell_complete=sources)
@click.option("--out", required=True, type=PATH, metavar="PREPARED", help="Folder of the data set.")
@click.option(
    "--ratings-log", type=PATH, metavar="DIR", help="Ratings that a service kept; they train."
)
@shared("recipe", "columns", "mirror", "address")
def prepare(
    ui: Console,
    source: str,
    out: str,
    ratings_log: str | None,
    recipe: Recipe,
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
    recipe.refuse_groups(("model", "objective", "train", "evaluate"), "recray train")
    settings = recipe.settings()
    from recray.data import ingest
    from recray.data.feedback import snapshot_while, with_log
    from recray.data.source import detect_source
    from recray.runtime.tasks import TaskRunner

    given = detect_source(source, settings, mirror)
    if ratings_log is not None:
        from recray.data.feedback_log import RatingsLog

        given, added = with_log(given, RatingsLog.open(ratings_log), settings.data.duplicates)
        ui.log(data_text.ratings_log(ratings_log, added))
    runner = TaskRunner(ui.stage)
    with ui.during(f"prepare {source} into {out}"), snapshot_while(given):
        made = ingest.prepare(given, out, settings, address, runner=runner)
    facts = {k: v for k, v in made.manifest.items() if k != "files"}
    facts |= {"prepared": made.folder.path, "ray_data": runner.stages}
    result = results.PreparedFacts.model_validate(facts)
    ui.result(result, data_text.prepared(made.manifest))


@cli.command()
@click.argument("prepared", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="RUN", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@number(
    "--max-failures",
    default=3,
    range=click.IntRange(min=0),
    help="Begin again from the last checkpoint when a worker dies, so often.",
)
@click.option(
    "--mlflow", "tracking", metavar="URI", help="Tell an MLflow server or store of each epoch."
)
@shared("recipe", "worker_range", "address")
def train(
    ui: Console,
    prepared: str,
    out: str,
    resume: bool,
    max_failures: int,
    tracking: str | None,
    recipe: Recipe,
    workers: WorkerRange,
    address: str,
) -> None:
    """Train a model on the PREPARED data set.

    \b
    Example:
        recray train prepared/ml-1m --out runs/mse --preset dot-mse --workers 2
    """
    recipe.refuse_groups(("data", "split"), "recray prepare")
    settings = recipe.settings()
    from recray.schema import TIMINGS
    from recray.training import callbacks, model_selection

    loggers: list[callbacks.LoggerFactory] = [callbacks.TensorBoard]
    if tracking is not None:
        from recray.reporting.mlflow import mlflow_logger

        loggers.append(mlflow_logger(tracking))
    watch = callbacks.Callbacks(ui.log, ui.epoch, tuple(loggers), ui.expect)
    summary = model_selection.train(
        settings, prepared, out, workers, resume, address, watch, max_failures
    )
    if summary.already_finished:
        ui.log(f"{out} was finished before: {summary.epochs} epochs; nothing was trained")
    metrics = {k: v for k, v in summary.best.items() if isinstance(v, float)}
    best = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k not in TIMINGS)
    text = f"{out}: {summary.epochs} epochs, best epoch {summary.best_epoch} ({best})"
    ui.result(summary, text)


@cli.command()
@click.argument("run", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="BUNDLE", help="Folder of the bundle.")
@shared("final_fit", "address")
def export(ui: Console, run: str, out: str, final_fit: bool, address: str) -> None:
    """Write the best epoch of a RUN as a bundle, measured on the test split.

    It is fitted again with the epochs that validation chose: on all ratings but those of test,
    which is measured, and on all ratings, which is served.

    \b
    Example:
        recray export runs/mse --out bundles/mse
    """
    from recray.evaluation.report import parse_report
    from recray.training.export import Fits
    from recray.training.export import export as export_run

    with ui.during(f"measure {run} on the test split"):
        fits: Fits = "final" if final_fit else "none"
        bundle = export_run(run, out, False, fits, address, ui.log)
    text = terminal.evaluation(parse_report(bundle.metrics))
    result = results.ExportedBundle(
        bundle=bundle.folder.path, version=bundle.version, evaluation=bundle.metrics
    )
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
    from recray.pipelines.repetition import reproduce as train_again

    with ui.during(f"train {run} again"):
        result = train_again(run, address)
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
    ui.result(results.PresetList(presets=names), "\n".join(names))


@cli.command()
@click.argument("folder", metavar="RUN|SWEEP|BUNDLE")
@click.option("--out", metavar="FILE", help="The page.  [default: FOLDER.html]")
@click.option("--png", is_flag=True, help="Write every picture as PNG, too, beside the page.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@shared()
def report(ui: Console, folder: str, out: str | None, png: bool, show: bool) -> None:
    """Draw a RUN, a SWEEP or a BUNDLE: one HTML file that needs nothing else.

    \b
    Example:
        recray report recray-out/sample/bundle --open
        recray report sweeps/neumf --png
    """
    from recray.reporting import report as reports

    with ui.during(f"draw {folder}"):
        document = reports.make(folder)
        files = reports.write(document, out or reports.default_out(folder), png)
    shown = [
        *files[:1],
        *([f"{len(files) - 1} pictures in {files[1].rpartition('/')[0]}"] if png else []),
    ]
    ui.result(results.WrittenReport(report=files[0], pictures=files[1:]), "\n".join(shown))
    if show:
        click.launch(files[0])
