"""Predictions and places of held-out ratings, for the plots."""

# Shape letters: R = held-out ratings, U = users, I = items.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recray.data.dataset import Ratings
from recray.inference.recommender import Recommender
from recray.inference.top_k import NONE

MOST_USERS = 2000
BLOCK = 256


@dataclass(frozen=True)
class HeldOut:
    """Held-out ratings beside what the model says of them.

    Args:
        users: How many users they are of.
        all_users: How many there are.
        actual: (R,) stars.
        predicted: (R,) stars; None where the model ranks.
        rank: (P,) places, from 1, among the films that the user has not rated.
        placed: (P,) stars of those.
    """

    users: int
    all_users: int
    actual: NDArray[np.float32]
    predicted: NDArray[np.float32] | None
    rank: NDArray[np.int64]
    placed: NDArray[np.float32]


def measure(recommender: Recommender) -> HeldOut:
    """Predict and place the held-out ratings of at most MOST_USERS users, evenly chosen."""
    held = recommender.bundle.holdout
    everybody = np.unique(held.user).astype(np.int64)
    chosen = everybody[:: max(1, -(-len(everybody) // MOST_USERS))]
    own = held.where(np.isin(held.user, chosen))
    user, item = own.user.astype(np.int64), own.item.astype(np.int64)
    stars = recommender.bundle.model.score_type == "rating"
    predicted = recommender.scorer.predict(user, item) if stars else None
    rank = np.concatenate([
        _places(recommender, chosen[first : first + BLOCK], own)
        for first in range(0, len(chosen), BLOCK)
    ])  # fmt: skip
    there = rank != NONE
    return HeldOut(
        len(chosen), len(everybody), own.rating, predicted, rank[there], own.rating[there]
    )


def _places(recommender: Recommender, users: NDArray[np.int64], held: Ratings) -> NDArray[np.int64]:
    """Places of the held-out films of a block of users; NONE for those that no list can have."""
    items = recommender.items.known
    rows = np.isin(held.user, users)
    row, item = np.searchsorted(users, held.user[rows]), held.item[rows]
    order = recommender.scorer.rank(users, items).item
    place = np.full((len(users), items + 1), NONE, np.int64)
    at = np.broadcast_to(np.arange(1, order.shape[1] + 1), order.shape)
    np.put_along_axis(place, np.where(order == NONE, items, order), at, axis=1)
    place[:, items] = NONE
    found: NDArray[np.int64] = place[row, np.minimum(item, items)]
    return found


def typical_users(recommender: Recommender) -> list[int]:
    """Dense ids of three users with held-out ratings: of whom few, some and many ratings are known
    (the quarters of all such users, by number, then by id); nobody is picked by the result.
    """
    held = np.unique(recommender.bundle.holdout.user)
    counts = np.bincount(recommender.bundle.history.user, minlength=len(recommender.users))
    ordered = held[np.lexsort((held, counts[held]))]
    places = [len(ordered) * quarter // 4 for quarter in (1, 2, 3)]
    return list(dict.fromkeys(int(ordered[place]) for place in places)) if len(ordered) else []
