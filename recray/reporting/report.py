"""The report of a run, a sweep or a bundle: what to show of each, in sections."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from matplotlib.figure import Figure

from recray import __version__
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.inference import inspect_user as look
from recray.inference.bundle import KIND as BUNDLE
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.reporting import frames
from recray.reporting.html import Block, Details, Document, Picture, Section, Table
from recray.reporting.plots import data, held_out, predictions, ranking, search, training
from recray.serving.registry import resolve_bundle
from recray.storage import Folder, is_uri, storage_errors
from recray.training.checkpoint import RunFolder
from recray.training.export import export

LISTED = 10


def make(path: str) -> Document:
    """The report of what lies in a folder.

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
    if not Folder(bundle).published() or Folder(bundle).manifest().get("kind") != BUNDLE:
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
        from recray.reporting.plots.style import png as drawn

        beside = page.with_suffix("")
        folder = beside.with_name(f"{beside.name}-pictures")
        written |= {folder / f"{p.name}.png": drawn(p.figure) for p in document.pictures}
    for path, content in written.items():
        with storage_errors(str(path.parent)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return [str(path) for path in written]


def default_out(path: str) -> str:
    """Beside the folder, under its name; in the current one where the folder is remote."""
    name = Folder(path).name
    return f"{name}.html" if is_uri(path) else f"{Folder(path).path}.html"


# ------------------------------------------------------------------------------ what there is


def _of_run(folder: Folder) -> Document:
    """A run as the bundle of its best epoch."""
    with tempfile.TemporaryDirectory(prefix="recray-report-") as temporary:
        bundle = export(folder.path, f"{temporary}/bundle")
        return of_bundle(bundle, "run", RunFolder(folder.path).facts() | {"run": folder.path})


def of_bundle(bundle: Bundle, what: str, run: dict[str, Any] | None = None) -> Document:
    """The report of an opened bundle.

    Args:
        bundle: The bundle.
        what: What to call it.
        run: What the run that it was made from says of itself.
    """
    recommender, settings = Recommender(bundle), bundle.settings
    report = bundle.metrics
    sections = [
        _data(bundle),
        _training(bundle),
        _predictions(recommender),
        _ranking(report),
        _users(recommender),
        _facts(bundle, run),
    ]
    title = f"{bundle.config['dataset']}: {settings.preset} ({what})"
    lead = report["verdict"].split("; ") if report else ["There is no test split to measure on."]
    chosen = [section for section in sections if section is not None]
    return Document(title, lead, _tiles(bundle), chosen)


def _of_sweep(folder: Folder) -> Document:
    """The search, then the winner's first run on test where it was trained."""
    if not folder.exists("summary.json"):
        raise RecrayError(f"{folder} is not finished; continue it with `recray tune --resume`")
    summary = folder.read_json("summary.json")
    metric, best = summary["metric"], summary["best"]
    won = next(row for row in summary["trials"] if row["trial"] == best)
    lead = [summary["test"]["verdict"] if summary["test"] else "The test split was not opened."]
    tiles = [
        (f"{len(summary['trials'])}", "trials"),
        (f"{won['value']:.4f}", f"best validation {metric}"),
        (f"trial {best}", "won"),
    ]
    title = f"{summary['dataset']}: search from {summary['preset']}"
    trials = _search(summary)
    runs = [n for n in folder.child("final").folders() if n.startswith("winner-")]
    if not runs:
        return Document(title, lead, tiles, [trials])
    winner = _of_run(folder.child("final").child(runs[0]))
    return Document(title, lead + winner.lead, tiles, [trials, *winner.sections])


def _tiles(bundle: Bundle) -> list[tuple[str, str]]:
    ratings = len(bundle.history) + len(bundle.holdout)
    tiles = [
        (f"{ratings:,}", "ratings"),
        (f"{len(bundle.user_ids):,}", "users"),
        (f"{len(bundle.item_ids):,}", "films"),
    ]
    wanted = (bundle.settings.metric, f"ndcg@{bundle.settings.evaluate.k[0]}")
    for name in dict.fromkeys(wanted):
        value = bundle.metrics.get("metrics", {}).get(name)
        if value is not None:
            words = f"{name} on test ({value['low']:.4f} to {value['high']:.4f})"
            tiles.append((f"{value['value']:.4f}", words))
    if bundle.metrics.get("coverage") is not None:
        tiles.append((f"{100 * bundle.metrics['coverage']:.0f} %", "of all films in some list"))
    return tiles


# ------------------------------------------------------------------------------ sections


def data_pictures(every: Ratings, item_table: pa.Table) -> dict[str, Figure]:
    """The pictures of a data set by name, those that it allows.

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


def _data(bundle: Bundle) -> Section:
    every = Ratings.concatenate([bundle.history, bundle.holdout])
    rows = {name: split["rows"] for name, split in bundle.config["splits"].items()}
    words = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    kind = bundle.config["split"]["kind"]
    made = _pictures(data_pictures(every, bundle.item_table))
    return Section("data", "Data", f"All ratings. Split {kind}: {words}.", made)


def _training(bundle: Bundle) -> Section | None:
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
    return Section("training", "Training", words, _pictures(made))


def _predictions(recommender: Recommender) -> Section | None:
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
    return Section("predictions", "Predictions", words, _pictures(made))


def _ranking(report: dict[str, Any]) -> Section | None:
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
    blocks = [*_pictures(made), Table("All metrics", ["metric", *table.columns], rows)]
    return Section("ranking", "Ranking", words, blocks)


def _users(recommender: Recommender) -> Section | None:
    chosen = held_out.typical_users(recommender)
    if not chosen:
        return None
    blocks: list[Block] = []
    k = min(LISTED, recommender.items.known)
    for dense in chosen:
        told = look.explain(recommender, recommender.users.raw.tolist()[dense], k)
        who = f"User {told['user']}"
        blocks.append(
            Table(
                f"{who}: the best of {told['ratings']:,} ratings",
                ["film", "genres", "stars"],
                [[f["title"], ", ".join(f["genres"]), f"{f['rating']:g}"] for f in told["rated"]],
                half=True,
            )
        )
        blocks.append(
            Table(
                f"{who}: recommended; {told['hits']} of {len(told['held_out'])} held-out films hit",
                ["film", "genres", "predicted" if told["scores"] == "stars" else "score"],
                [
                    [("✓ " if f["hit"] else "") + f["title"], ", ".join(f["genres"]),
                     f"{f['score']:.2f}"]
                    for f in told["recommended"]
                ],
                frozenset(n for n, f in enumerate(told["recommended"]) if f["hit"]),
                half=True,
            )
        )  # fmt: skip
    words = (
        "At a quarter, half and three quarters of all users by known ratings. "
        "Green and ✓: held out and found."
    )
    return Section("users", "A few users", words, blocks)


def _search(summary: dict[str, Any]) -> Section:
    """The trials, best first."""
    frame = frames.trials(summary)
    if not frame["error"].any():
        frame = frame.drop(columns="error")
    columns = ["trial", *(str(name) for name in frame.columns)]
    rows = [
        [str(number), *(_cell(value) for value in values)]
        for number, values in zip(frame.index, frame.to_numpy(dtype=object), strict=True)
    ]
    words = (
        f"{len(rows)} trials by {summary['searcher']}, scheduler {summary['scheduler']}; "
        "the winner first, then by value."
    )
    drawn = [
        Picture(f"search-{name}", figure, "wide")
        for name, figure in search.figures(summary).items()
    ]
    table = Table("Trials", columns, rows, frozenset({0}))
    return Section("search", "Search", words, [*drawn, table])


def _facts(bundle: Bundle, run: dict[str, Any] | None) -> Section:
    config, manifest = bundle.config, bundle.manifest
    rows = [
        ["recray", __version__],
        ["model version", bundle.version],
        ["written", str(bundle.created)],
        ["data set", f"{config['dataset']}, {config['users']:,} users and {config['items']:,} "
         "films in training"],
        ["preset", bundle.settings.preset],
        ["chosen epoch", str(config["epoch"])],
        ["folder", run["run"] if run else bundle.folder.path],
    ]  # fmt: skip
    if run:
        rows += [["prepared data", run["prepared"]], ["workers", str(run["workers"])]]
    files = [
        [entry["name"], f"{entry['bytes']:,}", entry["sha256"][:16]] for entry in manifest["files"]
    ]
    settings = yaml.safe_dump(config["settings"], sort_keys=False, default_flow_style=None)
    blocks: list[Block] = [
        Table("What it is", ["", ""], rows, half=True),
        Table("Files of the bundle", ["file", "bytes", "sha256"], files, half=True),
        Details("All settings", settings),
    ]
    return Section("facts", "Run facts", "", blocks)


def _pictures(made: Mapping[str, Figure | None]) -> list[Block]:
    """Those that the data allow: two a row, and three in the last one where they are odd."""
    there = [(name, figure) for name, figure in made.items() if figure is not None]
    thirds = len(there) - 3 if len(there) % 2 and len(there) > 1 else len(there)
    return [
        Picture(name, figure, "third" if place >= thirds else "half")
        for place, (name, figure) in enumerate(there)
    ]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
