"""Ratings that come over HTTP: on the disk before the answer, and soon known to every replica.

Ratings that come while the disk is busy share the next file of the log: one commit for all of
them. Each replica also reads what the others have written, again and again.
"""

import threading
import time
import uuid
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np
import pyarrow as pa

from recray.data.feedback_events import MICRO, LoggedRating, event_table, events_of
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.data.feedback_table import Events, HeldRating, RatingTable, mark_of
from recray.data.ids import RawId
from recray.errors import DamagedFile, RecrayError
from recray.inference.raw_ratings import RawRating, RawRatings
from recray.inference.recommender import Recommender
from recray.serving.log import log
from recray.serving.schemas.responses import RatingsLogStatus
from recray.storage import Pause, is_uri

LOCAL_POLL_SECONDS, STORE_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.3, 0.6, 5.0
"""Pause between two looks at the files of other replicas, on a disk and on an object store. In a
store, where a look is a LIST, it grows to the last number while nothing comes.
"""
RECENT_KEYS = 20_000
"""Idempotency keys that are remembered with what came with them. Older ones are known again by the
rating that the user has now.
"""
IDLE_SECONDS = 600
"""Parts of a writer that has written nothing for so long are put together by the others."""


DONE: Future[None] = Future()
"""Of what is on the disk already."""
DONE.set_result(None)


class KeyReused(RecrayError):
    """The idempotency key came with another rating before."""


class TooManyRatings(RecrayError):
    """A user has as many ratings in the log as one may have."""


class FeedbackService:
    """The ratings of one replica's users: its own, and those that other replicas have written.

    Args:
        ratings: The log that all replicas share.
        most: Ratings that a user may have in it.
    """

    def __init__(self, ratings: RatingsLog, most: int = 5000) -> None:
        self.log, self.writer, self.most = ratings, LogWriter(ratings), most
        self.damaged: set[str] = set()
        self._write_error = self._read_error = False
        self._table = RatingTable(ratings.text)
        self._by_key: OrderedDict[tuple[RawId, str], tuple[LoggedRating, Future[None]]]
        self._by_key = OrderedDict()
        self._files_read: set[str] = set()
        self._own: set[str] = set()
        self._last_of: dict[str, int] = {}
        self._waiting: list[tuple[LoggedRating, Future[None]]] = []
        self._last_received = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Read the log, and start the two threads that write to it and follow it."""
        self.read_new_files()
        for work in (self._write_loop, self._read_loop):
            threading.Thread(target=work, name="recray-ratings", daemon=True).start()

    def stop(self) -> None:
        """End the threads; the ratings that wait are written first."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()

    def ratings_of(self, user: RawId) -> RawRatings:
        """Return the user's ratings in the log, oldest first."""
        held = self._table.of_user(user)
        return [RawRating(e.item, e.rating, e.received // MICRO) for e in held]

    @property
    def keeps(self) -> bool:
        """Whether the log could be written, and was there, when it was last tried."""
        return not (self._write_error or self._read_error)

    def status(self) -> RatingsLogStatus:
        """Count what the log holds, and name the files that cannot be read."""
        return RatingsLogStatus(
            dataset=self.log.dataset,
            users=self._table.users,
            ratings=self._table.ratings,
            damaged_parts=sorted(self.damaged),
        )

    # ------------------------------------------------------------------------------ writing

    def store(self, user: RawId, item: RawId, rating: float, key: str) -> tuple[Future[None], bool]:
        """Hand a rating to the thread that writes.

        Returns:
            A future that is done when the rating is on the disk, and whether the rating had come
            before.

        Raises:
            KeyReused: The key came with another rating of this user before.
            TooManyRatings: The user has as many as one may have, and none of this item.
        """
        with self._changed:
            known = self._by_key.get((user, key))
            if known is not None:
                event, written = known
                if (event.item, event.rating) != (item, rating):
                    text = f"key {key!r} came with another rating of user {user!r} before"
                    raise KeyReused(f"{text}: send a fresh one with every rating")
                return written, True
            held = self._table.of_user(user)
            if _is_held(held, item, rating, key):
                return DONE, True
            if len(held) >= self.most and all(one.item != item for one in held):
                raise TooManyRatings(
                    f"user {user!r} has {len(held):,} ratings here, and may have {self.most:,}; "
                    f"DELETE /v1/ratings/{user}/ITEM takes one back"
                )
            return self._hand_over(LoggedRating(user, item, rating, key, self._now())), False

    def take_back(self, user: RawId, item: RawId | None) -> Future[None]:
        """Take back a user's rating of an item, or all of the user's; done when it is on the disk.

        What the data set itself says of the user stays: see `recray forget`.
        """
        with self._changed:
            event = LoggedRating(user, item, None, uuid.uuid4().hex, self._now())
            return self._hand_over(event)

    def _now(self) -> int:
        # Strictly growing, although the clock may stand still or be set back.
        self._last_received = max(self._last_received + 1, time.time_ns() // 1000)
        return self._last_received

    def _hand_over(self, event: LoggedRating) -> Future[None]:
        written = Future[None]()
        written.set_running_or_notify_cancel()  # a request that is given up cancels nothing
        self._remember(event, written)
        self._waiting.append((event, written))
        self._changed.notify()
        return written

    def _remember(self, event: LoggedRating, written: Future[None]) -> None:
        self._by_key[event.user, event.key] = event, written
        while len(self._by_key) > RECENT_KEYS:
            self._by_key.popitem(last=False)

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped.is_set():
                    self._changed.wait()
                batch, self._waiting = self._waiting, []
            if not batch:
                return
            self._write(batch)

    def _write(self, batch: list[tuple[LoggedRating, Future[None]]]) -> None:
        events = [event for event, _ in batch]
        try:
            name = self.writer.append(events)
        except Exception as error:  # the waiting requests answer with it; the thread goes on
            self._write_error = True
            with self._changed:
                for event in events:
                    self._by_key.pop((event.user, event.key), None)
            for _, written in batch:
                written.set_exception(error)
            return
        self._write_error = False
        with self._changed:
            self._own.add(name)
            self._table.add(event_table(events, self.log.text))
        for _, written in batch:
            written.set_result(None)
        self._tidy()

    def _tidy(self) -> None:
        """Put together small parts of this replica, and of writers that have gone."""
        idle = time.time_ns() // 1000 - IDLE_SECONDS * MICRO
        with self._changed:
            gone = {writer for writer, last in self._last_of.items() if last < idle}
            others = {n for n in self._files_read - self.damaged if n.split("/")[0] in gone}
            names = sorted(self._own | others)
        try:
            written = self.writer.tidy(names)
        except RecrayError as error:  # the small files stay, and are read as they are
            log(event="ratings_not_tidied", reason=str(error))
            return
        if written:
            there = set(self.log.names())
            with self._changed:
                self._own = (self._own | set(written)) & there

    # ------------------------------------------------------------------------------ reading

    def _read_loop(self) -> None:
        first = STORE_POLL_SECONDS if is_uri(self.log.folder.path) else LOCAL_POLL_SECONDS
        pause = Pause(self.log.folder.path, first, LONGEST_POLL_SECONDS)
        while not self._stopped.wait(pause.seconds):
            changed = False
            try:
                changed = self.read_new_files()
                self._read_error = False
            except Exception as error:  # the store may answer again at the next look
                self._read_error = True
                log(event="ratings_not_read", reason=str(error))
            pause.after(changed)

    def read_new_files(self) -> bool:
        """Read the files that other replicas have written since the last call; whether there were
        some.
        """
        names = {n for n in self.log.names() if not n.startswith(f"{self.writer.name}/")}
        many: list[Events] = []
        latest: list[pa.Table] = []
        new, part = sorted(names - self._files_read), None
        for name in new:
            try:
                part = self.log.read_part(name)
            except DamagedFile as error:
                self.damaged.add(name)
                log(event="ratings_part_skipped", reason=str(error))
                part = event_table([], self.log.text)
            if part is None:
                continue  # its writer has merged it into a larger file, which the next look finds
            self._files_read.add(name)
            if len(part):
                latest.append(self._take(name, part, many))
        del part
        if many:
            with self._changed:
                self._table.fold(many)
            pa.default_memory_pool().release_unused()  # Arrow keeps what reading the parts needed
        if latest:
            self._remember_keys(pa.concat_tables(latest))
        self._files_read &= names
        self.damaged &= names
        return bool(new)

    def _remember_keys(self, events: pa.Table) -> None:
        """Remember the keys of the latest of these events."""
        newest = events.sort_by("received")
        with self._changed:
            for event in events_of(newest.slice(max(0, len(newest) - RECENT_KEYS))):
                if (event.user, event.key) not in self._by_key:
                    self._remember(event, DONE)

    def _take(self, name: str, part: pa.Table, many: list[Events]) -> pa.Table:
        """Know what another replica has written: at once, or with `many` if it is much; return its
        last events.
        """
        last = part["received"][len(part) - 1].as_py()
        with self._changed:
            self._last_of[name.split("/")[0]] = last
            if len(part) > 1000 or many:
                many.append(self._table.narrow(part))
            else:
                self._table.add(part)
        # Not a slice, which would keep the whole part in memory.
        return part.take(np.arange(max(0, len(part) - RECENT_KEYS), len(part)))


def _is_held(held: list[HeldRating], item: RawId, rating: float, key: str) -> bool:
    """Whether a user has this rating, and it came with this key."""
    mark = mark_of(key)
    return any((one.item, one.rating, one.mark) == (item, rating, mark) for one in held)


def check_rating(recommender: Recommender, user: RawId, item: RawId, rating: float) -> None:
    """Refuse a rating that no training could use.

    Raises:
        RecrayError: The item is unknown, the rating is off the scale or between its steps, or the
            user's id is a text where the data set has numbers, or the other way round.
    """
    check_user(recommender, user)
    dataset = recommender.bundle.config["dataset"]
    if recommender.items.encode_one(item) < 0:
        raise RecrayError(f"unknown item {item!r}: {dataset} has none such")
    low, high = recommender.rating_scale
    if not low <= rating <= high:
        raise RecrayError(f"rating {rating:g} is off the scale of {low:g} to {high:g}")
    step = recommender.rating_step
    if step is not None and abs((rating - low) / step - round((rating - low) / step)) > 1e-6:
        raise RecrayError(
            f"rating {rating:g} is between the steps of the scale: {low:g} to {high:g} by {step:g}"
        )


def check_user(recommender: Recommender, user: RawId) -> None:
    """Refuse a user's id that the data set cannot have.

    Raises:
        RecrayError: It is a text where the data set has numbers, or the other way round.
    """
    if isinstance(user, str) != recommender.users.text:
        kind = "texts" if recommender.users.text else "numbers"
        dataset = recommender.bundle.config["dataset"]
        raise RecrayError(f"user {user!r}: the users of {dataset} are {kind}")
