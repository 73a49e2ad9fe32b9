"""Hyperparameter search: its command, and what it shows while it runs and at its end."""

import math
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from recray import console
from recray.cli.base import cli, shared
from recray.cli.stages import refuse_groups
from recray.config import load_settings
from recray.errors import RecrayError
from recray.terminal import Console

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from recray.sweep.desk import Event
    from recray.sweep.order import Search

SHOWN = 12
"""Rows of the live table."""


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
    help="Trainings of the winner that are measured on test; 0: none.",
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
    from recray import champion

    with Watch(ui, search.goal.metric) as watch:
        result = champion.tune(search, watch.say, watch.tell)
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
    from recray.sweep.export import export

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
    from recray.sweep import order as orders
    from recray.sweep.records import SweepFolder
    from recray.sweep.resume import Resumed
    from recray.sweep.spaces import load_space

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
    if settings.train.rows != "train":
        raise RecrayError("--set train.rows=train+valid: a search needs the validation rows apart")
    order = orders.Order(out=out, resume=resume is not None, **options)
    return orders.check(order, settings, searched)


class Watch:
    """The trials as they go, on stderr: a live table on a terminal, a line an end elsewhere.

    Args:
        ui: Where lines go.
        metric: What is compared.
    """

    def __init__(self, ui: Console, metric: str) -> None:
        self.ui, self.metric = ui, metric
        self.events: dict[int, Event] = {}
        self._live: Live | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Tell of what follows the search."""
        self._stop()
        self.ui.say(line)

    def tell(self, event: "Event") -> None:
        """Tell of a report or an end."""
        self.events[event.number] = event
        if sys.stderr.isatty():
            self._show(event)
        elif event.status != "running":
            self.ui.say(f"{_words(event, self.metric)}; {progress(event, self.metric)}")

    def _show(self, event: "Event") -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        if self._live is None:
            self.ui.patience.told(held=True)
            self._live = Live(console=Terminal(stderr=True), refresh_per_second=4)
            self._live.start()
        text = live_table(list(self.events.values()), event, self.metric)
        self._live.update(cut(text))


def cut(table: str) -> "Text":
    """A table that is cut, not wrapped, where the terminal is narrow."""
    from rich.text import Text

    return Text(table, no_wrap=True, overflow="ellipsis")


def progress(event: "Event", metric: str) -> str:
    """How far the sweep is, and the best so far."""
    best = f"best {metric} {event.best[1]:.4f} (trial {event.best[0]})" if event.best else "no best"
    return f"{event.ended} of {event.trials} trials, {best}"


def _words(event: "Event", metric: str) -> str:
    value = "" if math.isnan(event.value) else f"  {metric} {event.value:.4f}"
    error = f"  {event.error}" if event.error else ""
    return f"trial {event.number:>3} {event.status:<8} {event.epochs:>3} epochs{value}{error}"


def live_table(events: "list[Event]", latest: "Event", metric: str) -> str:
    """The trials that run, the best, and the last that ended."""
    place = {event.number: n for n, event in enumerate(events)}
    best = latest.best[0] if latest.best else -1

    def rank(event: "Event") -> tuple[bool, bool, int]:
        return event.number != best, event.status != "running", -place[event.number]

    rows = [
        [
            f"{event.number}{' *' if event.number == best else ''}",
            event.status,
            str(event.epochs),
            "" if math.isnan(event.value) else f"{event.value:.4f}",
            event.error,
        ]
        for event in sorted(events, key=rank)[:SHOWN]
    ]
    columns = ["trial", "status", "epochs", metric, ""]
    return console.table(progress(latest, metric), columns, rows)


def summary(result: dict[str, Any]) -> str:
    """The end of a sweep: all trials, best first, then the winner on test."""
    metric, best = result["metric"], result["best"]
    settings = list(dict.fromkeys(name for row in result["trials"] for name in row["settings"]))
    lower = result["lower_is_better"]

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        value = row["value"]
        nothing = value is None
        return row["trial"] != best, nothing, 0.0 if nothing else value if lower else -value

    body = [
        [
            f"{row['trial']}{' *' if row['trial'] == best else ''}",
            row["status"],
            _value(row),
            "" if row["best_epoch"] is None else f"{row['best_epoch']} of {row['epochs']}",
            *(_cell(row["settings"].get(name)) for name in settings),
        ]
        for row in sorted(result["trials"], key=rank)
    ]
    title = (
        f"{result['dataset']}, preset {result['preset']}: {len(body)} trials by "
        f"{result['searcher']}, scheduler {result['scheduler']}; validation {metric}"
        + (f" over {result['folds']} folds" if result["folds"] else "")
    )
    columns = ["trial", "status", metric, "epoch", *short_names(settings)]
    lines = [console.table(title, columns, body)]
    lines += [f"trial {row['trial']}: {row['error']}" for row in result["trials"] if row["error"]]
    lines += _test(result["test"], metric)
    workers = f" --workers {result['workers']}" if result["workers"] > 1 else ""
    lines.append(f"trial {best} wins: recray train --config {result['best_config']}{workers}")
    if result["pictures"]:
        lines.append(f"pictures: {result['pictures'][0].rpartition('/')[0]}")
    return "\n".join(lines)


def short_names(settings: list[str]) -> list[str]:
    """The settings without their groups, where that leaves them apart."""
    short = [name.split(".")[-1] for name in settings]
    return [s if short.count(s) == 1 else name for s, name in zip(short, settings, strict=True)]


def _value(row: dict[str, Any]) -> str:
    """The value, with the standard deviation over folds where there are any."""
    if row["value"] is None:
        return ""
    return f"{row['value']:.4f}" + (f" +- {row['sd']:.4f}" if row["sd"] is not None else "")


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _test(test: dict[str, Any] | None, metric: str) -> list[str]:
    if test is None:
        return ["the test split was not opened"]
    rows = [
        [
            f"{name} (trial {test[name]['trial']})",
            f"{test[name]['valid']:.4f}",
            f"{test[name]['test']['value']:.4f}",
            f"{test[name]['test']['low']:.4f} to {test[name]['test']['high']:.4f}",
        ]
        for name in ("winner", "preset")
        if name in test
    ]
    title = f"mean of {test['seeds']} seeds, {metric}"
    made = console.table(title, ["", "validation", "test", "95 % interval"], rows)
    return ["", made, test["verdict"]]
