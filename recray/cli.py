"""The `recray` command: parse, call one function, print the result. No logic lives here.

Modules that load torch or Ray are imported by the commands that need them, so that `recray --help`
is immediate.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from recray import __version__, console
from recray.config import EvaluateSettings, load_settings, preset_names
from recray.console import Console
from recray.errors import CheckFailed, RecrayError


class _Failure(click.ClickException):
    """One line, with the error's own exit code: 2, or 3 for storage; click's default is 1."""

    def __init__(self, error: RecrayError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares it on the class


class Commands(click.Group):
    """Show a RecrayError as one line on stderr; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command and translate its RecrayError."""
        try:
            return super().invoke(ctx)
        except RecrayError as error:
            raise _Failure(error) from error


def main() -> None:
    """Entry point; stopped by Ctrl-C it exits with 130."""
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `recray ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    sys.exit(status if isinstance(status, int) else 0)


def _shared(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that several commands have: --json always, the others by name."""
    options = {
        "preset": click.option(
            "--preset", default="ranking", show_default=True, help="Recipe to start from."
        ),
        "config": click.option("--config", metavar="FILE", help="YAML with settings by group."),
        "set": click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting."
        ),
        "workers": click.option(
            "--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Processes."
        ),
        "address": click.option(
            "--address",
            default="local",
            show_default=True,
            help="Ray cluster: local, auto, HOST:PORT.",
        ),
        "mirror": click.option(
            "--mirror", metavar="URL|FOLDER", help="Where NAME.zip lies instead."
        ),
        "host": click.option(
            "--host", default="127.0.0.1", show_default=True, help="Interface to bind."
        ),
        "port": click.option(
            "--port",
            default=8000,
            show_default=True,
            type=click.IntRange(1, 65535),
            help="HTTP port.",
        ),
        "k": click.option(
            "-k",
            default=10,
            show_default=True,
            type=click.IntRange(min=1),
            help="Length of a list.",
        ),
    }

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_console(*args: Any, as_json: bool, **kwargs: Any) -> Any:
            return command(Console(as_json), *args, **kwargs)

        wrapped: Callable[..., Any] = with_console
        for name in reversed(names):
            wrapped = options[name](wrapped)
        return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
            wrapped
        )

    return decorate


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="recray")
def cli() -> None:
    """From raw ratings to a trained, measured and served recommender on any Ray cluster.

    \b
    SOURCE is `sample` (generated, no network), a MovieLens release (ml-100k ... ml-32m), or the
    path or URI of a zip, folder or csv file.
    """


def _wait_for_stop(console: Console, url: str) -> None:
    console.say(f"serving on {url}; Ctrl-C stops it")
    signal.pause()


@cli.command()
@click.argument("source")
@click.option("--out", metavar="DIR", help="Folder of all outputs.  [default: recray-out/NAME]")
@click.option("--once", is_flag=True, help="Serve, check over HTTP, stop and exit.")
@_shared("preset", "config", "set", "workers", "host", "port", "mirror", "address")
def up(
    ui: Console,
    source: str,
    out: str | None,
    once: bool,
    preset: str,
    config: str | None,
    overrides: tuple[str, ...],
    workers: int,
    host: str,
    port: int,
    mirror: str | None,
    address: str,
) -> None:
    """Do everything: prepare SOURCE, train, measure, serve, and check the service.

    \b
    Example:
        recray up sample
        recray up ml-100k --preset dot-mse --once --json
    """
    settings = load_settings(preset, config, overrides)
    from recray import pipeline
    from recray.data.source import recognise

    ui.epochs = settings.train.epochs
    given = recognise(source, mirror)
    stages = pipeline.up(
        given,
        out or f"recray-out/{given.name}",
        settings,
        workers,
        host,
        port,
        address,
        ui.say,
        ui.epoch,
    )
    with stages as result:
        ui.result(result, console.up(result, _some_user(result["bundle"])))
        if not result["verified"]:
            raise CheckFailed("the service and the bundle disagree; see verification in --json")
        if not once:
            _wait_for_stop(ui, result["url"])


def _some_user(bundle: str) -> int:
    from recray.bundle import Bundle

    return int(Bundle.open(bundle).user_ids.raw[0])


@cli.command()
@click.argument("source")
@click.option("--out", required=True, metavar="PREPARED", help="Folder of the data set.")
@_shared("preset", "config", "set", "mirror", "address")
def prepare(
    ui: Console,
    source: str,
    out: str,
    preset: str,
    config: str | None,
    overrides: tuple[str, ...],
    mirror: str | None,
    address: str,
) -> None:
    """Read, check, split and encode SOURCE; --set data.* and split.* apply here.

    \b
    Example:
        recray prepare ml-1m.zip --out prepared/ml-1m --set split.kind=leave-one-out
    """
    settings = load_settings(preset, config, overrides)
    from recray.data import ingest
    from recray.data.source import recognise

    made = ingest.prepare(recognise(source, mirror), out, settings, address)
    facts = {k: v for k, v in made.manifest.items() if k != "files"}
    ui.result({"prepared": made.folder.path, **facts}, console.prepared(made.manifest))


@cli.command()
@click.argument("prepared")
@click.option("--out", required=True, metavar="RUN", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@_shared("preset", "config", "set", "workers", "address")
def train(
    ui: Console,
    prepared: str,
    out: str,
    resume: bool,
    preset: str,
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
    settings = load_settings(preset, config, overrides)
    from recray.training import trainer  # Ray: loaded only by the commands that use it

    ui.epochs = settings.train.epochs
    summary = trainer.run(settings, prepared, out, workers, resume, address, ui.epoch)
    if summary["already_finished"]:
        ui.say(f"{out} was finished before: {summary['epochs']} epochs; nothing was trained")
    best = ", ".join(f"{k} {v:.4f}" for k, v in summary["best"].items() if isinstance(v, float))
    text = f"{out}: {summary['epochs']} epochs, best epoch {summary['best_epoch']} ({best})"
    ui.result(summary, text)


@cli.command()
@click.argument("run")
@click.option("--out", required=True, metavar="BUNDLE", help="Folder of the bundle.")
@_shared()
def export(ui: Console, run: str, out: str) -> None:
    """Write the best epoch of a RUN as a bundle, measured on the test split.

    \b
    Example:
        recray export runs/mse --out bundles/mse
    """
    from recray import pipeline

    bundle = pipeline.export(run, out)
    result = {"bundle": bundle.folder.path, "version": bundle.version, "evaluation": bundle.metrics}
    text = console.evaluation(bundle.metrics) if bundle.metrics else "no test split to measure on"
    ui.result(result, f"{text}\nbundle: {bundle.folder} (version {bundle.version})")


@cli.command()
@click.argument("bundle")
@click.option(
    "--prepared", metavar="PREPARED", help="Insist that the bundle comes from this data set."
)
@click.option("-k", multiple=True, type=click.IntRange(min=1), help="Cut-off; may be repeated.")
@click.option("--relevant-from", type=float, metavar="STARS", help="Held-out ratings that count.")
@_shared("workers", "address")
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

    settings = None
    if k or relevant_from is not None:
        settings = EvaluateSettings(k=k or (10,), relevant_from=relevant_from)
    report = pipeline.evaluate(resolve_bundle(bundle), settings, prepared, workers, address)
    ui.result(report, console.evaluation(report))


@cli.command()
@click.argument("bundle")
@click.option("--user", type=int, help="A user of the data set.")
@click.option("--rate", multiple=True, metavar="ITEM=STARS", help="Ratings of somebody new.")
@click.option("--all", "everyone", is_flag=True, help="Every user, as parquet into --out.")
@click.option("--out", metavar="DIR", help="Folder for --all.")
@_shared("k", "address")
def recommend(
    ui: Console,
    bundle: str,
    user: int | None,
    rate: tuple[str, ...],
    everyone: bool,
    out: str | None,
    k: int,
    address: str,
) -> None:
    """Recommend from a BUNDLE: to a user, to somebody new, or to everybody.

    \b
    Example:
        recray recommend bundles/mse --user 4
        recray recommend bundles/mse --rate 1=5 --rate 50=4.5
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
        from recray import batch

        result = batch.recommend_all(recommender.bundle, str(out), k, address)
        ui.result(result)
        return
    if user is None:
        answer = recommender.recommend_from(ratings, k)
    else:
        try:
            answer = recommender.recommend(user, k)
        except KeyError:
            raise RecrayError(f"no user {user} in {recommender.bundle.config['dataset']}") from None
    ui.result(answer.plain(), console.recommendations(answer.plain()))


def _parse_rating(text: str) -> tuple[int, float]:
    item, _, stars = text.partition("=")
    try:
        return int(item), float(stars)
    except ValueError:
        raise RecrayError(f"--rate {text!r}: write ITEM=STARS, such as 50=4.5") from None


@cli.command()
@click.argument("bundle")
@click.option(
    "--replicas", default=1, show_default=True, type=click.IntRange(min=1), help="Processes."
)
@_shared("host", "port", "address")
def serve(ui: Console, bundle: str, replicas: int, host: str, port: int, address: str) -> None:
    """Serve a BUNDLE, or the current version of a registry, until Ctrl-C.

    \b
    Example:
        recray serve bundles/mse --port 8000
    """
    from recray.registry import resolve_bundle
    from recray.serving.deployment import serving

    path = resolve_bundle(bundle)
    with serving(path, host, port, replicas, address) as url:
        ui.result({"url": url, "bundle": path}, f"service: {url}  (documentation: {url}/docs)")
        _wait_for_stop(ui, url)


@cli.command()
@click.argument("url")
@click.argument("bundle")
@click.option(
    "--users", default=500, show_default=True, type=click.IntRange(min=1), help="At most."
)
@_shared("k")
def verify(ui: Console, url: str, bundle: str, users: int, k: int) -> None:
    """Replay a BUNDLE's test users at URL and compare; exit 1 if anything differs.

    \b
    Example:
        recray verify http://127.0.0.1:8000 bundles/mse
    """
    from recray.recommender import Recommender
    from recray.registry import resolve_bundle
    from recray.serving import verify as verification

    result = verification.verify(url, Recommender.open(resolve_bundle(bundle)), users, k)
    ui.result(result)
    if not result["verified"]:
        raise CheckFailed(f"{url} and {bundle} disagree: {result['differences'][0]}")


@cli.group(cls=Commands)
def registry() -> None:
    """Versions of a bundle: add, list, promote, rollback."""


@registry.command("add")
@click.argument("path", metavar="REGISTRY")
@click.argument("bundle")
@_shared()
def registry_add(ui: Console, path: str, bundle: str) -> None:
    """Copy a BUNDLE into a REGISTRY; nothing is served from it before `promote`.

    \b
    Example:
        recray registry add registry bundles/mse
    """
    from recray.registry import Registry

    ui.result({"registry": path, "version": Registry(path).add(bundle)})


@registry.command("list")
@click.argument("path", metavar="REGISTRY")
@_shared()
def registry_list(ui: Console, path: str) -> None:
    """Show the versions of a REGISTRY.

    \b
    Example:
        recray registry list registry
    """
    from recray.registry import Registry

    versions = Registry(path).versions()
    columns = ["version", "dataset", "preset", "created", "current"]
    rows = [
        [("*" if v[c] else "") if c == "current" else str(v[c]) for c in columns] for v in versions
    ]
    ui.result({"versions": versions}, console.table("", columns, rows))


@registry.command("promote")
@click.argument("path", metavar="REGISTRY")
@click.argument("version")
@click.option("--force", is_flag=True, help="Even if it is worse, or was trained on the hold-out.")
@_shared()
def registry_promote(ui: Console, path: str, version: str, force: bool) -> None:
    """Make VERSION current, unless it is worse than the one that is.

    \b
    Example:
        recray registry promote registry 0123456789ab
    """
    from recray.registry import Registry

    ui.result(Registry(path).promote(version, force))


@registry.command("rollback")
@click.argument("path", metavar="REGISTRY")
@_shared()
def registry_rollback(ui: Console, path: str) -> None:
    """Go back to the version before the current one.

    \b
    Example:
        recray registry rollback registry
    """
    from recray.registry import Registry

    ui.result(Registry(path).rollback())


@cli.command()
@_shared()
def presets(ui: Console) -> None:
    """List the recipes that come with recray.

    \b
    Example:
        recray presets
    """
    names = preset_names()
    ui.result({"presets": names}, "\n".join(names))
