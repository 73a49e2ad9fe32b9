"""Ratings that come over HTTP: kept in the log before the answer, and known to every replica.

Requests that come while the disk is busy share the next part: one commit for all of them. What
other replicas keep is read again and again, so that it shows everywhere within a second.
"""

import asyncio
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from recray.data.feedback_log import KEY_LENGTH, Given, LogWriter, RatingsLog
from recray.data.ids import RawId
from recray.errors import DamagedFile, RecrayError, StorageError
from recray.inference.recommender import GivenRatings, Recommender
from recray.serving.log import log
from recray.serving.schemas import requests
from recray.serving.service import NoQuery, Service, failed, failures, json_reply
from recray.storage import is_uri

LOCAL_SECONDS, STORE_SECONDS = 0.3, 0.6
"""Between two looks at what other replicas have kept."""


class NewRating(requests.Strict):
    """A rating to keep for the next training."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"user": 1, "item": 50, "rating": 4, "key": "8f14e45f-1"}},
    )
    user: Annotated[requests.Id, Field(description="Raw user id; may be new.", examples=[1])]
    item: requests.ItemId
    rating: Annotated[float, Field(allow_inf_nan=False, description="Stars, on the data's scale.")]
    key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=KEY_LENGTH,
            description="Idempotency key: fresh for each rating, the same when it is sent again.",
        ),
    ]


class Kept(BaseModel):
    """A rating that is on the disk."""

    status: Literal["kept"]
    user: requests.UserId
    item: requests.ItemId
    rating: float
    key: str
    repeated: Annotated[bool, Field(description="It had come before, and counts once.")]
    model_version: str


class LogStatus(BaseModel):
    """What the ratings log holds."""

    dataset: str
    users: int
    ratings: int
    damaged_parts: list[str]


class KeyReused(RecrayError):
    """The idempotency key came with another rating before."""


class Feedback:
    """The log of one replica: what it keeps, and what all of them have kept.

    Args:
        ratings: The log.
    """

    def __init__(self, ratings: RatingsLog) -> None:
        self.log, self.writer = ratings, LogWriter(ratings)
        self.damaged: set[str] = set()
        self._users: dict[RawId, dict[RawId, Given]] = {}
        self._keys: dict[tuple[RawId, str], tuple[Given, Future[None]]] = {}
        self._parts: set[str] = set()
        self._waiting: list[tuple[Given, Future[None]]] = []
        self._last = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Read the log, then keep and follow in threads of their own."""
        self.follow()
        for work in (self._keep_on, self._follow_on):
            threading.Thread(target=work, name="recray-ratings", daemon=True).start()

    def stop(self) -> None:
        """End the threads; what waits is kept first."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()

    # ------------------------------------------------------------------------------ asking

    def since(self, user: RawId) -> GivenRatings:
        """What the log has of a user, oldest first."""
        own = self._users.get(user)
        if not own:
            return []
        ordered = sorted(own.values(), key=lambda g: g.received)
        return [(given.item, given.rating) for given in ordered]

    def status(self) -> dict[str, Any]:
        """JSON-ready: how much there is, and which parts cannot be read."""
        return {
            "dataset": self.log.dataset,
            "users": len(self._users),
            "ratings": len(self._keys),
            "damaged_parts": sorted(self.damaged),
        }

    # ------------------------------------------------------------------------------ keeping

    def keep(self, user: RawId, item: RawId, rating: float, key: str) -> tuple[Future[None], bool]:
        """Keep a rating.

        Returns:
            What ends when it is on the disk, and whether it had come before.

        Raises:
            KeyReused: The key came with another rating of this user before.
        """
        with self._changed:
            before = self._keys.get((user, key))
            if before is not None:
                given, kept = before
                if (given.item, given.rating) != (item, rating):
                    text = f"key {key!r} came with another rating of user {user!r} before"
                    raise KeyReused(f"{text}: send a fresh one with every rating")
                return kept, True
            self._last = max(self._last + 1, time.time_ns() // 1000)
            given, kept = Given(user, item, rating, key, self._last), Future[None]()
            kept.set_running_or_notify_cancel()  # whoever gives up waiting does not undo it
            self._keys[user, key] = given, kept
            self._waiting.append((given, kept))
            self._changed.notify()
            return kept, False

    def _keep_on(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped.is_set():
                    self._changed.wait()
                batch, self._waiting = self._waiting, []
            if not batch:
                return
            self._commit(batch)

    def _commit(self, batch: list[tuple[Given, Future[None]]]) -> None:
        try:
            self.writer.append([given for given, _ in batch])
        except Exception as error:  # whoever waits is told; the next batch is tried anew
            with self._changed:
                for given, _ in batch:
                    del self._keys[given.user, given.key]
            for _, kept in batch:
                kept.set_exception(error)
            return
        self._take(given for given, _ in batch)
        for _, kept in batch:
            kept.set_result(None)
        try:
            self.writer.tidy()
        except RecrayError as error:  # they stay as small as they are
            log(event="ratings_not_tidied", reason=str(error))

    # ------------------------------------------------------------------------------ following

    def _follow_on(self) -> None:
        pause = STORE_SECONDS if is_uri(self.log.folder.path) else LOCAL_SECONDS
        while not self._stopped.wait(pause):
            try:
                self.follow()
            except Exception as error:  # the store may be back in a moment
                log(event="ratings_not_read", reason=str(error))

    def follow(self) -> None:
        """Take in what others have kept since the last time."""
        names = {n for n in self.log.names() if not n.startswith(f"{self.writer.name}/")}
        for name in sorted(names - self._parts):
            try:
                part = self.log.read_part(name)
            except DamagedFile as error:
                self.damaged.add(name)
                log(event="ratings_part_skipped", reason=str(error))
                part = []
            if part is None:
                continue  # put together with others; the next look finds them
            self._parts.add(name)
            self._take(part)
        self._parts &= names
        self.damaged &= names

    def _take(self, ratings: Iterable[Given]) -> None:
        done = Future[None]()
        done.set_result(None)
        with self._changed:
            for given in ratings:
                before = self._keys.get((given.user, given.key))
                if before is None or before[0] is given:
                    self._keys[given.user, given.key] = given, done
                own = self._users.get(given.user, {})
                latest = own.get(given.item)
                if latest is None or latest.received <= given.received:
                    # A new dict: readers hold no lock.
                    self._users[given.user] = {**own, given.item: given}


# -------------------------------------------------------------------------------- routes


def add(app: FastAPI, service: Service) -> None:
    """Add what takes ratings in, and what tells of the log."""

    @app.post(
        "/v1/ratings",
        response_model=Kept,
        status_code=202,
        responses=failures(400, 409, 413),
        tags=["feedback"],
    )
    async def rate(given: NewRating, _query: NoQuery) -> Response:
        """Keep a rating: on the disk when this answers, in the user's lists within a second."""
        recommender, feedback = service.take(), service.feedback
        if feedback is None:
            return _no_log()
        check(recommender, given.user, given.item, given.rating)
        try:
            kept, before = feedback.keep(given.user, given.item, given.rating, given.key)
        except KeyReused as error:
            return failed(409, "key_reused", str(error))
        try:
            # A request that is given up leaves the rating to be kept: the key makes up for it.
            await asyncio.shield(asyncio.wrap_future(kept))
        except StorageError as error:
            return failed(503, "not_kept", f"the rating could not be kept: {error}")
        facts = {"status": "kept", "repeated": before, "model_version": recommender.version}
        return json_reply({**given.model_dump(), **facts}, 202)

    @app.get(
        "/v1/ratings",
        response_model=LogStatus,
        responses=failures(409),
        tags=["feedback"],
    )
    async def told(_query: NoQuery) -> Response:
        """How much the ratings log holds, and which of its parts cannot be read."""
        if service.feedback is None:
            return _no_log()
        return json_reply(service.feedback.status())


def _no_log() -> Response:
    text = "this service keeps no ratings: serve a registry, or give --ratings-log"
    return failed(409, "no_log", text)


def check(recommender: Recommender, user: RawId, item: RawId, rating: float) -> None:
    """Refuse a rating that no training could use.

    Raises:
        RecrayError: The item is unknown, the rating is off the scale, or the user's id is of the
            other kind.
    """
    dataset = recommender.bundle.config["dataset"]
    if isinstance(user, str) != recommender.users.text:
        kind = "texts" if recommender.users.text else "numbers"
        raise RecrayError(f"user {user!r}: the users of {dataset} are {kind}")
    if recommender.items.encode_one(item) < 0:
        raise RecrayError(f"unknown item {item!r}: {dataset} has none such")
    low, high = recommender.bundle.rating_range
    if not low <= rating <= high:
        raise RecrayError(f"rating {rating:g} is off the scale of {low:g} to {high:g}")
