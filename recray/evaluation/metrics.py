"""Ranking metrics of each user, as arrays; means and intervals are taken from them elsewhere.

Every function of RANKING takes hits and relevant as `ndcg` describes them, returns (U,) float64,
and gives nan where a user has no relevant item. What follows it is about the catalogue: how much
of it the lists show, how evenly, and how little known it is.
"""

# Shape letters: U = users, R = ranks, K = cut-off, I = items.

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Counts = NDArray[np.int64]
PerUser = NDArray[np.float64]


def _checked(hits: Hits, relevant: Counts, k: int) -> tuple[NDArray[np.float64], PerUser]:
    """Hits within the cut-off as numbers, and relevant as divisor (nan for none)."""
    users, ranks = hits.shape
    if not 1 <= k <= ranks:
        raise ValueError(f"k must be between 1 and {ranks}, got {k}")
    if len(relevant) != users:
        raise ValueError(f"hits has {users} users, relevant has {len(relevant)}")
    return hits[:, :k].astype(np.float64), np.where(relevant > 0, relevant, np.nan)


def ndcg(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Normalised discounted cumulative gain of each user's list, cut at k.

    Args:
        hits: (U, R) bool; hits[u, r] says that the item at rank r (0 is the top) is relevant to
            user u.
        relevant: (U,) int64; relevant items each user has in the held-out split, shown or not.
        k: Cut-off in items, 1 <= k <= R.

    Returns:
        (U,) float64 in [0, 1]; nan where a user has no relevant item.

    Raises:
        ValueError: k is outside 1..R, or the two arrays differ in U.

    Source: Jarvelin and Kekalainen (2002), ACM TOIS 20(4), with binary gain and the log2(rank + 1)
        discount of Burges et al. (2005).
    """
    hits_UK, _ = _checked(hits, relevant, k)
    weight_K = 1 / np.log2(np.arange(2, k + 2))
    best_K = np.concatenate([[np.nan], weight_K.cumsum()])
    gain: PerUser = (hits_UK @ weight_K) / best_K[np.minimum(relevant, k)]
    return gain


def recall(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Share of the relevant items that the list shows: hits / relevant, never / min(k, ...)."""
    hits_UK, divisor = _checked(hits, relevant, k)
    return hits_UK.sum(axis=1) / divisor


def precision(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Share of the k places that hold a relevant item."""
    hits_UK, divisor = _checked(hits, relevant, k)
    return hits_UK.sum(axis=1) / k + 0 * divisor


def hit_rate(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """1 if the list shows any relevant item, else 0."""
    hits_UK, divisor = _checked(hits, relevant, k)
    return hits_UK.max(axis=1) + 0 * divisor


def reciprocal_rank(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """1 / rank of the first relevant item (1 is the top), 0 if none is shown."""
    hits_UK, divisor = _checked(hits, relevant, k)
    first = hits_UK.argmax(axis=1)
    return hits_UK.max(axis=1) / (first + 1) + 0 * divisor


def average_precision(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Mean over relevant items of the precision at their rank, divided by min(k, relevant)."""
    hits_UK, divisor = _checked(hits, relevant, k)
    precision_UK = hits_UK.cumsum(axis=1) / np.arange(1, k + 1)
    return (precision_UK * hits_UK).sum(axis=1) / np.minimum(divisor, k)


RANKING: dict[str, Callable[[Hits, Counts, int], PerUser]] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "hitrate": hit_rate,
    "mrr": reciprocal_rank,
    "map": average_precision,
}
RATING = ("rmse", "mae")


def self_information(count: NDArray[np.floating]) -> NDArray[np.float64]:
    """How surprising each item is: -log2 of its share of the training ratings, in bits.

    Args:
        count: (I,) training ratings of each item; an item without any counts as rated once.

    Source: Zhou et al. (2010), PNAS 107(10), with shares of ratings in place of users.
    """
    count_I = np.maximum(count.astype(np.float64), 1.0)
    return np.log2(count_I.sum()) - np.log2(count_I)


def novelty(surprise: NDArray[np.float64], shown: NDArray[np.bool_], k: int) -> PerUser:
    """Mean self_information of the items of each user's list, in bits; nan for an empty list.

    Args:
        surprise: (U, R) self_information of the item at each rank; any number where there is none.
        shown: (U, R) whether there is an item at that rank.
        k: Cut-off in items, 1 <= k <= R.
    """
    shown_UK = shown[:, :k]
    total = np.where(shown_UK, surprise[:, :k], 0.0).sum(axis=1)
    count = shown_UK.sum(axis=1)
    return total / np.where(count > 0, count, np.nan)


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
