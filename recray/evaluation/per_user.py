"""Measure each user's ranked list and predicted ratings on their held-out ratings.

Users are measured in fixed blocks, each by the same code on every worker. The vectors are joined
in the order of users and reduced once, so the digits do not depend on the number of workers.
"""

# Shape letters: U = users measured, K = length of a list, C = cut-offs, R = held-out ratings.

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError, unknown_name
from recray.evaluation import metrics
from recray.inference.scorer import NONE, Scorer, TopK

USER_BLOCK = 256


@dataclass(frozen=True)
class PerUserMetrics:
    """The metrics of each user.

    Args:
        user: (U,) dense ids, ascending.
        values: Name to (U,) float64; nan where the metric does not apply to the user. Squared and
            absolute errors are sums over the user's ratings; "ratings" counts them.
        shown: (C, items) int64; how many lists show each item, cut at each of evaluate.k.
    """

    user: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    shown: NDArray[np.int64]

    @property
    def predicts_ratings(self) -> bool:
        """Whether errors of predicted ratings were measured."""
        return "ratings" in self.values

    def where(self, chosen: NDArray[np.bool_]) -> "PerUserMetrics":
        """The chosen users; (U,) bool. What all lists show stays as it is."""
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
        order = np.argsort(user)
        values = {
            name: np.concatenate([table.values[name] for table in tables])[order]
            for name in tables[0].values
        }
        return cls(user[order], values, np.sum([table.shown for table in tables], axis=0))


def blocks_of(targets: Ratings) -> list[NDArray[np.int64]]:
    """Divide the users with held-out ratings, ascending, into blocks of USER_BLOCK."""
    users = np.unique(targets.user).astype(np.int64)
    return [users[first : first + USER_BLOCK] for first in range(0, len(users), USER_BLOCK)]


@dataclass(frozen=True)
class RankedBatch:
    """The ranked lists of a block of users, beside their held-out ratings.

    Args:
        users: (U,) dense ids, ascending.
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
    hits: NDArray[np.bool_]

    def count(self, which: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(U,) how many of the chosen held-out ratings each user has; (R,) bool."""
        return np.bincount(self.place[which], minlength=len(self.users)).astype(np.int64)


def rank_block(
    scorer: Scorer,
    targets: Ratings,
    users: NDArray[np.int64],
    settings: EvaluateSettings,
    candidates: tuple[Tensor, Tensor] | None = None,
) -> RankedBatch:
    """Rank items for a block of users, and mark the hits; see evaluate_block.

    Args:
        scorer: Ranks the whole catalogue, without what its history holds.
        targets: Held-out ratings, sorted by user.
        users: (U,) int64 ids, ascending, each with held-out ratings.
        settings: Cut-offs, and the least rating that is relevant.
        candidates: Rows (in `users`) and items. If given, only these and the held-out items are
            ranked, whatever the history holds.
    """
    begin = np.searchsorted(targets.user, users, "left")
    end = np.searchsorted(targets.user, users, "right")
    rows = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])
    place = np.repeat(np.arange(len(users)), end - begin)
    item, rating = targets.item[rows].astype(np.int64), targets.rating[rows]
    relevant = np.ones(len(rows), bool)
    if settings.relevant_from is not None:
        relevant = rating >= settings.relevant_from
    longest = min(max(settings.k), scorer.model.items)
    if candidates is None:
        ranked = scorer.rank(users, longest)
    else:
        row = torch.cat([candidates[0], torch.from_numpy(place)])
        column = torch.cat([candidates[1], torch.from_numpy(item)])
        ranked = scorer.rank_candidates(users, row, column, longest)
    wanted = np.unique(place[relevant] * np.int64(1 << 32) + item[relevant])
    listed = np.arange(len(users))[:, None] * np.int64(1 << 32) + ranked.item
    hits = np.isin(listed, wanted) & (ranked.item != NONE)
    return RankedBatch(users, place, item, rating, relevant, ranked, hits)


def compute_metrics(
    scorer: Scorer, lists: RankedBatch, settings: EvaluateSettings
) -> PerUserMetrics:
    """Compute every metric of lists that `scorer` has ranked; see evaluate_block."""
    items, users = scorer.model.items, len(lists.users)
    count = lists.count(lists.relevant)
    values = {
        f"{name}@{k}": metric(lists.hits, count, min(k, items))
        for k in settings.k
        for name, metric in metrics.RANKING.items()
    }
    listed = lists.ranked.item
    there = listed != NONE
    # The padding NONE (-1) takes the last item's value here; `there` leaves it out below.
    surprise = metrics.self_information(scorer.popularity.numpy())[listed]
    for k in settings.k:
        values[f"novelty@{k}"] = metrics.novelty(surprise, there, min(k, items))
    if scorer.model.score_type == "rating":
        place = lists.place
        error = scorer.predict(lists.users[place], lists.item).astype(np.float64) - lists.rating
        values["squared_error"] = _sums(place, error**2, users)
        values["absolute_error"] = _sums(place, np.abs(error), users)
        values["ratings"] = _sums(place, np.ones(len(place)), users)
    shown = [np.bincount(listed[:, :k][there[:, :k]], minlength=items) for k in settings.k]
    return PerUserMetrics(lists.users, values, np.stack(shown))


def evaluate_block(
    scorer: Scorer, targets: Ratings, users: NDArray[np.int64], settings: EvaluateSettings
) -> PerUserMetrics:
    """Measure a block of users on their held-out ratings.

    Args:
        scorer: Ranks the whole catalogue, without what its history holds.
        targets: Held-out ratings, sorted by user; those of other users are not looked at.
        users: (U,) int64 ids, ascending, each with held-out ratings.
        settings: Cut-offs, and the least rating that is relevant.

    Returns:
        One row per user. A held-out item that training does not know counts as relevant and is
        never found.
    """
    return compute_metrics(scorer, rank_block(scorer, targets, users, settings), settings)


def _sums(place: NDArray[np.int64], weights: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.bincount(place, weights, size).astype(np.float64)


def metric_sums(
    table: PerUserMetrics | None, names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """The sum and the count of each metric over a worker's users, to be added up over workers.

    For rmse the sum is that of squared errors.
    """
    sums = {}
    for name in names:
        if table is None:
            sums[name] = (0.0, 0.0)
        elif name in metrics.RATING:
            error = table.values["squared_error" if name == "rmse" else "absolute_error"]
            sums[name] = (float(error.sum()), float(table.values["ratings"].sum()))
        else:
            values = table.values[name]
            sums[name] = (float(np.nansum(values)), float((~np.isnan(values)).sum()))
    return sums


def metric_names(settings: EvaluateSettings, rates: bool) -> list[str]:
    """The metrics that a model can give: ranking at each k, and errors if it predicts ratings."""
    names = [f"{name}@{k}" for k in settings.k for name in metrics.RANKING]
    return names + list(metrics.RATING) if rates else names


def exposure_metrics(table: PerUserMetrics, settings: EvaluateSettings) -> dict[str, float | None]:
    """Coverage, novelty and Gini of all lists at each cut-off; None where no list has an item."""
    out = {}
    for place, k in enumerate(settings.k):
        shown, novelty = table.shown[place], table.values[f"novelty@{k}"]
        there = novelty[~np.isnan(novelty)]
        out[f"coverage@{k}"] = metrics.coverage(shown)
        out[f"novelty@{k}"] = float(there.mean()) if len(there) else float("nan")
        out[f"gini@{k}"] = metrics.gini(shown)
    return {name: None if np.isnan(value) else value for name, value in out.items()}


def check_metric(name: str, settings: EvaluateSettings, rates: bool) -> None:
    """Refuse a validation metric that the model cannot give.

    Raises:
        RecrayError: It is unknown, or rmse or mae of a model that ranks.
    """
    known = metric_names(settings, rates)
    if name not in known:
        if name in metrics.RATING:
            raise RecrayError(f"train.metric={name}: a ranking model does not predict stars")
        raise unknown_name("metric", name, known)
