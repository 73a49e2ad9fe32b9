"""What lists cost: seconds of one processor, told before anything is computed.

    a list        LIST, or NEW + N x RATING of somebody who is folded in
    its items     k x ITEM
    diversity     k x (PICK + pool x LIKENESS), the pool as in mmr_pool
    reasons       k x (REASON + N x SHARE), and N x WITHOUT of a model of histories
    filters       FILTERED, where the catalogue has an index; nothing else
    candidates    GIVEN for each id in `candidates` and `exclude`, once a request
    scores        PAIR for each, NEW for each user who is folded in, and, of a model of
                  histories, LIST for each other user

N is the number of a user's ratings. LIST, NEW, WITHOUT and FILTERED differ by model and catalogue,
so they are measured when a bundle is opened, in processor time, which other work on the machine
does not count for. They are rounded up to a power of two, so that replicas agree. The other numbers
are the share of Python, measured on one core of a Xeon; `recray benchmark serve` compares prices
with what is used.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from recray.data.ids import RawId
from recray.inference.catalog import NO_FILTERS, Filters
from recray.inference.item_index import INDEXED_ITEMS
from recray.inference.raw_ratings import RatingsSince, RawRating
from recray.inference.recommendations import mmr_pool
from recray.inference.top_k import NONE, Ids
from recray.models.base import LinearModel
from recray.models.history import HistoryModel

if TYPE_CHECKING:
    from recray.inference.recommender import Recommender

RATING, ITEM = 2.5e-6, 0.6e-6
PICK, LIKENESS = 8e-6, 6e-9
REASON, SHARE = 48e-6, 0.1e-6
GIVEN, PAIR = 1e-6, 4e-6
RUNS = 3
"""How often each number is measured; the least counts."""
SCORES, USERS, NEW_USERS = 1 << 21, 64, 8
"""Scores and users that are measured at once, so that opening a large bundle takes no longer."""
NEW_RATINGS, LEFT_OUT = 20, 100
"""Ratings of somebody new, and of a history whose ratings are left out one by one."""
K = 10
FAST_ITEMS = 60_000
"""Items that a linear model scores in about 1 ms."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a processor of one model.

    Args:
        items: Items of the catalogue.
        known: A list of a user of the data, as one of many.
        new: A list of somebody who is folded in.
        without: A rating whose reason is sought by leaving it out; 0 for other models.
        filtered: What filters add to a list in a catalogue with an index; 0 in others.
    """

    items: int
    known: float
    new: float
    without: float
    filtered: float = 0.0

    @classmethod
    def measured(cls, recommender: "Recommender") -> Self:
        """Measure a model."""
        items, high = recommender.items, recommender.bundle.rating_range[1]
        k = recommender.at_most(K)
        at_once = max(1, min(USERS, SCORES // max(items.known, 1)))
        users = recommender.users.first(at_once)
        ratings = [
            RawRating(item, high) for item in items.raw[: min(items.known, LEFT_OUT)].tolist()
        ]
        some, many = ratings[:NEW_RATINGS], ratings[:LEFT_OUT]
        new = _seconds(lambda: recommender.recommend_many([some] * NEW_USERS, k)) / NEW_USERS
        known = (
            _seconds(lambda: recommender.recommend_many(users, k)) / len(users) if users else new
        )
        without = 0.0
        if isinstance(recommender.bundle.model, HistoryModel):
            why = Filters(explain=True)
            told = _seconds(lambda: recommender.recommend_from(many, k, True, why))
            without = max(told - new - k * REASON, 0.0) / len(many)
        filtered = _of_filters(recommender, k) if recommender.scorer.index is not None else 0.0
        return cls(items.known, *map(_rounded_up, (known, new, without, filtered)))

    def of_list(self, k: int, filters: Filters, ratings: int, new: bool) -> float:
        """Seconds for one list.

        Args:
            k: Its length.
            filters: How it is arranged.
            ratings: Ratings of the user.
            new: Whether the user is folded in.
        """
        seconds = self.new + ratings * RATING if new else self.known
        seconds += k * ITEM + self.filtered * filters.leave_out_items
        if filters.diversity:
            pool = mmr_pool(k, self.items, filters.diversity)
            seconds += k * (PICK + pool * LIKENESS)
        if filters.explain:
            seconds += k * (REASON + ratings * SHARE) + ratings * self.without
        return seconds


def _of_filters(recommender: "Recommender", k: int) -> float:
    """The dearer of a filter that keeps nearly all, and one whose items are scored one and all."""
    catalog, scorer = recommender.catalog, recommender.scorer
    query = scorer.queries(np.zeros(1, np.int64))
    most = catalog.candidate_mask(Filters(exclude=[catalog.raw(0)]))
    few = torch.arange(recommender.items.known) < INDEXED_ITEMS
    masks = _seconds(lambda: catalog.candidate_mask(Filters(year_from=1)))
    dearest = max(_seconds(partial(scorer.top_k, query, k, True, mask)) for mask in (most, few))
    return masks + dearest


def is_quick(recommender: "Recommender", filters: Filters) -> bool:
    """Whether a list takes about as long as its request, so that it need not be priced."""
    if (
        not isinstance(recommender.bundle.model, LinearModel)
        or filters.diversity
        or filters.explain
    ):
        return False
    if recommender.scorer.index is not None:
        return not filters.leave_out_items
    return recommender.items.known <= FAST_ITEMS


def price_of_lists(
    recommender: "Recommender",
    users: Sequence[RawId | list[Any]],
    k: int,
    filters: Filters = NO_FILTERS,
    since: RatingsSince | None = None,
) -> list[float]:
    """Seconds of a processor for each of the lists that recommend_many makes.

    Args:
        recommender: Makes them.
        users: Raw user ids, and in place of ratings a list of that length.
        k: Length of the lists.
        filters: How they are arranged.
        since: Gives what a user has rated since training.
    """
    costs, trained = recommender.costs, recommender.bundle.model.users
    known = [user for user in users if not isinstance(user, list)]
    found = _dense_at_hand(recommender, known)
    rated = np.zeros(len(found), np.int64)
    rated[found != NONE] = recommender.scorer.seen.counts(found[found != NONE])
    of_known = iter(zip(found.tolist(), rated.tolist(), strict=True))
    prices = []
    for user in users:
        if isinstance(user, list):
            prices.append(costs.of_list(k, filters, len(user), new=True))
            continue
        (place, ratings), later = next(of_known), since(user) if since is not None else []
        new = bool(later) or place >= trained
        prices.append(costs.of_list(k, filters, ratings + len(later), new))
    return prices


def _dense_at_hand(recommender: "Recommender", users: Sequence[RawId]) -> Ids:
    """(U,) dense ids; NONE also for users to whom a file must be read, which no price is worth."""
    dense = np.full(len(users), NONE, np.int64)
    here = np.flatnonzero(recommender.users.at_hand(users))
    dense[here] = recommender.users.encode_all([users[n] for n in here.tolist()])
    return dense


def price_of_filters(filters: Filters) -> float:
    """Seconds of a processor for reading the filters of a request, however many lists it makes."""
    return GIVEN * (len(filters.exclude) + len(filters.candidates or ()))


def price_of_scores(recommender: "Recommender", pairs: Sequence[tuple[RawId, RawId]]) -> float:
    """Seconds of a processor that score_pairs takes for these."""
    costs, model = recommender.costs, recommender.bundle.model
    dense = _dense_at_hand(recommender, list(dict.fromkeys(user for user, _ in pairs)))
    folded = int((dense >= model.users).sum())
    by_history = costs.known if isinstance(model, HistoryModel) else 0.0
    return len(pairs) * PAIR + folded * costs.new + (len(dense) - folded) * by_history


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of a processor that some work takes in this thread."""
    work()  # what is made once
    least = math.inf
    for _ in range(RUNS):
        begin = time.thread_time()
        work()
        least = min(least, time.thread_time() - begin)
    return least


def _rounded_up(seconds: float) -> float:
    return 2.0 ** math.ceil(math.log2(seconds)) if seconds > 0 else 0.0
