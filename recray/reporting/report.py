"""Make the report of a run, a sweep or a bundle, and write it as HTML."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from matplotlib.figure import Figure

from recray import __version__
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation.report import EvaluationReport, parse_report, who_is_not_served
from recray.inference.bundle import KIND as BUNDLE
from recray.inference.bundle import Bundle
from recray.inference.inspect_user import inspect_user
from recray.inference.recommender import Recommender
from recray.reporting import frames
from recray.reporting.html import Block, Details, Document, Plot, Section, Table, plots_of
from recray.reporting.plots import evaluation, predictions, search, style
from recray.reporting.plots import run as run_plots
from recray.serving.registry import resolve_bundle
from recray.storage import Folder, is_uri, storage_errors
from recray.training.checkpoint import RunFolder
from recray.training.export import export
from recray.tuning.results import TuneResult
from recray.tuning.store import SweepFolder

LISTED = 10
"""Items of each list of a user."""


def make(path: str) -> Document:
    """Make the report of a folder.

    Args:
        path: A run, a sweep, a bundle, a registry, or what `recray up` wrote.

    Raises:
        RecrayError: It is none of them, or it cannot be read.
    """
    folder = Folder(path)
    if not folder.exists():
        raise RecrayError(f"no such folder: {folder}")
    if folder.exists("sweep.json"):
        return _of_sweep(folder)
    if folder.exists("run.json"):
        return _of_run(folder)
    inner = folder.child("bundle")
    bundle = inner.path if inner.published() and not folder.published() else resolve_bundle(path)
    if not Folder(bundle).published() or Folder(bundle).manifest().kind != BUNDLE:
        raise RecrayError(f"{folder} is no run, no sweep and no bundle: there is nothing to report")
    return of_bundle(Bundle.open(bundle), "bundle")


def write(document: Document, out: str, png: bool) -> list[str]:
    """Write the page, and with `png` a folder of its pictures beside it.

    Args:
        document: The report.
        out: The HTML file.
        png: Whether to write the pictures, too, as PNG.

    Returns:
        The files, the page first.

    Raises:
        StorageError: They cannot be written.
    """
    page = Path(out)
    written = {page: document.html().encode()}
    if png:
        beside = page.with_suffix("")
        folder = beside.with_name(f"{beside.name}-pictures")
        written |= {folder / f"{p.name}.png": style.png(p.figure) for p in document.plots}
    for path, content in written.items():
        with storage_errors(str(path.parent)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return [str(path) for path in written]


def default_out(path: str) -> str:
    """Beside the folder, under its name; in the current one where the folder is remote."""
    name = Folder(path).name
    return f"{name}.html" if is_uri(path) else f"{Folder(path).path}.html"


def _of_run(folder: Folder) -> Document:
    """Export the best epoch of the run into a temporary bundle, and report that."""
    with tempfile.TemporaryDirectory(prefix="recray-report-") as temporary:
        bundle = export(folder.path, f"{temporary}/bundle", fits="none")
        return of_bundle(bundle, "run", RunFolder(folder.path))


def of_bundle(bundle: Bundle, what: str, run: RunFolder | None = None) -> Document:
    """The report of an opened bundle.

    Args:
        bundle: The bundle.
        what: What to call it.
        run: The run that it was exported from.
    """
    recommender, report = Recommender(bundle), parse_report(bundle.metrics)
    candidates = [
        _data(bundle),
        _training(bundle),
        _predictions(recommender),
        _ranking(report) if report else None,
        _users(recommender),
        _facts(bundle, run),
    ]
    title = f"{bundle.config['dataset']}: {bundle.settings.preset} ({what})"
    lead = report.verdict.split("; ") if report else ["There is no test split to measure on."]
    chosen = [section for section in candidates if section is not None]
    return Document(title, lead, _tiles(bundle, report), chosen)


def _of_sweep(folder: Folder) -> Document:
    """Report the search, then the winner's first run on test where there is one."""
    result = SweepFolder(folder.path).summary()
    if result is None:
        raise RecrayError(f"{folder} is not finished; continue it with `recray tune --resume`")
    lead = [result.test.verdict if result.test else "The test split was not opened."]
    tiles = [
        (f"{len(result.trials)}", "trials"),
        (f"{result.best_value:.4f}", f"best validation {result.metric}"),
        (f"trial {result.best}", "won"),
    ]
    title = f"{result.dataset}: search from {result.preset}"
    trials = _search(result)
    runs = [n for n in folder.child("final").folders() if n.startswith("winner-")]
    if not runs:
        return Document(title, lead, tiles, [trials])
    winner = _of_run(folder.child("final").child(runs[0]))
    return Document(title, lead + winner.lead, tiles, [trials, *winner.sections])


def _tiles(bundle: Bundle, report: EvaluationReport | None) -> list[tuple[str, str]]:
    ratings = len(bundle.interactions.kept)
    tiles = [
        (f"{ratings:,}", "ratings"),
        (f"{len(bundle.user_ids):,}", "users"),
        (f"{len(bundle.item_ids):,}", "films"),
    ]
    if report is None:
        return tiles
    names = (bundle.settings.metric, f"ndcg@{bundle.settings.evaluate.k[0]}")
    for name in dict.fromkeys(names):
        mean = report.metrics.get(name)
        if mean is not None:
            words = f"{name} on test ({mean.low:.4f} to {mean.high:.4f})"
            tiles.append((f"{mean.value:.4f}", words))
    if report.coverage is not None:
        tiles.append((f"{100 * report.coverage:.0f} %", "of all films in some list"))
    return tiles


# ------------------------------------------------------------------------------ sections


def data_plots(every: Ratings, item_table: pa.Table) -> dict[str, Figure]:
    """Plot a data set: ratings, times, activity and genres, as far as it has them.

    Args:
        every: All of its ratings.
        item_table: schema.ITEMS.
    """
    levels = np.unique(every.rating.astype(np.float64), return_counts=True)
    per_item = np.bincount(every.item, minlength=len(item_table))
    genres = Counter[str]()
    for names, ratings in zip(item_table["genres"].to_pylist(), per_item, strict=True):
        genres.update({genre: int(ratings) for genre in names})
    drawn = {
        "data-ratings": run_plots.rating_counts(np.column_stack(levels).tolist()),
        "data-time": run_plots.over_time(every.timestamp),
        "data-users": run_plots.activity(np.bincount(every.user), "user"),
        "data-films": run_plots.activity(per_item, "film"),
        "data-genres": run_plots.genres(genres),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _data(bundle: Bundle) -> Section:
    """Plot all ratings, and count them by split."""
    every = bundle.interactions.kept
    rows = {name: split["rows"] for name, split in bundle.config["splits"].items()}
    words = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    kind = bundle.config["split"]["kind"]
    drawn = plots_of(data_plots(every, bundle.item_table))
    return Section("data", "Data", f"All ratings. Split {kind}: {words}.", drawn)


def _training(bundle: Bundle) -> Section | None:
    """Plot loss, validation metric and speed by epoch; None without epochs."""
    entries = bundle.training
    if not entries:
        return None
    best, settings = bundle.config["epoch"], bundle.settings
    rows = bundle.config["splits"]["train"]["rows"]
    drawn = {
        "training-loss": run_plots.loss(entries, settings.objective.kind),
        "training-metric": run_plots.metric(entries, settings.metric, best),
        "training-speed": run_plots.speed(entries, rows),
    }
    seconds = sum(entry["seconds"] for entry in entries)
    words = f"{len(entries)} epochs in {seconds:.1f} s; the model is that of epoch {best}."
    return Section("training", "Training", words, plots_of(drawn))


def _predictions(recommender: Recommender) -> Section | None:
    """Compare predictions with held-out ratings; None where nothing is held out."""
    if not len(recommender.bundle.holdout):
        return None
    held = predictions.measure(recommender)
    drawn: dict[str, Figure | None]
    if held.predicted is not None:
        pair = held.predicted, held.actual
        drawn = {
            "predictions-spread": predictions.distributions(*pair),
            "predictions-against": predictions.predicted_against_actual(*pair),
            "predictions-calibration": predictions.calibration(*pair),
            "predictions-error": predictions.error_by_level(*pair),
        }
        words = f"{len(held.actual):,} held-out ratings, predicted in stars."
    elif len(held.rank):
        drawn = {
            "predictions-places": predictions.places(held.rank, recommender.items.known),
            "predictions-order": predictions.found_by_place(held.rank, held.users),
            "predictions-stars": predictions.place_by_level(held.rank, held.placed),
        }
        words = (
            "This model orders films and predicts no stars, so the pictures show where the "
            f"{len(held.rank):,} held-out films stand in the lists of their users."
        )
    else:
        return None
    if held.users < held.all_users:
        words += f" Of {held.users:,} of {held.all_users:,} users, evenly chosen."
    return Section("predictions", "Predictions", words, plots_of(drawn))


def _ranking(report: EvaluationReport) -> Section:
    """Show every metric beside the baselines."""
    words = f"{report.users:,} users of the test split, the whole catalogue ranked. "
    words += who_is_not_served(report.slices)
    blocks = plots_of(evaluation.figures(report))
    blocks.append(_table("All metrics", frames.metrics(report), ".4f"))
    if report.comparisons:
        title = "The model less each other system, on the same users (p values after Holm decide)"
        blocks.append(_table(title, frames.comparisons(report), ".4f"))
    return Section("ranking", "Ranking", words, blocks)


def _users(recommender: Recommender) -> Section | None:
    """Show what a few users rated, are recommended, and rated in the test split."""
    chosen = predictions.typical_users(recommender)
    if not chosen:
        return None
    blocks: list[Block] = []
    k = min(LISTED, recommender.items.known)
    for dense in chosen:
        look = inspect_user(recommender, recommender.users.raw_of(np.array([dense]))[0], k)
        held = look.held_out[:k]
        blocks += [
            Table(
                f"User {look.user}: the best of {look.ratings:,} ratings",
                ["film", "genres", "stars"],
                [[f.title, ", ".join(f.genres), f"{f.rating:g}"] for f in look.rated],
                half=True,
            ),
            Table(
                f"User {look.user}: recommended",
                ["film", "genres", "predicted" if look.scores == "stars" else "score"],
                [[f.title, ", ".join(f.genres), f"{f.score:.2f}"] for f in look.recommended],
                half=True,
            ),
            Table(
                f"User {look.user}: {look.hits} of {len(look.held_out)} held-out films hit",
                ["film", "stars", "place"],
                [["✓ " * f.hit + f.title, f"{f.rating:g}", f"{f.rank or '?'}"] for f in held],
                frozenset(n for n, f in enumerate(held) if f.hit),
                half=True,
            ),
        ]
    words = "At the quarters of all users by known ratings. Green and ✓: found while held out."
    return Section("users", "A few users", words, blocks)


def _search(result: TuneResult) -> Section:
    """Show the trials, the best first."""
    frame = frames.trials(result)
    if not frame["error"].any():
        frame = frame.drop(columns="error")
    words = (
        f"{len(frame)} trials by {result.searcher}, scheduler {result.scheduler}; "
        "the winner first, then by value."
    )
    drawn = [Plot(f"search-{n}", figure, "wide") for n, figure in search.figures(result).items()]
    table = _table("Trials", frame, ".4g", frozenset({0}))
    return Section("search", "Search", words, [*drawn, table])


def _facts(bundle: Bundle, run: RunFolder | None) -> Section:
    """List versions, folders, files and settings."""
    config = bundle.config
    rows = [
        ["recray", __version__],
        ["model version", bundle.version],
        ["written", str(bundle.created)],
        ["data set", f"{config['dataset']}, {config['users']:,} users and {config['items']:,} "
         "films in training"],
        ["preset", bundle.settings.preset],
        ["chosen epoch", str(config["epoch"])],
        ["folder", (run or bundle).folder.path],
    ]  # fmt: skip
    if run:
        metadata = run.metadata()
        rows += [["prepared data", metadata.prepared], ["workers", str(metadata.workers)]]
    files = [[entry.name, f"{entry.bytes:,}", entry.sha256[:16]] for entry in bundle.manifest.files]
    settings = yaml.safe_dump(config["settings"], sort_keys=False, default_flow_style=None)
    blocks: list[Block] = [
        Table("What it is", ["", ""], rows, half=True),
        Table("Files of the bundle", ["file", "bytes", "sha256"], files, half=True),
        Details("All settings", settings),
    ]
    return Section("facts", "Run facts", "", blocks)


def _table(
    title: str, frame: pd.DataFrame, number: str, marked: frozenset[int] = frozenset()
) -> Table:
    """A data frame with its index; floats in the format `number`, and nothing for a missing one."""
    rows = [
        [str(name), *(_cell(value, number) for value in values)]
        for name, values in zip(frame.index, frame.to_numpy(dtype=object), strict=True)
    ]
    return Table(title, [str(frame.index.name), *map(str, frame.columns)], rows, marked)


def _cell(value: object, number: str) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else format(value, number)
    return "" if value is None else str(value)
