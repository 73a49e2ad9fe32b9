"""Ratings that came after a source: they train, and never change how the source is split.

A pair of user and item that the source has keeps its place in the splits and gets the new stars; a
new pair belongs to the training split. So a hold-out stays the same however much is rated, and a
model trained on source and log can be compared with one trained on the source alone.
"""

import numpy as np
from numpy.typing import NDArray

from recray.data.spill import Rows
from recray.data.split import order_by


def _codes(rows: Rows, logged: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One number for each pair of user and item."""
    _, user = np.unique(np.concatenate([rows.user, logged.user]), return_inverse=True)
    items, item = np.unique(np.concatenate([rows.item, logged.item]), return_inverse=True)
    code = user.astype(np.int64) * len(items) + item
    return code[: len(rows.user)], code[len(rows.user) :]


def rerate(rows: Rows, logged: Rows) -> tuple[Rows, Rows]:
    """Replace the ratings of pairs that were rated again; return all rows, and the logged rest.

    Args:
        rows: The source's, each pair once.
        logged: The log's, each pair once.
    """
    if not len(logged.user) or not len(rows.user):
        return rows, logged
    code, new = _codes(rows, logged)
    order = np.argsort(code)
    place = np.minimum(np.searchsorted(code, new, sorter=order), len(code) - 1)
    target = order[place]
    again = code[target] == new
    rating = rows.rating.copy()
    rating[target[again]] = logged.rating[again]
    return rows._replace(rating=rating), logged.at(~again)


def append(
    rows: Rows, which: NDArray[np.int8], logged: Rows, split: int
) -> tuple[Rows, NDArray[np.int8]]:
    """Rows with those of the log behind them, sorted by user, then item, and the split of each."""
    splits = np.concatenate([which, np.full(len(logged.user), split, np.int8)])
    both = Rows(
        np.concatenate([rows.user, logged.user]),
        np.concatenate([rows.item, logged.item]),
        np.concatenate([rows.rating, logged.rating]),
        np.concatenate([rows.timestamp, logged.timestamp]),
        None if rows.part is None else splits,
    )
    order = order_by(both.user, both.item)
    return both.at(order), splits[order]
