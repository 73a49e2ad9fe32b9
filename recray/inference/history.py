"""The ratings that are known before the test, by user, and what counting them gives."""

# Shape letters: U = users, N = ratings of one user, R = ratings.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.dataset import Ratings
from recray.models.base import Statistics
from recray.models.baselines import BiasOnly
from recray.models.objectives import RatingsCSR


class UserRatings(NamedTuple):
    """What one user has rated: (N,) int64 items, each once, and (N,) float32 ratings."""

    item: Tensor
    rating: Tensor


@dataclass(frozen=True)
class History:
    """The ratings of each user, for items that training knows, as a sparse matrix (CSR).

    Args:
        indptr: (users + 1,) int64; user u has the ratings indptr[u]..indptr[u + 1] - 1.
        item: (R,) ids, int32 as bundles have them.
        rating: (R,) float32.
    """

    indptr: NDArray[np.int64]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]

    @classmethod
    def of(cls, ratings: Ratings, users: int, items: int) -> Self:
        """Keep the ratings of items below `items`; ratings are sorted by user."""
        inside = ratings.item < items
        known = ratings if inside.all() else ratings.where(inside)
        indptr = np.searchsorted(known.user, np.arange(users + 1, dtype=known.user.dtype))
        return cls(indptr, known.item, known.rating)

    @classmethod
    def join(cls, rated: Sequence[UserRatings]) -> Self:
        """Put the ratings of several users, one at least, together in their order."""
        indptr, item, rating = (part.numpy() for part in RatingsCSR.of(rated))
        return cls(indptr, item.astype(np.int32), rating)

    def of_user(self, user: int) -> UserRatings:
        """Copy the ratings of one user."""
        _, item, rating = self.rows(user, user + 1).as_csr()
        return UserRatings(item, rating)

    def of_users(self, users: NDArray[np.int64]) -> "History":
        """The ratings of (U,) users, in their order."""
        if len(users) == 1:
            return self.rows(int(users[0]), int(users[0]) + 1)
        start = self.indptr[users]
        counts = self.indptr[users + 1] - start
        indptr = np.zeros(len(users) + 1, np.int64)
        counts.cumsum(out=indptr[1:])
        # Place of each rating: counted on from where its user's ratings start in the history.
        rows = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], counts)
        return History(indptr, self.item[rows], self.rating[rows])

    def rows(self, first: int, last: int) -> "History":
        """The ratings of the users first..last-1, without a copy."""
        indptr = self.indptr[first : last + 1]
        cells = slice(indptr[0], indptr[-1])
        return History(indptr - indptr[0], self.item[cells], self.rating[cells])

    def coo_indices(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Row and item of each rating."""
        users = len(self.indptr) - 1
        return np.repeat(np.arange(users), np.diff(self.indptr)), self.item

    def as_csr(self) -> RatingsCSR:
        """Copy the ratings into tensors, as folding in takes them."""
        item, rating = self.item.astype(np.int64), self.rating.copy()
        return RatingsCSR(*map(torch.from_numpy, (self.indptr, item, rating)))

    def statistics(self, users: int, items: int) -> Statistics:
        """Sums and counts over the ratings of the first `users` users, or of all if fewer."""
        _, item, rating = self._first(users)
        weight = rating.astype(np.float64)
        low, high = (float(weight.min()), float(weight.max())) if len(weight) else (0.0, 0.0)
        total = torch.from_numpy(np.bincount(item, weight, items))
        count = torch.from_numpy(np.bincount(item, minlength=items).astype(np.float64))
        return Statistics(total, count, low, high)

    def bias_only(self, users: int, items: int) -> BiasOnly:
        """Fit the bias-only baseline on the ratings of the first `users` users."""
        model = BiasOnly(users, items)
        model.init_from_statistics(self.statistics(users, items))
        model.fit_users(*(torch.from_numpy(column) for column in self._first(users)))
        return model

    def _first(
        self, users: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """User, item and rating of each rating of the first `users` users."""
        users = min(users, len(self.indptr) - 1)
        end = int(self.indptr[users])
        user = np.repeat(np.arange(users), np.diff(self.indptr[: users + 1]))
        return user, self.item[:end].astype(np.int64), self.rating[:end].copy()
