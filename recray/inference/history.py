"""The ratings of users as a sparse matrix, as scores, lists and reasons read them."""

# Shape letters: N = ratings of one user, R = ratings, U = users.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.dataset import Ratings, in_order
from recray.inference.top_k import Ids, Scores
from recray.models.base import Model, Statistics
from recray.models.history import HistoryModel, RatingsCSR
from recray.schema import UNKNOWN_TIME


class UserRatings(NamedTuple):
    """What one user has rated, in the order of time: (N,) int64 items, each once, and (N,) float32
    ratings; (N,) int64 seconds where a model reads the order or times.
    """

    item: Tensor
    rating: Tensor
    time: Tensor | None = None

    def at(self, chosen: Tensor) -> "UserRatings":
        """Those at (K,) places, or where (N,) bool says."""
        time = None if self.time is None else self.time[chosen]
        return UserRatings(self.item[chosen], self.rating[chosen], time)

    def times(self) -> Tensor:
        """(N,) seconds, UNKNOWN_TIME where they are not kept."""
        return torch.full_like(self.item, UNKNOWN_TIME) if self.time is None else self.time


class UserHistories(Protocol):
    """The ratings of each user, wherever they are."""

    def of_users(self, users: Ids) -> "History":
        """The ratings of (U,) users, in their order."""

    def of_user(self, user: int) -> UserRatings:
        """Copy the ratings of one user."""

    def counts(self, users: Ids) -> Ids:
        """(U,) how many ratings each has."""


@dataclass(frozen=True)
class History:
    """The ratings of each user, for items that training knows, as a sparse matrix (CSR).

    Args:
        indptr: (users + 1,) int64; user u has the ratings indptr[u]..indptr[u + 1] - 1.
        item: (R,) ids, int32 as bundles have them.
        rating: (R,) float32.
        time: (R,) int64 seconds, where a model reads the order or times.
    """

    indptr: Ids
    item: NDArray[np.int32]
    rating: Scores
    time: Ids | None = None

    @classmethod
    def of(
        cls, ratings: Ratings, users: int, items: int, reader: type[Model] | None = None
    ) -> Self:
        """Keep the ratings of items below `items`; ratings are sorted by user.

        Args:
            ratings: The ratings.
            users: Number of users, those without ratings included.
            items: Number of items.
            reader: The model that reads them, if it reads their order or times.
        """
        reader = reader if reader is not None and issubclass(reader, HistoryModel) else None
        if reader is not None and reader.reads_order:
            ratings = in_order(ratings)
        inside = ratings.item < items
        known = ratings if inside.all() else ratings.where(inside)
        indptr = np.searchsorted(known.user, np.arange(users + 1, dtype=known.user.dtype))
        # New ratings are put in order among the known ones by their times.
        timed = reader is not None and (reader.reads_order or reader.reads_times)
        return cls(indptr, known.item, known.rating, known.timestamp if timed else None)

    @classmethod
    def join(cls, rated: Sequence[UserRatings]) -> Self:
        """Put the ratings of several users, one at least, together in their order; with times
        where one of them has some, which are unknown for the others.
        """
        known = RatingsCSR.of([(user.item, user.rating) for user in rated])
        time = None
        if any(user.time is not None for user in rated):
            time = np.concatenate([user.times().numpy() for user in rated])
        item = known.item.numpy().astype(np.int32)
        return cls(known.indptr.numpy(), item, known.rating.numpy(), time)

    def of_user(self, user: int) -> UserRatings:
        """Copy the ratings of one user."""
        known = self.rows(user, user + 1).as_csr()
        return UserRatings(known.item, known.rating, known.time)

    def of_users(self, users: Ids) -> "History":
        """The ratings of (U,) users, in their order."""
        if len(users) == 1:
            return self.rows(int(users[0]), int(users[0]) + 1)
        start = self.indptr[users]
        counts = self.indptr[users + 1] - start
        indptr = np.zeros(len(users) + 1, np.int64)
        counts.cumsum(out=indptr[1:])
        # Place of each rating: counted on from where its user's ratings start in the history.
        rows = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], counts)
        return History(indptr, *self._columns(rows))

    def counts(self, users: Ids) -> Ids:
        """(U,) how many ratings each has."""
        return self.indptr[users + 1] - self.indptr[users]

    def rows(self, first: int, last: int) -> "History":
        """The ratings of the users first..last-1, without a copy."""
        indptr = self.indptr[first : last + 1]
        cells = slice(indptr[0], indptr[-1])
        return History(indptr - indptr[0], *self._columns(cells))

    def _columns(self, cells: slice | Ids) -> tuple[NDArray[np.int32], Scores, Ids | None]:
        time = None if self.time is None else self.time[cells]
        return self.item[cells], self.rating[cells], time

    def coo_indices(self) -> tuple[Ids, NDArray[np.int32]]:
        """Row and item of each rating."""
        users = len(self.indptr) - 1
        if users == 1:
            return np.zeros(len(self.item), np.int64), self.item
        return np.repeat(np.arange(users), np.diff(self.indptr)), self.item

    def as_csr(self, now: Ids | None = None) -> RatingsCSR:
        """Copy the ratings into tensors, as folding in takes them.

        Args:
            now: (users,) int64 seconds when each list is asked for, for a model that reads times.
        """
        item, rating = self.item.astype(np.int64), self.rating.copy()
        known = RatingsCSR(*map(torch.from_numpy, (self.indptr, item, rating)))
        return known._replace(
            time=None if self.time is None else torch.from_numpy(self.time.copy()),
            now=None if now is None else torch.from_numpy(now),
        )

    def statistics(self, items: int) -> Statistics:
        """Sums and counts over the ratings of all users."""
        item, weight = self.item, self.rating.astype(np.float64)
        low, high = (float(weight.min()), float(weight.max())) if len(weight) else (0.0, 0.0)
        total = torch.from_numpy(np.bincount(item, weight, items))
        count = torch.from_numpy(np.bincount(item, minlength=items).astype(np.float64))
        return Statistics(total, count, low, high)


def in_memory(histories: UserHistories) -> History:
    """Histories that are all in memory.

    Raises:
        ValueError: They are looked up one by one.
    """
    if not isinstance(histories, History):
        raise ValueError("the users of this bundle are looked up one by one")
    return histories
