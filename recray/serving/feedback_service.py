"""Ratings that come over HTTP: on the disk before the answer, and soon known to every replica.

Ratings that come while the disk is busy share the next file of the log: one commit for all of
them. Each replica also reads what the others have written, again and again.
"""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future

from recray.data.feedback_log import MICRO, LoggedRating, LogWriter, RatingsLog
from recray.data.ids import RawId
from recray.errors import DamagedFile, RecrayError
from recray.inference.raw_ratings import RawRating, RawRatings
from recray.inference.recommender import Recommender
from recray.serving.log import log
from recray.serving.schemas.responses import RatingsLogStatus
from recray.storage import is_uri

LOCAL_POLL_SECONDS, STORE_POLL_SECONDS = 0.3, 0.6
"""Pause between two looks at the files of other replicas, on a disk and on an object store."""


class KeyReused(RecrayError):
    """The idempotency key came with another rating before."""


class FeedbackService:
    """The ratings of one replica's users: its own, and those that other replicas have written.

    Args:
        ratings: The log that all replicas share.
    """

    def __init__(self, ratings: RatingsLog) -> None:
        self.log, self.writer = ratings, LogWriter(ratings)
        self.damaged: set[str] = set()
        self._by_user: dict[RawId, dict[RawId, LoggedRating]] = {}
        self._by_key: dict[tuple[RawId, str], tuple[LoggedRating, Future[None]]] = {}
        self._files_read: set[str] = set()
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
        ratings = self._by_user.get(user)
        if not ratings:
            return []
        ordered = sorted(ratings.values(), key=lambda event: event.received)
        return [RawRating(e.item, e.rating, e.received // MICRO) for e in ordered]

    def status(self) -> RatingsLogStatus:
        """Count what the log holds, and name the files that cannot be read."""
        return RatingsLogStatus(
            dataset=self.log.dataset,
            users=len(self._by_user),
            ratings=len(self._by_key),
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
        """
        with self._changed:
            known = self._by_key.get((user, key))
            if known is not None:
                event, written = known
                if (event.item, event.rating) != (item, rating):
                    text = f"key {key!r} came with another rating of user {user!r} before"
                    raise KeyReused(f"{text}: send a fresh one with every rating")
                return written, True
            # Strictly growing, although the clock may stand still or be set back.
            self._last_received = max(self._last_received + 1, time.time_ns() // 1000)
            event = LoggedRating(user, item, rating, key, self._last_received)
            written = Future[None]()
            written.set_running_or_notify_cancel()  # a request that is given up cancels nothing
            self._by_key[user, key] = event, written
            self._waiting.append((event, written))
            self._changed.notify()
            return written, False

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
        try:
            self.writer.append([event for event, _ in batch])
        except Exception as error:  # the waiting requests answer with it; the thread goes on
            with self._changed:
                for event, _ in batch:
                    del self._by_key[event.user, event.key]
            for _, written in batch:
                written.set_exception(error)
            return
        self._add(event for event, _ in batch)
        for _, written in batch:
            written.set_result(None)
        try:
            self.writer.tidy()
        except RecrayError as error:  # the small files stay, and are read as they are
            log(event="ratings_not_tidied", reason=str(error))

    # ------------------------------------------------------------------------------ reading

    def _read_loop(self) -> None:
        pause = STORE_POLL_SECONDS if is_uri(self.log.folder.path) else LOCAL_POLL_SECONDS
        while not self._stopped.wait(pause):
            try:
                self.read_new_files()
            except Exception as error:  # the store may answer again at the next look
                log(event="ratings_not_read", reason=str(error))

    def read_new_files(self) -> None:
        """Read the files that other replicas have written since the last call."""
        names = {n for n in self.log.names() if not n.startswith(f"{self.writer.name}/")}
        for name in sorted(names - self._files_read):
            try:
                events = self.log.read_part(name)
            except DamagedFile as error:
                self.damaged.add(name)
                log(event="ratings_part_skipped", reason=str(error))
                events = []
            if events is None:
                continue  # its writer has merged it into a larger file, which the next look finds
            self._files_read.add(name)
            self._add(events)
        self._files_read &= names
        self.damaged &= names

    def _add(self, events: Iterable[LoggedRating]) -> None:
        done = Future[None]()
        done.set_result(None)
        with self._changed:
            for event in events:
                known = self._by_key.get((event.user, event.key))
                if known is None or known[0] is event:
                    self._by_key[event.user, event.key] = event, done
                ratings = self._by_user.get(event.user, {})
                latest = ratings.get(event.item)
                if latest is None or latest.received <= event.received:
                    # A new dict replaces the old one, because `ratings_of` reads without a lock.
                    self._by_user[event.user] = {**ratings, event.item: event}


def check_rating(recommender: Recommender, user: RawId, item: RawId, rating: float) -> None:
    """Refuse a rating that no training could use.

    Raises:
        RecrayError: The item is unknown, the rating is off the scale, or the user's id is a text
            where the data set has numbers, or the other way round.
    """
    dataset = recommender.bundle.config["dataset"]
    if isinstance(user, str) != recommender.users.text:
        kind = "texts" if recommender.users.text else "numbers"
        raise RecrayError(f"user {user!r}: the users of {dataset} are {kind}")
    if recommender.items.encode_one(item) < 0:
        raise RecrayError(f"unknown item {item!r}: {dataset} has none such")
    low, high = recommender.rating_scale
    if not low <= rating <= high:
        raise RecrayError(f"rating {rating:g} is off the scale of {low:g} to {high:g}")
