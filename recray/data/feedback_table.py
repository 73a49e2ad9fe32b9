"""The ratings of a log in few bytes: what a replica holds to answer for its users.

Most lie in sorted arrays, 24 bytes a rating and 16 a user. What came lately lies beside them by
user, until there is enough of it to make the arrays anew.
"""

# Shape letters: N = events, U = users.

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray.data.feedback_events import LATE_SECONDS, MICRO
from recray.data.ids import RawId, id_hash

ALL_ITEMS = -1
"""In place of an item: all of the user's ratings are taken back."""
FEW_EVENTS = 20_000
"""Events beside the arrays, up to which they are not made anew; or an eighth of those in them."""


COLUMNS = {
    "user": np.int64,
    "item": np.int64,
    "rating": np.float32,
    "received": np.int64,
    "mark": np.uint32,
}
"""Columns of Events, and their types."""


class UserEvent(NamedTuple):
    """One event of a user, in keys; see RatingTable."""

    item: int
    rating: float
    received: int
    mark: int


class HeldRating(NamedTuple):
    """A rating in force: raw item, value, microseconds, and a mark of its idempotency key."""

    item: RawId
    rating: float
    received: int
    mark: int


@dataclass(frozen=True)
class Events:
    """Events as columns.

    Args:
        user: (N,) int64 keys.
        item: (N,) int64 keys; ALL_ITEMS where all are taken back.
        rating: (N,) float32 stars; nan where a rating is taken back.
        received: (N,) int64 microseconds.
        mark: (N,) uint32; see mark_of.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    received: NDArray[np.int64]
    mark: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class _Arrays:
    """Settled events, by user and time.

    Args:
        user: (U,) int64 keys, ascending.
        start: (U + 1,) user u has the events start[u]..start[u + 1] - 1.
        item, rating, received, mark: As in Events.
    """

    user: NDArray[np.int64]
    start: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    received: NDArray[np.int64]
    mark: NDArray[np.uint32]

    def of(self, user: int) -> list[UserEvent]:
        place = int(np.searchsorted(self.user, user))
        if place == len(self.user) or self.user[place] != user:
            return []
        rows = slice(int(self.start[place]), int(self.start[place + 1]))
        columns = (self.item[rows], self.rating[rows], self.received[rows], self.mark[rows])
        return [UserEvent(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def mark_of(key: str) -> int:
    """32 bits that stand for an idempotency key: enough to know it again at the same rating."""
    return int(_marks(pa.array([key]))[0])


def _marks(keys: pa.Array) -> NDArray[np.uint32]:
    """(N,) mark of each text: a polynomial of its bytes, for all texts at once."""
    offsets = np.frombuffer(keys.buffers()[1], np.int32)[keys.offset : keys.offset + len(keys) + 1]
    content = np.frombuffer(keys.buffers()[2] or b"", np.uint8)
    begin, length = offsets[:-1], np.diff(offsets)
    marks = np.full(len(keys), 5381, np.uint32)
    for place in range(int(length.max(initial=0))):
        more = np.flatnonzero(length > place)
        marks[more] = marks[more] * np.uint32(16777619) ^ content[begin[more] + place]
    return marks


class RatingTable:
    """The latest rating of each pair of user and item. One thread adds; any may read.

    Users and items stand by whole numbers: their own ids, or 60 bits of a hash of text ids.

    Args:
        text: Whether user ids, and item ids, are text.
    """

    def __init__(self, text: tuple[bool, bool]) -> None:
        self.text = text
        self.users = self.ratings = 0
        self._texts: dict[int, str] = {}  # of items, by their keys
        # Both are replaced together, so that a reader never takes one without the other.
        nothing = _arrays({name: np.zeros(0, kind) for name, kind in COLUMNS.items()})
        self._held: tuple[_Arrays, dict[int, list[UserEvent]]] = (nothing, {})
        self._recent = 0

    def of_user(self, user: RawId) -> list[HeldRating]:
        """The ratings of a user that count, oldest first."""
        return [
            HeldRating(self._raw(e.item), round(e.rating, 6), e.received, e.mark)
            for e in self._settled(self._key(user, self.text[0]))
            if e.rating == e.rating
        ]

    def add(self, table: pa.Table) -> None:
        """Add a few events of feedback_events.event_schema."""
        recent = self._held[1]
        events = self.narrow(table)
        columns = (events.item, events.rating, events.received, events.mark)
        rows = zip(*(c.tolist() for c in columns), strict=True)
        for user, row in zip(events.user.tolist(), rows, strict=True):
            before = _alive(self._settled(user))
            recent[user] = _put(recent.get(user, []), UserEvent(*row))
            after = _alive(self._settled(user))
            self.ratings += after - before
            self.users += (after > 0) - (before > 0)
            self._recent += 1
        if self._recent > max(FEW_EVENTS, len(self._held[0].item) // 8):
            self.fold([])

    def fold(self, more: list[Events]) -> None:
        """Make the arrays anew, with many more events."""
        arrays, recent = self._held
        users = np.repeat(arrays.user, np.diff(arrays.start))
        held = Events(users, arrays.item, arrays.rating, arrays.received, arrays.mark)
        late = [(user, *event) for user, events in recent.items() for event in events]
        parts = [held, *([_events_of(late)] if late else []), *more]
        more.clear()
        # Column by column, and each is freed when it is sorted: a log is half of the memory.
        lists = {name: [getattr(part, name) for part in parts] for name in COLUMNS}
        del held, users, parts
        made = _arrays({name: np.concatenate(lists.pop(name)) for name in COLUMNS})
        self._held, self._recent = (made, {}), 0
        alive = ~np.isnan(made.rating)
        counts = np.add.reduceat(alive, made.start[:-1]) if len(made.user) else np.zeros(0)
        self.ratings, self.users = int(alive.sum()), int((counts > 0).sum())

    def narrow(self, table: pa.Table) -> Events:
        """A table of events in few bytes."""
        item = table["item"].combine_chunks()
        if self.text[1]:
            names = item.unique().drop_null()
            keys = id_hash(names).tolist()
            self._texts.update(zip(keys, names.to_pylist(), strict=True))
            coded = item.dictionary_encode()
            place = coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
            items = np.append(id_hash(coded.dictionary), ALL_ITEMS)[place]
        else:
            items = item.fill_null(ALL_ITEMS).to_numpy()
        return Events(
            id_hash(table["user"].combine_chunks()).astype(np.int64),
            items.astype(np.int64),
            table["rating"].to_numpy().astype(np.float32),
            table["received"].to_numpy().astype(np.int64),
            _marks(table["key"].combine_chunks()),
        )

    def _settled(self, user: int) -> list[UserEvent]:
        """The events of a user that count, those that took something back included."""
        arrays, recent = self._held
        events = arrays.of(user)
        for event in recent.get(user, []):
            events = _put(events, event)
        return sorted(events, key=lambda event: event.received)

    def _key(self, raw: RawId, text: bool) -> int:
        if not text:
            return int(raw)
        return int(id_hash(pa.array([raw], pa.string()))[0])

    def _raw(self, item: int) -> RawId:
        return self._texts[item] if self.text[1] else item


def _alive(events: list[UserEvent]) -> int:
    return sum(event.rating == event.rating for event in events)


def _put(events: list[UserEvent], event: UserEvent) -> list[UserEvent]:
    """A user's events with one more: of each item the latest, and none that was taken back."""
    wiped = max((e.received for e in events if e.item == ALL_ITEMS), default=-1)
    if event.item != ALL_ITEMS and event.received <= wiped:
        return events
    if event.item == ALL_ITEMS:
        return [event, *(e for e in events if e.received > event.received)]
    if any(e.item == event.item and e.received > event.received for e in events):
        return events
    return [*(e for e in events if e.item != event.item), event]


def _events_of(rows: list[tuple[int, int, float, int, int]]) -> Events:
    user, item, rating, received, mark = zip(*rows, strict=True)
    return Events(
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.array(rating, np.float32),
        np.array(received, np.int64),
        np.array(mark, np.uint32),
    )


def _arrays(columns: dict[str, NDArray[Any]]) -> _Arrays:
    """Settle events: of each pair the latest, and what was taken back for a day longer.

    The columns, by the names of Events, are taken out of the mapping one by one.
    """
    order = np.lexsort((columns["received"], columns["item"], columns["user"]))
    user, item = columns.pop("user")[order], columns.pop("item")[order]
    # Of a pair's events, which lie together in the order of time, the last one counts.
    last = np.ones(len(order), bool)
    last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    order, user, item = order[last], user[last], item[last]
    received, rating, mark = (columns.pop(name)[order] for name in ("received", "rating", "mark"))
    del order
    ids, first = np.unique(user, return_index=True)
    counts = np.diff(np.append(first, len(user)))
    # ALL_ITEMS sorts before all items, so a user's one stands first.
    has = item[first] == ALL_ITEMS
    wiped = np.full(len(ids), -1)
    wiped[has] = received[first[has]]
    late = int((time.time() - LATE_SECONDS) * MICRO)
    kept = (received > np.repeat(wiped, counts)) | (item == ALL_ITEMS)
    kept &= ~np.isnan(rating) | (received > late)
    if len(ids):
        counts = np.add.reduceat(kept, first, dtype=np.int64)
    start = np.concatenate([[0], counts[counts > 0].cumsum()]).astype(np.int64)
    return _Arrays(ids[counts > 0], start, item[kept], rating[kept], received[kept], mark[kept])
