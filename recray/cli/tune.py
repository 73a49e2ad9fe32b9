"""Hyperparameter search: its commands, the live table of trials and the summary at the end."""

import contextlib
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from recray.cli.base import PATH, Recipe, cli, number, shared
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import terminal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from recray.tuning.driver import TrialUpdate
    from recray.tuning.request import ValidatedSearch
    from recray.tuning.results import FinalTest, TrialSummary, TuneResult

LIVE_ROWS = 12
"""Rows of the live table."""


def _concurrent(_context: click.Context, _option: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if value.isdigit() and int(value):
        return int(value)
    raise click.BadParameter(f"{value!r}: auto, or a number from 1")


@cli.command()
@click.argument("prepared", type=PATH, required=False)
@click.option("--out", type=PATH, metavar="SWEEP", help="Folder of the sweep.")
@click.option(
    "--resume",
    type=PATH,
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
@click.option("--space", type=PATH, metavar="FILE", help="YAML with a `search:` section.")
@number(
    "--seeds",
    default=3,
    range=click.IntRange(min=0),
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
@number(
    "--workers-per-trial",
    "workers",
    default=1,
    range=click.IntRange(min=1),
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
@shared("recipe", "address")
def tune(
    ui: Console,
    prepared: str | None,
    out: str | None,
    resume: str | None,
    metric: str | None,
    space: str | None,
    recipe: Recipe,
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
    recipe.refuse_groups(("data", "split"), "recray prepare")
    if metric:
        recipe = replace(recipe, overrides=(*recipe.overrides, f"train.metric={metric}"))
    prepared, out = folders(prepared, out, resume)
    search = _checked(prepared, out, resume, recipe, space, **options)
    from recray.pipelines.search import tune as run
    from recray.reporting.plots.search import draw

    with contextlib.closing(TrialMonitor(ui, search.metric.name)) as monitor:
        result = run(search, monitor.log, monitor.show, draw)
    ui.result(result, summary(result))


@cli.command("tune export")
@click.argument("sweep", type=PATH)
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
    from recray.reporting.mlflow import export_sweep

    result = export_sweep(sweep, store, experiment)
    text = (
        f"{result.added} of {result.trials} trials added to {result.experiment} in "
        f"{result.store} (run {result.run})"
    )
    ui.result(result, text)


def folders(prepared: str | None, out: str | None, resume: str | None) -> tuple[str | None, str]:
    """Tell PREPARED and SWEEP apart: `--resume X` takes the word after it, which may be either.

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
    recipe: Recipe,
    space: str | None,
    **options: Any,
) -> "ValidatedSearch":
    """Check the request, completed by what a resumed sweep knows already."""
    from recray.tuning import request
    from recray.tuning.space import load_space
    from recray.tuning.store import SweepFolder

    if resume is not None and (prepared is None or SweepFolder(out).metadata() is not None):
        before = request.ResumeState(out)
        source = click.get_current_context().get_parameter_source
        typed = {n: v for n, v in options.items() if source(n) != ParameterSource.DEFAULT}
        options = options | before.options() | typed
        options["prepared"] = prepared or options["prepared"]
        settings = before.settings(recipe.preset, recipe.config, recipe.overrides)
        searched = before.space(settings, space)
    else:
        settings = recipe.settings()
        options["prepared"] = prepared
        searched = load_space(settings, space)
    if settings.train.fit_on != "train":
        raise RecrayError(
            f"--set train.fit_on={settings.train.fit_on}: a search needs the validation rows apart"
        )
    asked = request.TuneRequest(out=out, resume=resume is not None, **options)
    return request.check(asked, settings, searched)


# ------------------------------------------------------------------- what the search shows


class TrialMonitor:
    """Shows the trials on stderr: a live table on a terminal, elsewhere a line per trial.

    Args:
        ui: Receives the lines.
        metric: Name of the metric that trials are compared by.
    """

    def __init__(self, ui: Console, metric: str) -> None:
        self.ui, self.metric = ui, metric
        self.updates: dict[int, TrialUpdate] = {}
        self._live: Live | None = None

    def close(self) -> None:
        """Take the live table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def log(self, line: str) -> None:
        """Print what happens after the search."""
        self.close()
        self.ui.log(line)

    def show(self, update: "TrialUpdate") -> None:
        """Show a report or the end of a trial."""
        self.updates[update.number] = update
        if sys.stderr.isatty():
            self._refresh(update)
        elif update.status != "running":
            line = f"trial {update.number:>3} {update.status:<8} {update.epochs:>3} epochs"
            value = "" if math.isnan(update.value) else f"  {self.metric} {update.value:.4f}"
            error = f"  {update.error}" if update.error else ""
            self.ui.log(f"{line}{value}{error}; {_progress(update, self.metric)}")

    def _refresh(self, update: "TrialUpdate") -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        if self._live is None:
            self.ui.close()
            self._live = Live(console=Terminal(stderr=True), refresh_per_second=4)
            self._live.start()
        self._live.update(live_table(list(self.updates.values()), update, self.metric))


def _progress(update: "TrialUpdate", metric: str) -> str:
    best = update.best
    found = f"best {metric} {best[1]:.4f} (trial {best[0]})" if best else "no best"
    return f"{update.ended} of {update.trials} trials, {found}"


def live_table(updates: "list[TrialUpdate]", latest: "TrialUpdate", metric: str) -> "Table":
    """The best trial, the trials that run, and the last ones that ended; a row is one line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=_progress(latest, metric), title_justify="left", title_style="",
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
    )  # fmt: skip
    for name in ("trial", "status", "epochs", metric):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column()  # only this column is cut where the terminal is narrow
    best = latest.best[0] if latest.best else -1
    newest_first = updates[::-1]
    newest_first.sort(key=lambda update: (update.number != best, update.status != "running"))
    for update in newest_first[:LIVE_ROWS]:
        value = "" if math.isnan(update.value) else f"{update.value:.4f}"
        number = f"{update.number}{' *' if update.number == best else ''}"
        error = Text(update.error, no_wrap=True, overflow="ellipsis")
        table.add_row(number, update.status, str(update.epochs), value, error)
    return table


def summary(result: "TuneResult") -> str:
    """The end of a sweep: all trials, best first, then the winner on the test split."""
    settings = list(dict.fromkeys(name for row in result.trials for name in row.settings))

    def rank(row: "TrialSummary") -> tuple[bool, bool, float]:
        value = row.value or 0.0
        better_first = value if result.lower_is_better else -value
        return row.trial != result.best, row.value is None, better_first

    body = [
        [
            f"{row.trial}{' *' if row.trial == result.best else ''}",
            row.status,
            _value(row),
            "" if row.best_epoch is None else f"{row.best_epoch} of {row.epochs}",
            *(_cell(row.settings.get(name)) for name in settings),
        ]
        for row in sorted(result.trials, key=rank)
    ]
    title = (
        f"{result.dataset}, preset {result.preset}: {len(body)} trials by "
        f"{result.searcher}, scheduler {result.scheduler}; validation {result.metric}"
        + (f" over {result.folds} folds" if result.folds else "")
    )
    columns = ["trial", "status", result.metric, "epoch", *short_names(settings)]
    lines = [terminal.table(title, columns, body)]
    lines += [f"trial {row.trial}: {row.error}" for row in result.trials if row.error]
    lines += _test(result.test) if result.test else ["the test split was not opened"]
    workers = f" --workers {result.workers}" if result.workers > 1 else ""
    lines.append(f"trial {result.best} wins: recray train --config {result.best_config}{workers}")
    if result.pictures:
        lines.append(f"pictures: {result.pictures[0].rpartition('/')[0]}")
    return "\n".join(lines)


def short_names(settings: list[str]) -> list[str]:
    """The settings without their groups, where they still differ without them."""
    short = [name.split(".")[-1] for name in settings]
    return [s if short.count(s) == 1 else name for s, name in zip(short, settings, strict=True)]


def _value(row: "TrialSummary") -> str:
    """The value, with the standard deviation over folds where there are any."""
    value = "" if row.value is None else f"{row.value:.4f}"
    return value if row.sd is None else f"{value} +- {row.sd:.4f}"


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _test(test: "FinalTest") -> list[str]:
    rows = [
        [
            f"{name} (trial {score.trial})",
            f"{score.valid:.4f}",
            f"{score.test.value:.4f}",
            f"{score.test.low:.4f} to {score.test.high:.4f}",
        ]
        for name, score in (("winner", test.winner), ("preset", test.preset))
        if score is not None
    ]
    title = f"mean of {test.seeds} seeds, {test.metric}"
    columns = ["", "validation", "test", "95 % interval"]
    return ["", terminal.table(title, columns, rows), test.verdict]
