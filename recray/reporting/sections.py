"""The sections of a report: which plots and tables each shows."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from matplotlib.figure import Figure

from recray import __version__
from recray.data.dataset import Ratings
from recray.inference.bundle import Bundle
from recray.inference.inspect_user import inspect_user
from recray.inference.recommender import Recommender
from recray.reporting import frames
from recray.reporting.html import Block, Details, Plot, Section, Table
from recray.reporting.plots import data, held_out, predictions, ranking, search, training
from recray.training.checkpoint import RunFolder
from recray.tuning.results import TuneResult

LISTED = 10
"""Items of each list of a user."""


def data_plots(every: Ratings, item_table: pa.Table) -> dict[str, Figure]:
    """Plot a data set: ratings, times, activity and genres, as far as it has them.

    Args:
        every: All of its ratings.
        item_table: schema.ITEMS.
    """
    stars, count = np.unique(every.rating.astype(np.float64), return_counts=True)
    per_item = np.bincount(every.item, minlength=len(item_table))
    genres = Counter[str]()
    for own, ratings in zip(item_table["genres"].to_pylist(), per_item, strict=True):
        genres.update({genre: int(ratings) for genre in own})
    made = {
        "data-ratings": data.levels(list(zip(stars.tolist(), count.tolist(), strict=True))),
        "data-time": data.over_time(every.timestamp),
        "data-users": data.activity(np.bincount(every.user), "user"),
        "data-films": data.activity(per_item, "film"),
        "data-genres": data.genres(genres),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def data_section(bundle: Bundle) -> Section:
    """Plot all ratings, and count them by split."""
    every = Ratings.concatenate([bundle.history, bundle.holdout])
    rows = {name: split["rows"] for name, split in bundle.config["splits"].items()}
    words = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    kind = bundle.config["split"]["kind"]
    made = _plots(data_plots(every, bundle.item_table))
    return Section("data", "Data", f"All ratings. Split {kind}: {words}.", made)


def training_section(bundle: Bundle) -> Section | None:
    """Plot loss, validation metric and speed by epoch; None without epochs."""
    entries = bundle.training
    if not entries:
        return None
    best, settings = bundle.config["epoch"], bundle.settings
    rows = bundle.config["splits"]["train"]["rows"]
    made = {
        "training-loss": training.loss(entries, settings.objective.kind),
        "training-metric": training.metric(entries, settings.metric, best),
        "training-speed": training.speed(entries, rows),
    }
    seconds = sum(entry["seconds"] for entry in entries)
    words = f"{len(entries)} epochs in {seconds:.1f} s; the model is that of epoch {best}."
    return Section("training", "Training", words, _plots(made))


def predictions_section(recommender: Recommender) -> Section | None:
    """Compare predictions with held-out ratings; None where nothing is held out."""
    if not len(recommender.bundle.holdout):
        return None
    held = held_out.measure(recommender)
    made: dict[str, Any]
    if held.predicted is not None:
        pair = held.predicted, held.actual
        made = {
            "predictions-spread": predictions.distributions(*pair),
            "predictions-against": predictions.against(*pair),
            "predictions-calibration": predictions.calibration(*pair),
            "predictions-error": predictions.error_by_level(*pair),
        }
        words = f"{len(held.actual):,} held-out ratings, predicted in stars."
    elif len(held.rank):
        made = {
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
    return Section("predictions", "Predictions", words, _plots(made))


def ranking_section(report: dict[str, Any]) -> Section | None:
    """Show every metric beside the baselines; None without an evaluation."""
    if not report:
        return None
    made = {
        "ranking-metrics": ranking.beside(report, errors=False),
        "ranking-errors": ranking.beside(report, errors=True),
        "ranking-catalogue": ranking.catalogue(report),
        "ranking-users": ranking.by_history(report),
        "ranking-films": ranking.by_popularity(report),
    }
    table = frames.metrics(report)
    rows = [
        [str(name), *("" if np.isnan(v) else f"{v:.4f}" for v in values)]
        for name, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    words = f"{report['users']:,} users of the test split, the whole catalogue ranked."
    blocks = [*_plots(made), Table("All metrics", ["metric", *table.columns], rows)]
    return Section("ranking", "Ranking", words, blocks)


def users_section(recommender: Recommender) -> Section | None:
    """Show what a few users rated, are recommended, and rated in the test split."""
    chosen = held_out.typical_users(recommender)
    if not chosen:
        return None
    blocks: list[Block] = []
    k = min(LISTED, recommender.items.known)
    for dense in chosen:
        look = inspect_user(recommender, recommender.users.raw.tolist()[dense], k)
        who = f"User {look.user}"
        blocks.append(
            Table(
                f"{who}: the best of {look.ratings:,} ratings",
                ["film", "genres", "stars"],
                [[f.title, ", ".join(f.genres), f"{f.rating:g}"] for f in look.rated],
                half=True,
            )
        )
        blocks.append(
            Table(
                f"{who}: recommended; {look.hits} of {len(look.held_out)} held-out films hit",
                ["film", "genres", "predicted" if look.scores == "stars" else "score"],
                [
                    [("✓ " if f.hit else "") + f.title, ", ".join(f.genres), f"{f.score:.2f}"]
                    for f in look.recommended
                ],
                frozenset(n for n, f in enumerate(look.recommended) if f.hit),
                half=True,
            )
        )  # fmt: skip
    words = (
        "At a quarter, half and three quarters of all users by known ratings. "
        "Green and ✓: held out and found."
    )
    return Section("users", "A few users", words, blocks)


def search_section(result: TuneResult) -> Section:
    """Show the trials, the best first."""
    frame = frames.trials(result)
    if not frame["error"].any():
        frame = frame.drop(columns="error")
    columns = ["trial", *(str(name) for name in frame.columns)]
    rows = [
        [str(number), *(_cell(value) for value in values)]
        for number, values in zip(frame.index, frame.to_numpy(dtype=object), strict=True)
    ]
    words = (
        f"{len(rows)} trials by {result.searcher}, scheduler {result.scheduler}; "
        "the winner first, then by value."
    )
    drawn = [
        Plot(f"search-{name}", figure, "wide") for name, figure in search.figures(result).items()
    ]
    table = Table("Trials", columns, rows, frozenset({0}))
    return Section("search", "Search", words, [*drawn, table])


def facts_section(bundle: Bundle, run: RunFolder | None) -> Section:
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


def _plots(made: Mapping[str, Figure | None]) -> list[Block]:
    """Lay out the plots that there are: two a row, and three in the last row of an odd number."""
    drawn = [(name, figure) for name, figure in made.items() if figure is not None]
    thirds = len(drawn) - 3 if len(drawn) % 2 and len(drawn) > 1 else len(drawn)
    return [
        Plot(name, figure, "third" if place >= thirds else "half")
        for place, (name, figure) in enumerate(drawn)
    ]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
