"""Ranking metrics of each user, as arrays; means and intervals are taken from them elsewhere.

Every function takes hits and relevant as `ndcg` describes them, returns (U,) float64, and gives nan
where a user has no relevant item.
"""

# Shape letters: U = users, R = ranks, K = cut-off.

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
