"""Metrics of groups: users by the number of their known ratings, and items by theirs."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from recray.config import EvaluateSettings
from recray.evaluation import metrics
from recray.evaluation.bootstrap import means
from recray.evaluation.per_user import PerUserMetrics, RankedBatch, metric_names
from recray.evaluation.report import Segment, Segments, Values
from recray.inference.scorer import NONE, Scorer

USER_SLICES = {"0": 0, "1-19": 1, "20-49": 20, "50-99": 50, "100+": 100}
"""Name to the least number of ratings known of a user."""

ITEM_SLICES = {"tail": 0, "middle": 5, "head": 50}
"""Name to the least number of ratings known of an item: under 5, 5 to 49, 50 and more."""


def add_columns(
    table: PerUserMetrics, lists: RankedBatch, scorer: Scorer, settings: EvaluateSettings
) -> PerUserMetrics:
    """Add what slices need of each user: `history`, the number of known ratings; for each slice of
    items `relevant/SLICE`, how many relevant items it has, and `recall@K/SLICE`, found of them.
    """
    edges = list(ITEM_SLICES.values())
    slice_of = np.searchsorted(edges, scorer.popularity.numpy(), "right") - 1
    slice_of = np.append(slice_of, 0)  # unknown items are in the tail
    unknown = len(slice_of) - 1
    listed = slice_of[np.where(lists.ranked.item == NONE, unknown, lists.ranked.item)]
    wanted = slice_of[np.minimum(lists.item, unknown)]
    indptr = scorer.history.indptr
    values = {"history": (indptr[lists.users + 1] - indptr[lists.users]).astype(np.float64)}
    for place, name in enumerate(ITEM_SLICES):
        count = lists.count(lists.relevant & (wanted == place))
        values[f"relevant/{name}"] = count.astype(np.float64)
        hits = lists.hits & (listed == place)
        for k in settings.k:
            values[f"recall@{k}/{name}"] = metrics.recall(hits, count, min(k, unknown))
    return replace(table, values=table.values | values)


def report(tables: Mapping[str, PerUserMetrics], settings: EvaluateSettings) -> Segments:
    """Measure every group that has a user or a held-out rating in it.

    Args:
        tables: Name of the model or baseline to its table, with the columns of add_columns.
        settings: Cut-offs.

    Returns:
        Groups of users with all metrics, and groups of items with their recall.
    """
    first = next(iter(tables.values()))
    slice_of = np.searchsorted(list(USER_SLICES.values()), first.values["history"], "right") - 1
    users: dict[str, Segment] = {}
    for place, name in enumerate(USER_SLICES):
        own = slice_of == place
        if own.any():
            parts = {system: table.where(own) for system, table in tables.items()}
            measured = {
                system: _means(part, metric_names(settings, part.predicts_ratings))
                for system, part in parts.items()
            }
            users[name] = Segment(users=int(own.sum()), **measured)
    items: dict[str, Segment] = {}
    for name in reversed(ITEM_SLICES):
        ratings = int(first.values[f"relevant/{name}"].sum())
        if ratings:
            columns = {f"recall@{k}": f"recall@{k}/{name}" for k in settings.k}
            found = {
                system: dict(zip(columns, _means(table, [*columns.values()]).values(), strict=True))
                for system, table in tables.items()
            }
            items[name] = Segment(ratings=ratings, **found)
    return Segments(users=users, items=items)


def _means(table: PerUserMetrics, names: list[str]) -> Values:
    return {n: None if np.isnan(v) else v for n, v in means(table, names).items()}
