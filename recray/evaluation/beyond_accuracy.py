"""What lists show beside accuracy: of the catalogue, of one another, and beyond the popular items.

The vectors and genres that lists are measured by are those of the evaluated model for all systems,
so that the baselines beside it compare.
"""

# Shape letters: U = users, K = length of a list, I = items, D = vector length, G = genres.

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recray.config import EvaluateSettings
from recray.evaluation.metrics import Counts, PerUser, PerUserMetrics, RankedBatch
from recray.evaluation.report import Values
from recray.inference.bundle import Bundle
from recray.inference.recommendations import ItemSimilarity
from recray.inference.top_k import NONE, Ids

PAIR_CELLS = 1 << 22
"""Pairs of items of lists that are looked at at once."""
MAX_GENRE_CELLS = 1 << 28
"""Items times genres; above, lists are not compared by genre."""
OF_LISTS = ("novelty", "mean_popularity", "diversity", "genre_diversity", "serendipity")
"""Metrics of one list each, whose mean is taken over the lists that have them."""


@dataclass(frozen=True)
class ItemTraits:
    """What tells items apart beside their ratings.

    Args:
        unit: (I, D) float32 vectors of length 1; None where the model has none.
        genres: (I, G) bool; None where no item has a genre, or there are too many.
        ratings: (I,) float64 training ratings of each item.
    """

    unit: NDArray[np.float32] | None
    genres: NDArray[np.bool_] | None
    ratings: NDArray[np.float64]

    @classmethod
    def of(cls, bundle: Bundle, ratings: NDArray[np.floating]) -> Self:
        """The items that the bundle's model knows, with their training ratings."""
        similarity = ItemSimilarity.of(bundle.model)
        unit = None if similarity is None else similarity.all_unit_vectors().numpy()
        items = bundle.model.items
        return cls(unit, _genre_table(bundle, items), ratings.astype(np.float64))


def _genre_table(bundle: Bundle, items: int) -> NDArray[np.bool_] | None:
    column = bundle.item_table["genres"].combine_chunks().slice(0, items)
    coded = column.flatten().dictionary_encode()
    names = len(coded.dictionary)
    if not names or items * names > MAX_GENRE_CELLS:
        return None
    table = np.zeros((items, names), np.bool_)
    counts = column.value_lengths().fill_null(0).to_numpy()
    table[np.repeat(np.arange(items), counts), coded.indices.to_numpy()] = True
    return table


def add_list_metrics(
    table: PerUserMetrics,
    lists: RankedBatch,
    traits: ItemTraits,
    popular: Ids,
    settings: EvaluateSettings,
) -> PerUserMetrics:
    """Add the metrics of OF_LISTS at each cut-off.

    Args:
        table: The metrics of these lists so far.
        lists: Lists of U users.
        traits: What tells their items apart.
        popular: (U, K) the most popular items that each of these users has not seen.
        settings: Cut-offs.
    """
    listed = lists.ranked.item
    there = listed != NONE
    columns: dict[str, PerUser] = {}
    values = {"novelty": self_information(traits.ratings), "mean_popularity": traits.ratings}
    relevant = lists.count(lists.relevant) > 0
    for k in settings.k:
        for name, of_item in values.items():
            columns[f"{name}@{k}"] = mean_of_shown(of_item[listed], there, k)
    apart = _by_pairs(lists, traits, popular, settings)
    for k, (diversity, genre_diversity, serendipity) in apart.items():
        columns[f"diversity@{k}"] = diversity
        columns[f"genre_diversity@{k}"] = genre_diversity
        columns[f"serendipity@{k}"] = np.where(relevant, serendipity, np.nan)
    return replace(table, values=table.values | columns)


def self_information(count: NDArray[np.floating]) -> NDArray[np.float64]:
    """How surprising each item is: -log2 of its share of the training ratings, in bits.

    Its mean over a list is the list's novelty.

    Args:
        count: (I,) training ratings of each item; an item without any counts as rated once.

    Source: Zhou et al. (2010), PNAS 107(10), with shares of ratings in place of users.
    """
    count_I = np.maximum(count.astype(np.float64), 1.0)
    return np.asarray(np.log2(count_I.sum()) - np.log2(count_I))


def mean_of_shown(value: NDArray[np.float64], shown: NDArray[np.bool_], k: int) -> PerUser:
    """Mean of a number of each shown item over each list; nan for an empty list.

    Args:
        value: (U, K) number of the item at each rank; any where there is none.
        shown: (U, K) whether there is an item at that rank.
        k: Cut-off in items, 1 <= k <= K.
    """
    shown_UK = shown[:, :k]
    total = np.where(shown_UK, value[:, :k], 0.0).sum(axis=1)
    count = shown_UK.sum(axis=1)
    return np.asarray(total / np.where(count > 0, count, np.nan))


def _by_pairs(
    lists: RankedBatch, traits: ItemTraits, popular: Ids, settings: EvaluateSettings
) -> dict[int, tuple[PerUser, PerUser, PerUser]]:
    """What looks at pairs of items, by cut-off: see diversity, genre_diversity, serendipity."""
    listed = lists.ranked.item
    users, longest = listed.shape
    found = {k: tuple(np.full(users, np.nan) for _ in range(3)) for k in settings.k}
    step = max(1, PAIR_CELLS // longest**2)
    for rows in (slice(first, first + step) for first in range(0, users, step)):
        item, there = listed[rows], listed[rows] != NONE
        by_vectors = None if traits.unit is None else cosine_distance(traits.unit[item])
        by_genres = None if traits.genres is None else jaccard_distance(traits.genres[item])
        for k, columns in found.items():
            for column, distance in zip(columns, (by_vectors, by_genres), strict=False):
                if distance is not None:
                    column[rows] = mean_distance(distance, there, k)
            columns[2][rows] = serendipity(item, lists.hits[rows], popular[rows], k)
    return {k: (a, b, c) for k, (a, b, c) in found.items()}


def cosine_distance(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of each two items of each list: (U, K, D) vectors of length 1 to (U, K, K)."""
    return np.asarray(1 - unit @ unit.transpose(0, 2, 1))


def jaccard_distance(genres: NDArray[np.bool_]) -> NDArray[np.float32]:
    """1 - the share of the genres of two items that both have: (U, K, G) bool to (U, K, K).

    nan where one of the two has no genre.
    """
    each = genres.astype(np.float32)
    count = each.sum(axis=2)
    both = each @ each.transpose(0, 2, 1)
    any_of_two = count[:, :, None] + count[:, None, :] - both
    known = (count[:, :, None] > 0) & (count[:, None, :] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, 1 - both / any_of_two, np.nan), np.float32)


def mean_distance(distance: NDArray[np.float32], there: NDArray[np.bool_], k: int) -> PerUser:
    """Intra-list diversity: the mean distance of any two items of each list, cut at k.

    Args:
        distance: (U, K, K); nan where two items cannot be compared.
        there: (U, K) whether there is an item at that rank.
        k: Cut-off in items.

    Returns:
        (U,); nan where no two items can be compared.

    Source: Ziegler et al. (2005), WWW, with distances in place of their similarities; as in
        Castells, Hurley and Vargas (2015), Recommender Systems Handbook, section 26.3.1.
    """
    above = np.triu(np.ones((k, k), np.bool_), 1)
    pairs = above & there[:, :k, None] & there[:, None, :k] & ~np.isnan(distance[:, :k, :k])
    total = np.where(pairs, distance[:, :k, :k], 0.0).sum(axis=(1, 2), dtype=np.float64)
    count = pairs.sum(axis=(1, 2))
    return np.asarray(total / np.where(count > 0, count, np.nan))


def serendipity(listed: Ids, hits: NDArray[np.bool_], popular: Ids, k: int) -> PerUser:
    """Share of the k places that hold a relevant item which popularity would not have shown.

    Args:
        listed: (U, K) items of each list.
        hits: (U, K) whether the item there is relevant.
        popular: (U, K) the most popular items that each user has not seen.
        k: Cut-off in items, of both lists.

    Source: Ge, Delgado-Battenfeld and Jannach (2010), RecSys, with popularity as the primitive
        model, over the length of the list as in Adamopoulos and Tuzhilin (2014), ACM TIST 5(4).
    """
    expected = (listed[:, :k, None] == popular[:, None, :k]).any(axis=2)
    return np.asarray((hits[:, :k] & ~expected).sum(axis=1) / k)


# -------------------------------------------------------------------------------- all lists


def coverage(shown: Counts) -> float:
    """Share of the catalogue that is in any list; (I,) counts of lists that show each item."""
    return float((shown > 0).mean())


def gini(shown: Counts) -> float:
    """How unevenly the places in the lists are shared out: 0 all alike, 1 one item has them all.

    Args:
        shown: (I,) int64; how many lists show each item.

    Returns:
        sum_i (2 i - I - 1) shown_i / ((I - 1) sum shown), with shown ascending and i from 1; so 1
        is reached for any I. nan if nothing is shown or there is one item.

    Source: Shani and Gunawardana (2011), Recommender Systems Handbook, section 8.3.3.
    """
    items, total = len(shown), int(shown.sum())
    if items < 2 or not total:
        return float("nan")
    weight = 2 * np.arange(1, items + 1, dtype=np.int64) - items - 1
    return int((weight * np.sort(shown)).sum()) / ((items - 1) * total)


def exposure_metrics(table: PerUserMetrics, settings: EvaluateSettings) -> Values:
    """What all lists show at each cut-off; None where no list has an item.

    coverage and gini are of all lists together, those of OF_LISTS means over the lists.
    """
    out: dict[str, float] = {}
    for shown, k in zip(table.shown, settings.k, strict=True):
        of_lists = {name: _mean(table.values[f"{name}@{k}"]) for name in OF_LISTS}
        of_all = {"coverage": coverage(shown), "novelty": of_lists["novelty"], "gini": gini(shown)}
        found = of_all | of_lists
        out |= {f"{name}@{k}": value for name, value in found.items()}
    return {name: None if np.isnan(value) else value for name, value in out.items()}


def _mean(value: PerUser) -> float:
    known = value[~np.isnan(value)]
    return float(known.mean()) if len(known) else float("nan")
