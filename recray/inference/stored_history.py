"""Histories of users whose interactions lie in the partitions of a bundle."""

# Shape letters: U = users, R = ratings.

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recray.data.row_order import order_by
from recray.data.split import hash_ids
from recray.inference.history import History, UserRatings
from recray.inference.top_k import Ids
from recray.inference.user_store import UserStore

Keep = Callable[[NDArray[np.int8], NDArray[np.bool_]], NDArray[np.bool_]]
"""From (R,) codes of schema.INTERACTION_PARTS and (R,) whether the model knows the user to (R,)
whether a rating belongs to the history."""


@dataclass(frozen=True)
class StoredHistory:
    """The ratings of each user for items that training knows, as History has them.

    Args:
        store: Where they are.
        items: Number of items.
        keep: Which of them.
        in_order: Whether a model reads them in the order of time.
        timed: Whether a model reads their times.
    """

    store: UserStore
    items: int
    keep: Keep
    in_order: bool
    timed: bool

    def of_users(self, users: Ids) -> History:
        """The ratings of (U,) users, in their order."""
        ends, rows, part = self.store.interactions(users)
        known = users[rows.user] < self.store.known
        chosen = self.keep(part, known) & (rows.item < self.items)
        every = bool(chosen.all())
        kept = rows if every else rows.where(chosen)
        if self.in_order and kept.place is not None:
            kept = kept.where(order_by(kept.user, kept.place))
        elif self.in_order:  # as dataset.row_order has it
            tie = hash_ids(0, users[kept.user].astype(np.int64), kept.item.astype(np.int64))
            kept = kept.where(order_by(kept.user, kept.timestamp, tie))
        indptr = ends
        if not every:
            counts = np.bincount(kept.user, minlength=len(users))
            indptr = np.concatenate([[0], np.cumsum(counts)])
        return History(indptr, kept.item, kept.rating, kept.timestamp if self.timed else None)

    def of_user(self, user: int) -> UserRatings:
        """The ratings of one user."""
        return self.of_users(np.array([user])).of_user(0)

    def counts(self, users: Ids) -> Ids:
        """(U,) how many ratings each has."""
        return np.diff(self.of_users(users).indptr)
