"""Arrays of recray as pandas frames, with titles."""

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa

from recray import schema
from recray.data.dataset import Ratings
from recray.data.ids import IdMap
from recray.evaluation.report import EvaluationReport, Interval
from recray.inference.catalog import ItemSummary
from recray.training.run_metadata import EpochEntry, ModelSelection
from recray.tuning.results import TuneResult

UNMEASURED = Interval(value=float("nan"), low=float("nan"), high=float("nan"))
FILM = ("item", "title", "year", "genres")


def ratings(rows: Ratings, users: IdMap, items: IdMap, titles: pa.ChunkedArray) -> pd.DataFrame:
    """Ratings in raw ids.

    Args:
        rows: R ratings.
        users: Raw and dense user ids.
        items: Raw and dense item ids.
        titles: Title of each dense item id.

    Returns:
        R rows: user, item, title, rating (stars), time (UTC; missing where unknown).
    """
    seconds = pd.Series(rows.timestamp).where(rows.timestamp != schema.UNKNOWN_TIME)
    return pd.DataFrame(
        {
            "user": users.raw[rows.user],
            "item": items.raw[rows.item],
            "title": titles.take(pa.array(rows.item)).to_numpy(),
            "rating": rows.rating,
            "time": pd.to_datetime(seconds, unit="s", utc=True),
        }
    )


def plain(table: pa.Table) -> pd.DataFrame:
    """The columns of a table as they are."""
    frame: pd.DataFrame = table.to_pandas()
    return frame


def items(table: pa.Table) -> pd.DataFrame:
    """Items by raw id: title, year (missing where unknown), genres (a list), training ratings."""
    frame = table.select(["raw_item", "title", "year", "genres", "ratings"]).to_pandas()
    frame["year"] = frame["year"].astype("Int64").where(frame["year"] != 0)
    frame["genres"] = [list(names) for names in frame["genres"]]
    by_item: pd.DataFrame = frame.set_index("raw_item").rename_axis("item")
    return by_item


def item_list(rows: Sequence[ItemSummary], *columns: str) -> pd.DataFrame:
    """A list of items, best first; the index `place` counts from 1."""
    frame = pd.DataFrame(
        [{name: getattr(row, name, None) for name in (*FILM, *columns)} for row in rows]
    )
    frame = frame.reindex(columns=[*FILM, *columns])
    frame["year"] = frame["year"].astype("Int64")
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="place")
    return frame


def history(entries: Sequence[EpochEntry]) -> pd.DataFrame:
    """A row an epoch, by epoch: loss, validation metrics, seconds."""
    return pd.DataFrame(entries).set_index("epoch") if entries else pd.DataFrame()


def metrics(report: EvaluationReport) -> pd.DataFrame:
    """An evaluation: a row a metric, with its 95 % interval and a column for each baseline.

    Args:
        report: What the model and its baselines were measured at.

    Returns:
        By metric: model, low, high, then other bundles and the baselines; missing where one
        cannot be measured.
        `attrs` holds the verdict, the number of users and the comparisons.
    """
    others = report.others.values()
    rows: dict[str, list[float | None]] = {}
    for name, mean in report.metrics.items():
        beside = [b.metrics[name].value if name in b.metrics else None for b in others]
        rows[name] = [mean.value, mean.low, mean.high, *beside]
    for name, value in (report.catalogue or {}).items():
        rows[name] = [value, None, None, *((b.catalogue or {}).get(name) for b in others)]
    columns = ["model", "low", "high", *report.others]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float)
    frame.index.name = "metric"
    compared = [found.model_dump() for found in report.comparisons]  # pandas compares attrs by ==
    frame.attrs = {"verdict": report.verdict, "users": report.users, "comparisons": compared}
    return frame


def comparisons(report: EvaluationReport) -> pd.DataFrame:
    """The model against each other system: metric, difference, its interval, p values, verdict."""
    names = ["metric", "difference", "low", "high", "p", "p_holm", "verdict"]
    rows = [[getattr(found, name) for name in names] for found in report.comparisons]
    index = pd.Index([found.other for found in report.comparisons], name="other")
    return pd.DataFrame(rows, index=index, columns=names)


def selection(chosen: ModelSelection) -> pd.DataFrame:
    """The models among which training chose, by name: the metric on validation and its interval,
    what each gained over the best before it (`against`), seconds, whether it was taken.
    """
    rows = []
    for model in chosen.models:
        value, gain = model.value or UNMEASURED, model.gain or UNMEASURED
        row: dict[str, object] = {chosen.metric: value.value, "low": value.low, "high": value.high}
        row |= {"against": model.against, "gain": gain.value, "gain_low": gain.low}
        row |= {"gain_high": gain.high, "seconds": model.seconds}
        rows.append(row | {"taken": model.name == chosen.taken})
    index = pd.Index([model.name for model in chosen.models], name="model")
    return pd.DataFrame(rows, index=index)


def trials(result: TuneResult) -> pd.DataFrame:
    """The trials of a sweep, the winner first, then the best: value, status, epochs, settings."""
    rows = [
        {
            "trial": trial.trial,
            result.metric: trial.value,
            "status": trial.status,
            "best_epoch": trial.best_epoch,
            "epochs": trial.epochs,
            **trial.settings,
            "error": trial.error,
        }
        for trial in result.trials
    ]
    frame = pd.DataFrame(rows).set_index("trial")
    frame = frame.sort_values(result.metric, ascending=result.lower_is_better, kind="stable")
    best = frame.index == result.best
    return pd.concat([frame[best], frame[~best]])
