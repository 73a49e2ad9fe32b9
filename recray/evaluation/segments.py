"""Metrics of groups: of users by what is known of them, of held-out items by how often rated."""

# Shape letters: U = users, or lists where a user has several.

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recray.config import EvaluateSettings
from recray.evaluation.comparison import means
from recray.evaluation.metrics import PerUserMetrics, RankedBatch, metric_names, recall
from recray.evaluation.report import Segment, Segments, Values
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE
from recray.inference.user_features import UserFeatures

USER_SLICES = {"0": 0, "1-19": 1, "20-49": 20, "50-99": 50, "100+": 100}
"""Name to the least number of ratings known of a user."""

ITEM_SLICES = {"tail": 0, "middle": 5, "head": 50}
"""Name to the least number of ratings known of an item: under 5, 5 to 49, 50 and more."""

AGES = {
    "under 18": 0,
    "18-24": 18,
    "25-34": 25,
    "35-44": 35,
    "45-49": 45,
    "50-55": 50,
    "56+": 56,
}
"""Name to the least age: the brackets of ml-1m, which gives no other ages."""
UNKNOWN, REST = "unknown", "other"
MOST_GENDERS = 8
"""Names that have a group of their own, the commonest."""

Groups = Iterator[tuple[str, NDArray[np.bool_]]]
"""Names of groups, each with the (U,) rows that belong to it."""


def add_segments(
    table: PerUserMetrics,
    lists: RankedBatch,
    scorer: Scorer,
    settings: EvaluateSettings,
    history: NDArray[np.int64],
) -> PerUserMetrics:
    """Add what slices need of each user: `history`, the number of known ratings; for each slice of
    items `relevant/SLICE`, how many relevant items it has, and `recall@K/SLICE`, found of them.

    Args:
        table: The metrics of these lists so far.
        lists: The lists.
        scorer: What ranked them.
        settings: Cut-offs.
        history: (U,) known ratings behind each list.
    """
    edges, known = list(ITEM_SLICES.values()), scorer.popularity.numpy()
    slice_of = np.append(np.searchsorted(edges, known, "right") - 1, 0)  # unknown: in the tail
    unknown = len(slice_of) - 1
    listed = slice_of[np.where(lists.ranked.item == NONE, unknown, lists.ranked.item)]
    wanted = slice_of[np.minimum(lists.item, unknown)]
    values = {"history": history.astype(np.float64)}
    for place, name in enumerate(ITEM_SLICES):
        count = lists.count(lists.relevant & (wanted == place))
        values[f"relevant/{name}"] = count.astype(np.float64)
        hits = lists.hits & (listed == place)
        for k in settings.k:
            values[f"recall@{k}/{name}"] = recall(hits, count, min(k, unknown))
    return replace(table, values=table.values | values)


def segments_report(
    tables: Mapping[str, PerUserMetrics],
    settings: EvaluateSettings,
    facts: UserFeatures | None = None,
) -> Segments:
    """Measure every group that has a user or a held-out rating in it.

    Args:
        tables: Name of the model or baseline to its table, with the columns of add_segments.
        settings: Cut-offs.
        facts: What the data set says of its users.

    Returns:
        Groups of users with all metrics, and groups of items with their recall.
    """
    first = next(iter(tables.values()))
    places = np.searchsorted(list(USER_SLICES.values()), first.values["history"], "right") - 1
    by_activity = _groups(places, list(USER_SLICES))
    return Segments(
        users=_of_users(tables, settings, by_activity),
        items=_of_items(tables, settings),
        gender=_of_users(tables, settings, by_gender(facts, first.user)) or None,
        age=_of_users(tables, settings, by_age(facts, first.user)) or None,
    )


def by_gender(facts: UserFeatures | None, user: NDArray[np.int64]) -> Groups:
    """Users by gender, the commonest first, then those without; nothing where none is known."""
    if facts is None:
        return
    gender = facts.gender[user]
    counts = Counter(name for name in gender.tolist() if name is not None)
    names = [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    if not names:
        return
    place = {name: min(n, MOST_GENDERS) for n, name in enumerate(names)}
    places = np.array([place.get(name, MOST_GENDERS + 1) for name in gender.tolist()])
    own = names[:MOST_GENDERS]
    yield from _groups(places, own + [""] * (MOST_GENDERS - len(own)) + [REST, UNKNOWN])


def by_age(facts: UserFeatures | None, user: NDArray[np.int64]) -> Groups:
    """Users by age, then those of whom it is not known; nothing where it is of none."""
    if facts is None or not (facts.age[user] >= 0).any():
        return
    places = np.searchsorted(list(AGES.values()), facts.age[user], "right") - 1
    yield from _groups(np.where(places < 0, len(AGES), places), [*AGES, UNKNOWN])


def _groups(places: NDArray[np.int64], names: Sequence[str]) -> Groups:
    """The groups that have somebody, of (U,) places in the names."""
    for place, name in enumerate(names):
        chosen = places == place
        if chosen.any():
            yield name, chosen


def _of_users(
    tables: Mapping[str, PerUserMetrics], settings: EvaluateSettings, groups: Groups
) -> dict[str, Segment]:
    segments = {}
    for name, chosen in groups:
        parts = {system: table.where(chosen) for system, table in tables.items()}
        found = {
            system: means(part, metric_names(settings, part.predicts_ratings))
            for system, part in parts.items()
        }
        users = next(iter(parts.values())).users
        segments[name] = Segment(users=users, **{s: without_nan(v) for s, v in found.items()})
    return segments


def _of_items(
    tables: Mapping[str, PerUserMetrics], settings: EvaluateSettings
) -> dict[str, Segment]:
    first = next(iter(tables.values()))
    items: dict[str, Segment] = {}
    for name in reversed(ITEM_SLICES):
        ratings = int(first.values[f"relevant/{name}"].sum())
        if ratings:
            columns = [f"recall@{k}/{name}" for k in settings.k]
            found = {
                system: {n.partition("/")[0]: v for n, v in means(table, columns).items()}
                for system, table in tables.items()
            }
            items[name] = Segment(ratings=ratings, **{s: without_nan(v) for s, v in found.items()})
    return items


def without_nan(values: Mapping[str, float]) -> Values:
    """The same with None for what could not be measured."""
    return {name: None if np.isnan(value) else value for name, value in values.items()}
