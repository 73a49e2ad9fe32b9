"""What all routes share: the service, replies, errors and parameters."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import AfterValidator
from pydantic_core import to_json
from starlette.types import Scope

from recray.data.ids import ID_LENGTH, RawId
from recray.errors import DamagedFile, RecrayError, StorageError
from recray.inference.catalog import Filters
from recray.inference.raw_ratings import RawRatings
from recray.inference.recommendations import Recommendations
from recray.inference.recommender import Recommender, UnknownUser
from recray.serving.guard import ServiceMetrics
from recray.serving.hot_swap import ModelHolder
from recray.serving.http_errors import error_body
from recray.serving.options import ServiceLimits
from recray.serving.schemas import requests, responses
from recray.serving.slashes import decode_slashes
from recray.serving.work import T, Work, Workers

if TYPE_CHECKING:
    from recray.serving.ab_test import ABTest
    from recray.serving.feedback_service import FeedbackService

MAX_CACHED_QUERIES = 1000
MAX_CACHED_QUERY_BYTES = 500
UNANSWERABLE = "unfit"
"""Code of a request that fits the OpenAPI document, and that this data set or model cannot answer.
"""

UNREADABLE = "unreadable"
"""Code of a request for a user whose file in the bundle cannot be read now."""

UserPath = Annotated[
    str,
    Path(max_length=ID_LENGTH, description="Raw user id.", examples=["1"]),
    AfterValidator(decode_slashes),
]
ItemPath = Annotated[
    str,
    Path(max_length=ID_LENGTH, description="Raw item id.", examples=["1"]),
    AfterValidator(decode_slashes),
]
NoQuery = Annotated[requests.NoParameters, Query()]
ErrorResponses = dict[int | str, dict[str, type[responses.ErrorResponse] | str]]
CheckedQuery = tuple[requests.QueryOptions, Filters]
"""What FastAPI has made of a query string, and the filters that follow from it."""

_MEANING = {
    400: "The body is no JSON.",
    401: "There are keys, and none came.",
    403: "The key is unknown, or is that of another user.",
    404: "The data set has no such user or item.",
    409: "The idempotency key came with another rating before, or no ratings are kept here.",
    413: "The body is too large.",
    421: "There are no keys, and the Host is no name of this service.",
    422: "A parameter is unknown or out of range, or the request asks for too much.",
    429: "Too many requests of this key, or too much work at once; see Retry-After.",
    500: "A bug.",
    503: "Too many requests at once, or a file of users cannot be read; see Retry-After.",
    504: "It took too long.",
}


class Service:
    """What all routes share.

    Args:
        holder: Holds the model that answers.
        metrics: Counts lists.
        ab_test: The challenger, and which users get it; None if there is one model.
        feedback: Ratings since training; None if the service keeps none.
        workers: Threads for what takes long; by default with the default limits.
    """

    def __init__(
        self,
        holder: ModelHolder,
        metrics: ServiceMetrics,
        ab_test: "ABTest | None" = None,
        feedback: "FeedbackService | None" = None,
        workers: Workers | None = None,
    ) -> None:
        self.holder, self.metrics = holder, metrics
        self.ab_test, self.feedback = ab_test, feedback
        self.checked_queries: dict[bytes, CheckedQuery] = {}
        limits = ServiceLimits()
        self.workers = workers or Workers(limits.budget, limits.timeout)

    def model(self) -> Recommender:
        """Return the model that answers now; a handler calls it once, so no reply mixes two."""
        return self.holder.model

    def ratings_since(self, user: RawId) -> RawRatings:
        """Return the user's ratings since training."""
        return self.feedback.ratings_of(user) if self.feedback is not None else []

    def loaded(self) -> list[Recommender]:
        """Return every loaded model; the one that answers by default comes first."""
        first = self.model()
        return [first] if self.ab_test is None else [first, self.ab_test.challenger]

    def select_model(self, version: str | None, user: RawId | None = None) -> Recommender:
        """Return the model of a version, or the one that answers this user by default.

        Raises:
            RecrayError: No loaded model has this version.
        """
        if version is None:
            if user is not None and self.ab_test is not None and self.ab_test.assigned(user):
                return self.ab_test.challenger
            return self.model()
        found = {recommender.version: recommender for recommender in self.loaded()}
        if version not in found:
            raise RecrayError(f"model {version!r} is not loaded; loaded are {', '.join(found)}")
        return found[version]

    def cache_query(self, query: bytes, checked: CheckedQuery) -> None:
        """Keep what a query string was found to say; the oldest one makes room for it."""
        if query in self.checked_queries or len(query) > MAX_CACHED_QUERY_BYTES:
            return
        if len(self.checked_queries) >= MAX_CACHED_QUERIES:
            del self.checked_queries[next(iter(self.checked_queries))]
        self.checked_queries[query] = checked


def service_of(request: Request) -> Service:
    """Return the service of the app that a request came to."""
    service: Service = request.app.state.service
    return service


def caller_of(scope: Scope) -> str:
    """The name of the key that a request came with; "" where the service asks for none."""
    caller: str = scope.get("caller", "")
    return caller


def alone(work: Callable[[], T]) -> Work[T]:
    """Work that ends by itself, soon."""
    return lambda _waiting: work()


async def run_short(request: Request, work: Callable[[], T]) -> T:
    """Do in a thread what takes some milliseconds, while other requests go on."""
    return await service_of(request).workers.run(caller_of(request.scope), 0.0, alone(work))


def error_responses(*more: int) -> ErrorResponses:
    """The errors of an operation for the OpenAPI document: those of all, and some more."""
    statuses = sorted({401, 403, 421, 422, 429, 500, 503, 504, *more})
    return {s: {"model": responses.ErrorResponse, "description": _MEANING[s]} for s in statuses}


def json_response(value: Any, status: int = 200) -> Response:
    """A reply of plain values, which are not checked once more."""
    return Response(to_json(value), status, media_type="application/json")


def list_response(answer: Recommendations) -> Response:
    """A reply of one list."""
    return Response(answer.to_json(), media_type="application/json")


def error_response(status: int, code: str, message: str) -> Response:
    """An error in the one form that all errors have."""
    return Response(error_body(code, message), status, media_type="application/json")


def error_of(error: RecrayError) -> tuple[str, str]:
    """Code and message of why there is no answer; neither names a file."""
    if isinstance(error, DamagedFile | StorageError):  # of a partition of users, on its first use
        return UNREADABLE, "what is stored of this user cannot be read now"
    return "unknown_user" if isinstance(error, UnknownUser) else UNANSWERABLE, str(error)


def unknown_user(recommender: Recommender, user: str) -> Response:
    """404 for a user whom the data set does not have."""
    text = f"{recommender.no_user(user)}; POST /v1/recommendations answers for somebody new"
    return error_response(404, "unknown_user", text)


def unknown_item(recommender: Recommender, item: str, why: str = "") -> Response:
    """404 for an item that the data set does not have."""
    dataset = recommender.bundle.config["dataset"]
    return error_response(404, "unknown_item", f"no item {item!r} in {dataset}{why}")


async def refuse_repeated(request: Request) -> None:
    """Refuse a parameter that stands twice in an address and is no list; FastAPI takes the last.

    Raises:
        RequestValidationError: There is one.
    """
    names = Counter(name for name, _ in request.query_params.multi_items())
    repeated = [n for n, count in names.items() if count > 1 and n not in requests.LIST_PARAMETERS]
    if repeated:
        problems = [{"loc": ("query", name), "msg": "given more than once"} for name in repeated]
        raise RequestValidationError(problems)
