"""Routes of users: their lists, their histories, and scores of pairs."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.types import Scope

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.catalog import Filters
from recray.inference.costs import is_quick, price_of_filters, price_of_lists, price_of_scores
from recray.inference.raw_ratings import RatingsSince, RawRatings
from recray.inference.recommendations import Recommendations
from recray.inference.recommender import Recommender
from recray.schema import SCORE_NAMES
from recray.serving.http_errors import HTTPError, error_body
from recray.serving.schemas import requests, responses
from recray.serving.service import (
    NoQuery,
    Service,
    UserPath,
    alone,
    caller_of,
    error_of,
    error_responses,
    json_response,
    list_response,
    refuse_repeated,
    run_short,
    service_of,
    unknown_user,
)
from recray.serving.work import Waiting

MAX_LISTED = 50_000
"""Items in one reply, so that its text stays near 5 MB."""
PART_SECONDS = 0.05
"""Price of the lists of a batch that are made together; between them the work may end."""

router = APIRouter(dependencies=[Depends(refuse_repeated)])


@router.get(
    "/v1/users/{user:path}/recommendations",
    response_model=responses.RecommendationList,
    responses=error_responses(404),
    tags=["recommend"],
)
async def for_user(
    request: Request, user: UserPath, options: Annotated[requests.QueryOptions, Query()]
) -> Response:
    """The best items for a user of the data set."""
    service = service_of(request)
    # All models of a service have ids of one kind, so the filters hold for each of them.
    checked = options, options.parsed_filters(service.model().items.parse)
    service.cache_query(request.scope["query_string"], checked)
    return await plan_list(service, user, *checked).run(service, request.scope)


@router.post(
    "/v1/users/{user:path}/recommendations",
    response_model=responses.RecommendationList,
    responses=error_responses(400, 404, 413),
    tags=["recommend"],
)
async def for_user_by_body(
    request: Request, user: UserPath, body: requests.UserListRequest, _query: NoQuery
) -> Response:
    """The best items for a user of the data set, with options too long for an address."""
    service = service_of(request)
    plan = plan_list(service, user, body, body.as_filters())
    return await plan.run(service, request.scope)


class ListPlan(NamedTuple):
    """How the reply of a user's list is made.

    Args:
        seconds: Its price; None where it takes less time than a thread and back.
        reply: Makes it.
    """

    seconds: float | None
    reply: Callable[[], Response]

    async def run(self, service: Service, scope: Scope) -> Response:
        """Make it, in a thread if that is worth it."""
        if self.seconds is None:
            return self.reply()
        return await service.workers.run(caller_of(scope), self.seconds, alone(self.reply))


def plan_list(
    service: Service,
    user: str,
    options: requests.QueryOptions | requests.UserListRequest,
    filters: Filters,
) -> ListPlan:
    """What a user's list takes, and what makes the reply.

    Raises:
        RecrayError: No loaded model has the version of the query.
    """
    first = service.model()
    try:
        raw = first.users.parse(user)
    except KeyError:
        return ListPlan(None, lambda: unknown_user(first, user))
    recommender = service.select_model(options.model, raw)
    k = recommender.at_most(options.k)
    news = service.ratings_since(raw) if options.since else []
    begin = time.perf_counter()

    def reply() -> Response:
        try:
            answer = recommender.recommend(raw, k, options.exclude_seen, filters, news, options.now)
        except KeyError:
            return unknown_user(recommender, user)
        service.metrics.record_lists(answer.source, answer.model_version)
        if service.ab_test is not None and options.model is None:
            seconds = time.perf_counter() - begin
            service.metrics.record_list_seconds(answer.model_version, seconds)
            service.ab_test.mirror(raw, answer, k, options.exclude_seen, filters, news, options.now)
        return list_response(answer)

    if not news and is_quick(recommender, filters) and recommender.users.at_hand([raw])[0]:
        return ListPlan(None, reply)
    (seconds,) = price_of_lists(recommender, [raw], k, filters, lambda _user: news)
    return ListPlan(seconds + price_of_filters(filters), reply)


@router.post(
    "/v1/recommendations",
    response_model=responses.RecommendationList,
    responses=error_responses(400, 413),
    tags=["recommend"],
)
async def for_cold_user(
    request: Request, body: requests.ColdUserRequest, _query: NoQuery
) -> Response:
    """The best items for somebody who was not in training, by what they did and in which order."""
    service = service_of(request)
    recommender = service.select_model(body.model)
    ratings, k = requests.as_raw(body.ratings), recommender.at_most(body.k)
    filters = body.as_filters()
    (seconds,) = price_of_lists(recommender, [ratings], k, filters)
    answer = await service.workers.run(
        caller_of(request.scope),
        seconds + price_of_filters(filters),
        alone(lambda: recommender.recommend_from(ratings, k, body.exclude_seen, filters, body.now)),
    )
    service.metrics.record_lists(answer.source, answer.model_version)
    return list_response(answer)


@router.post(
    "/v1/recommendations:batch",
    response_model=responses.BatchRecommendations,
    responses=error_responses(400, 413),
    tags=["recommend"],
)
async def for_batch(request: Request, body: requests.BatchRequest, _query: NoQuery) -> Response:
    """The best items for up to 1,000 users, known or by their ratings, in few computations."""
    service = service_of(request)
    recommender = service.select_model(body.model)
    k, filters = recommender.at_most(body.k), body.as_filters()
    if len(body.askers) * k > MAX_LISTED:
        text = f"{len(body.askers):,} lists of {k} items are more than {MAX_LISTED:,} items"
        raise HTTPError(422, "too_much", f"{text}, the most in one reply: ask for fewer at once")
    # Of ratings only their number is priced; they are put into another form in the thread.
    askers = [(q.ratings or []) if q.user is None else q.user for q in body.askers]
    prices = price_of_lists(recommender, askers, k, filters, service.ratings_since)
    reply, sources = await service.workers.run(
        caller_of(request.scope),
        sum(prices) + price_of_filters(filters),
        lambda waiting: make_batch(recommender, body, service.ratings_since, prices, waiting),
    )
    for source, count in sources.items():
        service.metrics.record_lists(source, recommender.version, count)
    return reply


def make_batch(
    recommender: Recommender,
    body: requests.BatchRequest,
    since: RatingsSince,
    prices: Sequence[float],
    waiting: Waiting,
) -> tuple[Response, Counter[str]]:
    """Make the reply, and count its lists by their source.

    Raises:
        GivenUp: Nobody waits for it any more.
    """
    k, filters = recommender.at_most(body.k), body.as_filters()
    sources: Counter[str] = Counter()
    entries: list[str] = []
    for part in _parts(prices):
        waiting.check()
        queries: list[RawId | RawRatings] = [
            requests.as_raw(query.ratings) if query.user is None else query.user
            for query in body.askers[part]
        ]
        made = recommender.recommend_many(queries, k, body.exclude_seen, filters, since, body.now)
        entries += [_batch_entry(answer, sources) for answer in made]
    version = to_json(recommender.version).decode()
    text = f'{{"results":[{",".join(entries)}],"model_version":{version}}}'
    return Response(text.encode(), media_type="application/json"), sources


def _parts(prices: Sequence[float]) -> Iterator[slice]:
    """Split lists into parts that cost PART_SECONDS or one list."""
    first, total = 0, 0.0
    for place, seconds in enumerate(prices):
        if place > first and total + seconds > PART_SECONDS:
            yield slice(first, place)
            first, total = place, 0.0
        total += seconds
    yield slice(first, len(prices))


def _batch_entry(answer: Recommendations | RecrayError, sources: Counter[str]) -> str:
    if isinstance(answer, RecrayError):
        return error_body(*error_of(answer)).decode()
    sources[answer.source] += 1
    return f"{{{answer.entry_json()}}}"


@router.get(
    "/v1/users/{user:path}",
    response_model=responses.UserHistory,
    responses=error_responses(404),
    tags=["users"],
)
async def history(request: Request, user: UserPath, _query: NoQuery) -> Response:
    """A user's history in short."""
    service = service_of(request)
    recommender = service.model()
    try:
        raw = recommender.users.parse(user)
        work = partial(recommender.user, raw, service.ratings_since(raw))
        here = recommender.users.at_hand([raw])[0]
        facts = work() if here else await run_short(request, work)
    except KeyError:
        return unknown_user(recommender, user)
    return json_response({**asdict(facts), "model_version": recommender.version})


@router.post(
    "/v1/scores",
    response_model=responses.Scores,
    responses=error_responses(400, 413),
    tags=["users"],
)
async def scores(request: Request, body: requests.ScoreRequest, _query: NoQuery) -> Response:
    """The predicted rating, or the score, of up to 1,000 pairs."""
    service = service_of(request)
    recommender = service.model()
    pairs = [(pair.user, pair.item) for pair in body.pairs]
    seconds = price_of_scores(recommender, pairs)
    work = alone(lambda: recommender.score_pairs(pairs))
    scored = await service.workers.run(caller_of(request.scope), seconds, work)
    return json_response(
        {
            "scores": scored,
            "returns": SCORE_NAMES[recommender.bundle.model.score_type],
            "model_version": recommender.version,
        }
    )
