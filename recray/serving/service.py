"""What the routes of every file share: the service, replies, errors, and parameters."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Path, Query
from fastapi.responses import Response
from pydantic_core import to_json

from recray.data.ids import ID_LENGTH, RawId
from recray.errors import RecrayError
from recray.inference.recommender import GivenRatings, Recommender
from recray.serving.current_model import Live
from recray.serving.guard import failure
from recray.serving.metrics import Tally
from recray.serving.schemas import requests, responses

if TYPE_CHECKING:
    from recray.serving.ab_test import Arms
    from recray.serving.routes.feedback import Feedback

THREADS = 2
QUERIES = 1000

T = TypeVar("T")
UserPath = Annotated[str, Path(max_length=ID_LENGTH, description="Raw user id.", examples=["1"])]
ItemPath = Annotated[str, Path(max_length=ID_LENGTH, description="Raw item id.", examples=["1"])]
NoQuery = Annotated[requests.Nothing, Query()]

_MEANING = {
    400: "The body is no JSON.",
    401: "There are keys, and none came.",
    403: "The key is unknown.",
    404: "The data set has no such user or item.",
    409: "The idempotency key came with another rating before, or no ratings are kept here.",
    413: "The body is too large.",
    422: "A parameter is unknown or out of range.",
    429: "Too many requests of this key; see Retry-After.",
    500: "A bug.",
    503: "Too many requests at once; see Retry-After.",
    504: "It took too long.",
}


class Service:
    """What all routes share.

    Args:
        live: Whose model answers.
        tally: Counts lists.
        arms: A second model and who gets it; None where there is one model.
        feedback: What users have rated since training; None where no ratings are kept.
    """

    def __init__(
        self,
        live: Live,
        tally: Tally,
        arms: "Arms | None" = None,
        feedback: "Feedback | None" = None,
    ) -> None:
        self.live, self.tally, self.arms, self.feedback = live, tally, arms, feedback
        self.plain_queries: dict[bytes, tuple[int, bool]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="recray-work")

    def take(self) -> Recommender:
        """The model that answers now; a handler calls it once, so that no reply mixes versions."""
        return self.live.take()

    def since(self, user: RawId) -> GivenRatings:
        """What a user has rated since training."""
        return self.feedback.since(user) if self.feedback is not None else []

    def loaded(self) -> list[Recommender]:
        """Every model that can answer; the one that does unless told otherwise comes first."""
        first = self.take()
        return [first] if self.arms is None else [first, self.arms.second]

    def choose(self, version: str | None, user: RawId | None = None) -> Recommender:
        """The model of that version, or the one that answers, this user if one is given.

        Raises:
            RecrayError: It is not loaded.
        """
        if version is None:
            second = user is not None and self.arms is not None and self.arms.has(user)
            return self.arms.second if second and self.arms is not None else self.take()
        found = {recommender.version: recommender for recommender in self.loaded()}
        if version not in found:
            raise RecrayError(f"model {version!r} is not loaded; loaded are {', '.join(found)}")
        return found[version]

    def remember(self, query: bytes, k: int, exclude_seen: bool) -> None:
        """Say what a query string without any filter means; a thousand of them are kept."""
        if len(self.plain_queries) < QUERIES:
            self.plain_queries[query] = (k, exclude_seen)

    async def apart(self, work: Callable[[], T]) -> T:
        """Do something long in a thread, while short requests go on.

        What a timeout gives up keeps its thread until it ends, so that there are never more of
        them; what still waits for a thread is not begun.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def failures(*more: int) -> dict[int | str, dict[str, Any]]:
    """The errors of an operation for the OpenAPI document: those of all, and some more."""
    statuses = sorted({401, 403, 422, 429, 500, 503, 504, *more})
    return {s: {"model": responses.Failure, "description": _MEANING[s]} for s in statuses}


def json_reply(value: Any, status: int = 200) -> Response:
    """A reply of plain values, which are not checked once more."""
    return Response(to_json(value), status, media_type="application/json")


def failed(status: int, code: str, message: str) -> Response:
    """An error in the one form that all errors have."""
    return Response(failure(code, message), status, media_type="application/json")


def no_user(recommender: Recommender, user: str) -> Response:
    """404 for a user whom the data set does not have."""
    text = f"{recommender.no_user(user)}; POST /v1/recommendations answers for somebody new"
    return failed(404, "unknown_user", text)


def no_item(recommender: Recommender, item: str, why: str = "") -> Response:
    """404 for an item that the data set does not have."""
    dataset = recommender.bundle.config["dataset"]
    return failed(404, "unknown_item", f"no item {item!r} in {dataset}{why}")
