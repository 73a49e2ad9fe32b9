"""Measure each user's ranked list and predicted ratings on their held-out ratings.

Every function of RANKING takes hits and relevant as `ndcg` describes them, returns (U,) float64,
and gives nan where a user has no relevant item.

Users are measured in fixed blocks, each by the same code on every worker. The results are joined
in the order of users and reduced once, so the digits do not depend on the number of workers.
"""

# Shape letters: U = users, R = ranks or held-out ratings, K = cut-off or length of a list,
# C = cut-offs, I = items.

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError, unknown_name
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE, TopK

Hits = NDArray[np.bool_]
Counts = NDArray[np.int64]
PerUser = NDArray[np.float64]

USER_BLOCK = 256
"""Users that are ranked and measured at once."""


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
    return np.asarray((hits_UK @ weight_K) / best_K[np.minimum(relevant, k)])


def recall(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Share of the relevant items that the list shows: hits / relevant, never / min(k, ...)."""
    hits_UK, divisor = _checked(hits, relevant, k)
    return np.asarray(hits_UK.sum(axis=1) / divisor)


def precision(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Share of the k places that hold a relevant item."""
    hits_UK, divisor = _checked(hits, relevant, k)
    return np.asarray(hits_UK.sum(axis=1) / k + 0 * divisor)


def hit_rate(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """1 if the list shows any relevant item, else 0."""
    hits_UK, divisor = _checked(hits, relevant, k)
    return np.asarray(hits_UK.max(axis=1) + 0 * divisor)


def reciprocal_rank(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """1 / rank of the first relevant item (1 is the top), 0 if none is shown."""
    hits_UK, divisor = _checked(hits, relevant, k)
    first = hits_UK.argmax(axis=1)
    return np.asarray(hits_UK.max(axis=1) / (first + 1) + 0 * divisor)


def average_precision(hits: Hits, relevant: Counts, k: int) -> PerUser:
    """Mean over relevant items of the precision at their rank, divided by min(k, relevant)."""
    hits_UK, divisor = _checked(hits, relevant, k)
    precision_UK = hits_UK.cumsum(axis=1) / np.arange(1, k + 1)
    return np.asarray((precision_UK * hits_UK).sum(axis=1) / np.minimum(divisor, k))


RANKING: dict[str, Callable[[Hits, Counts, int], PerUser]] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "hitrate": hit_rate,
    "mrr": reciprocal_rank,
    "map": average_precision,
}
RATING = ("rmse", "mae")


@dataclass(frozen=True)
class PerUserMetrics:
    """The metrics of each user; of a user who is measured at several targets, of each of them.

    Args:
        user: (U,) dense ids, ascending; a user has a row for each target.
        values: Name to (U,) float64; nan where the metric does not apply to the user. Squared and
            absolute errors are sums over the user's ratings; "ratings" counts them.
        shown: (C, items) int64; how many lists show each item, cut at each of evaluate.k.
    """

    user: NDArray[np.int64]
    values: dict[str, PerUser]
    shown: Counts

    @property
    def predicts_ratings(self) -> bool:
        """Whether errors of predicted ratings were measured."""
        return "ratings" in self.values

    @property
    def users(self) -> int:
        """How many users were measured."""
        return len(self._first)

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The first row of each user."""
        return np.flatnonzero(np.diff(self.user, prepend=self.user[:1] - 1))

    def fraction(self, name: str) -> tuple[PerUser, PerUser]:
        """Numerators and denominators by user, whose ratio of sums is the metric's mean.

        The numerators of rmse are squared errors. With several rows of a user the mean is one over
        rows, and each user is one term of both sums: what intervals draw are users.
        """
        if name in RATING:
            error = self.values["squared_error" if name == "rmse" else "absolute_error"]
            return self._by_user(error), self._by_user(self.values["ratings"])
        value = self.values[name]
        known = (~np.isnan(value)).astype(np.float64)
        return self._by_user(np.nan_to_num(value)), self._by_user(known)

    def _by_user(self, column: PerUser) -> PerUser:
        """The sum of each user's rows."""
        if self.users == len(self.user):
            return column
        return np.asarray(np.add.reduceat(column, self._first))

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "PerUserMetrics":
        """The users that a mask or places choose. What all lists show stays as it is."""
        values = {name: column[chosen] for name, column in self.values.items()}
        return PerUserMetrics(self.user[chosen], values, self.shown)

    @classmethod
    def join(cls, parts: Iterable["PerUserMetrics"]) -> Self:
        """Join the users of all parts, in ascending order; parts may come in any order.

        Raises:
            ValueError: There are no parts.
        """
        tables = list(parts)
        if not tables:
            raise ValueError("no parts: nobody was measured")
        user = np.concatenate([table.user for table in tables])
        order = np.argsort(user, kind="stable")  # the rows of a user are in one part
        values = {
            name: np.concatenate([table.values[name] for table in tables])[order]
            for name in tables[0].values
        }
        return cls(user[order], values, np.sum([table.shown for table in tables], axis=0))


def blocks_of(targets: Ratings) -> list[NDArray[np.int64]]:
    """Divide the users with held-out ratings, ascending, into blocks of USER_BLOCK."""
    users = np.unique(targets.user).astype(np.int64)
    return [users[first : first + USER_BLOCK] for first in range(0, len(users), USER_BLOCK)]


def rows_of_users(
    column: NDArray[np.integer], users: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows of some users in a sorted column of users.

    Returns:
        (R,) places of the rows in the column, and (R,) the place in `users` of each row's user.
    """
    begin = np.searchsorted(column, users, "left")
    end = np.searchsorted(column, users, "right")
    rows = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])
    return rows, np.repeat(np.arange(len(users)), end - begin)


@dataclass(frozen=True)
class RankedBatch:
    """The ranked lists of a block of users, beside their held-out ratings.

    Args:
        users: (U,) dense ids, ascending; a user has a row for each list.
        place: (R,) row in `users` of each held-out rating.
        item: (R,) int64 ids; those from the catalogue's size on are not known to training.
        rating: (R,) float32 held-out ratings.
        relevant: (R,) whether the list should show it.
        ranked: The lists.
        hits: (U, K) whether the item at that rank is relevant.
    """

    users: NDArray[np.int64]
    place: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    relevant: NDArray[np.bool_]
    ranked: TopK
    hits: Hits

    def count(self, which: NDArray[np.bool_]) -> Counts:
        """(U,) how many of the chosen held-out ratings each user has; (R,) bool."""
        return np.bincount(self.place[which], minlength=len(self.users)).astype(np.int64)


def rank_block(
    scorer: Scorer,
    targets: Ratings,
    users: NDArray[np.int64],
    settings: EvaluateSettings,
    candidates: tuple[Tensor, Tensor] | None = None,
) -> RankedBatch:
    """Rank items for a block of users, and mark the hits.

    Args:
        scorer: Ranks the whole catalogue, without what its history holds.
        targets: Held-out ratings, sorted by user; those of other users are not looked at.
        users: (U,) int64 ids, ascending, each with held-out ratings.
        settings: Cut-offs, and the least rating that is relevant.
        candidates: Rows (in `users`) and items. If given, only these and the held-out items are
            ranked, whatever the history holds.
    """
    rows, place = rows_of_users(targets.user, users)
    item, rating = targets.item[rows].astype(np.int64), targets.rating[rows]
    longest = min(max(settings.k), scorer.model.items)
    if candidates is None:
        ranked = scorer.rank(users, longest)
    else:
        row = torch.cat([candidates[0], torch.from_numpy(place)])
        column = torch.cat([candidates[1], torch.from_numpy(item)])
        ranked = scorer.rank_candidates(users, row, column, longest)
    return mark_hits(users, place, item, rating, ranked, settings)


def mark_hits(
    users: NDArray[np.int64],
    place: NDArray[np.int64],
    item: NDArray[np.int64],
    rating: NDArray[np.float32],
    ranked: TopK,
    settings: EvaluateSettings,
) -> RankedBatch:
    """Put ranked lists beside held-out ratings; the arguments are the fields of RankedBatch."""
    threshold = settings.relevant_from
    relevant = np.ones(len(item), bool) if threshold is None else rating >= threshold
    # A pair of user and item is one number, so that one isin finds the hits of all lists.
    held_out = np.unique(place[relevant] * np.int64(1 << 32) + item[relevant])
    listed = np.arange(len(users))[:, None] * np.int64(1 << 32) + ranked.item
    hits = np.isin(listed, held_out) & (ranked.item != NONE)
    return RankedBatch(users, place, item, rating, relevant, ranked, hits)


def compute_metrics(
    scorer: Scorer, lists: RankedBatch, settings: EvaluateSettings, errors: bool = True
) -> PerUserMetrics:
    """Compute every metric of lists that `scorer` has ranked, and errors where it can rate."""
    items, place = scorer.model.items, lists.place
    count = lists.count(lists.relevant)
    values = {
        f"{name}@{k}": metric(lists.hits, count, min(k, items))
        for k in settings.k
        for name, metric in RANKING.items()
    }
    if errors and scorer.model.score_type == "rating":
        error = scorer.predict(lists.users[place], lists.item).astype(np.float64) - lists.rating
        columns = {"squared_error": error**2, "absolute_error": np.abs(error)}
        for name, column in (columns | {"ratings": np.ones(len(place))}).items():
            values[name] = np.bincount(place, column, len(lists.users)).astype(np.float64)
    # Without an item there is NONE, -1, which becomes the first count and is cut off.
    cut = (lists.ranked.item[:, :k].ravel() + 1 for k in settings.k)
    shown = [np.bincount(listed, minlength=items + 1)[1:] for listed in cut]
    return PerUserMetrics(lists.users, values, np.stack(shown))


def evaluate_block(
    scorer: Scorer, targets: Ratings, users: NDArray[np.int64], settings: EvaluateSettings
) -> PerUserMetrics:
    """Measure a block of users on their held-out ratings; see rank_block.

    Returns:
        One row per user. A held-out item that training does not know counts as relevant and is
        never found.
    """
    return compute_metrics(scorer, rank_block(scorer, targets, users, settings), settings)


def metric_sums(
    table: PerUserMetrics | None, names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """The sum and the count of each metric over a worker's users, to be added up over workers.

    A worker without users has None for its table. For rmse the sum is that of squared errors.
    """
    if table is None:
        return dict.fromkeys(names, (0.0, 0.0))
    fractions = {name: table.fraction(name) for name in names}
    return {name: (float(top.sum()), float(low.sum())) for name, (top, low) in fractions.items()}


def metric_names(settings: EvaluateSettings, rates: bool) -> list[str]:
    """The metrics that a model can give: ranking at each k, and errors if it predicts ratings."""
    names = [f"{name}@{k}" for k in settings.k for name in RANKING]
    return names + list(RATING) if rates else names


def check_metric(name: str, settings: EvaluateSettings, rates: bool) -> None:
    """Refuse a validation metric that the model cannot give.

    Raises:
        RecrayError: It is unknown, or rmse or mae of a model that ranks.
    """
    known = metric_names(settings, rates)
    if name not in known:
        if name in RATING:
            raise RecrayError(f"train.metric={name}: a ranking model does not predict stars")
        raise unknown_name("metric", name, known)
