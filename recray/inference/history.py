"""The ratings of users as a sparse matrix, as scores, lists and reasons read them."""

# Shape letters: N = ratings of one user, R = ratings, U = users.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.dataset import Ratings
from recray.inference.top_k import Ids, Scores
from recray.models.base import Statistics
from recray.models.objectives import RatingsCSR


class UserRatings(NamedTuple):
    """What one user has rated: (N,) int64 items, each once, and (N,) float32 ratings."""

    item: Tensor
    rating: Tensor

    @classmethod
    def of(cls, ratings: dict[int, float]) -> Self:
        """Take ratings by item, in the order of the items."""
        items = sorted(ratings)
        rating = torch.tensor([ratings[item] for item in items], dtype=torch.float32)
        return cls(torch.tensor(items, dtype=torch.int64), rating)


@dataclass(frozen=True)
class History:
    """The ratings of each user, for items that training knows, as a sparse matrix (CSR).

    Args:
        indptr: (users + 1,) int64; user u has the ratings indptr[u]..indptr[u + 1] - 1.
        item: (R,) ids, int32 as bundles have them.
        rating: (R,) float32.
    """

    indptr: Ids
    item: NDArray[np.int32]
    rating: Scores

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
        return UserRatings(*self.rows(user, user + 1).as_csr()[1:])

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
        return History(indptr, self.item[rows], self.rating[rows])

    def rows(self, first: int, last: int) -> "History":
        """The ratings of the users first..last-1, without a copy."""
        indptr = self.indptr[first : last + 1]
        cells = slice(indptr[0], indptr[-1])
        return History(indptr - indptr[0], self.item[cells], self.rating[cells])

    def coo_indices(self) -> tuple[Ids, NDArray[np.int32]]:
        """Row and item of each rating."""
        users = len(self.indptr) - 1
        if users == 1:
            return np.zeros(len(self.item), np.int64), self.item
        return np.repeat(np.arange(users), np.diff(self.indptr)), self.item

    def as_csr(self) -> RatingsCSR:
        """Copy the ratings into tensors, as folding in takes them."""
        item, rating = self.item.astype(np.int64), self.rating.copy()
        return RatingsCSR(*map(torch.from_numpy, (self.indptr, item, rating)))

    def statistics(self, items: int) -> Statistics:
        """Sums and counts over the ratings of all users."""
        item, weight = self.item, self.rating.astype(np.float64)
        low, high = (float(weight.min()), float(weight.max())) if len(weight) else (0.0, 0.0)
        total = torch.from_numpy(np.bincount(item, weight, items))
        count = torch.from_numpy(np.bincount(item, minlength=items).astype(np.float64))
        return Statistics(total, count, low, high)
