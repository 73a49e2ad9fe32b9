"""Events of the ratings log: ratings that came, and ratings that were taken back."""

# Shape letter: N = events.

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray.data.ids import RawId

MICRO = 1_000_000
LATE_SECONDS = 86_400
"""A rating that was taken back is remembered for so long: a copy may still be on its way."""


@dataclass(frozen=True)
class LoggedRating:
    """One rating that came, or was taken back.

    Args:
        user: Raw user id; may be new.
        item: Raw item id; None where all of the user's ratings are taken back.
        rating: Stars; None where the rating is taken back.
        key: Idempotency key: the same rating with the same key counts once.
        received: When, in microseconds since 1970.
    """

    user: RawId
    item: RawId | None
    rating: float | None
    key: str
    received: int


def event_schema(text: tuple[bool, bool]) -> pa.Schema:
    """The columns of events, whose user ids, and item ids, are text or whole numbers."""
    user, item = (pa.string() if one else pa.int64() for one in text)
    return pa.schema(
        [
            ("user", user),
            ("item", item),
            ("rating", pa.float64()),
            ("key", pa.string()),
            ("received", pa.int64()),
        ]
    )


def event_table(events: Iterable[LoggedRating], text: tuple[bool, bool]) -> pa.Table:
    """Events as a table."""
    wanted, rows = event_schema(text), list(events)
    return pa.table(
        {f.name: pa.array([getattr(row, f.name) for row in rows], f.type) for f in wanted},
        schema=wanted,
    )


def events_of(table: pa.Table) -> list[LoggedRating]:
    """The rows of a table of events."""
    columns = [column.to_pylist() for column in table.columns]
    return [LoggedRating(*row) for row in zip(*columns, strict=True)]


def settled(
    events: pa.Table, every: bool = False, kept_since: int | None = None
) -> tuple[pa.Table, int]:
    """What events say in the end: the latest rating of each pair of user and item, oldest first.

    A copy, which has the key of an earlier one, counts by the time at which the first one came.

    Args:
        events: In any order.
        every: Whether all ratings of a pair count, and not the latest one alone.
        kept_since: Also keep the events that took ratings back since then, in microseconds, so
            that an older rating which comes late stays gone.

    Returns:
        The events that count, and the number of copies.
    """
    events = events.take(
        pc.sort_indices(events, sort_keys=[("received", "ascending"), ("key", "ascending")])
    )
    user, item = (_codes(events[name]) for name in ("user", "item"))
    rating = events["rating"].to_numpy()  # nan where it is taken back
    place = np.arange(len(events))
    pair = user * (item.max(initial=0) + 2) + item + 1
    copy = _copies(pair, rating, _codes(events["key"]))
    back, whole = np.isnan(rating), item < 0
    # The place of the last event that took back all of a user's ratings, and those of a pair.
    gone = _last(user, place, whole)
    gone = np.maximum(gone, _last(pair, place, back & ~whole))
    kept = ~copy & ~back & (place > gone)
    if not every:
        kept &= place == _last(pair, place, kept)
    if kept_since is not None:
        kept |= back & (events["received"].to_numpy() >= kept_since)
    return events.filter(pa.array(kept)), int(copy.sum())


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """(N,) number of each distinct value; -1 where there is none."""
    coded = column.combine_chunks().dictionary_encode()
    indices = coded.indices.fill_null(-1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)


def _copies(
    pair: NDArray[np.int64], rating: NDArray[np.float64], key: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(N,) whether an event has come before: the same pair, rating and key."""
    order = np.lexsort((rating, key, pair))  # stable, so that the first one to come stays first
    same = (pair[order][1:] == pair[order][:-1]) & (key[order][1:] == key[order][:-1])
    same &= rating[order][1:] == rating[order][:-1]
    copies = np.zeros(len(pair), bool)
    copies[order[1:][same]] = True
    return copies


def _last(
    group: NDArray[np.int64], place: NDArray[np.int64], where: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """(N,) the last place at which the group of each event has one of those; -1 for none."""
    ids, code = np.unique(group, return_inverse=True)
    last = np.full(len(ids), -1)
    np.maximum.at(last, code[where], place[where])
    return last[code]
