"""Lists for users of the data set and for new ones, histories, and scores of pairs."""

import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic_core import to_json

from recray.data.ids import ID_LENGTH, RawId
from recray.errors import RecrayError
from recray.inference.recommender import (
    RatingsSince,
    RawRatings,
    Recommendations,
    Recommender,
    UnknownUser,
)
from recray.schema import SCORE_NAMES
from recray.serving.guard import error_body
from recray.serving.schemas import requests, responses
from recray.serving.service import (
    UNANSWERABLE,
    NoQuery,
    UserPath,
    error_responses,
    json_response,
    list_response,
    service_of,
    unknown_user,
)

router = APIRouter()


class CachedQueryRoute(APIRoute):
    """Calls `for_user` with options that FastAPI has checked before, if a query string comes again.

    To check the fourteen parameters takes FastAPI 0.3 ms, three times as long as the list itself.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request; the other way leads through FastAPI's."""
        check_and_answer = super().get_route_handler()

        async def answer(request: Request) -> Response:
            options = service_of(request).checked_queries.get(request.scope["query_string"])
            user = request.path_params["user"]
            if options is None or len(user) > ID_LENGTH:
                return await check_and_answer(request)
            return await for_user(request, user, options)

        return answer


async def for_user(
    request: Request, user: UserPath, options: Annotated[requests.QueryOptions, Query()]
) -> Response:
    """The best items for a user of the data set."""
    service = service_of(request)
    first = service.model()
    try:
        raw = first.users.parse(user)
    except KeyError:
        return unknown_user(first, user)
    recommender = service.select_model(options.model, raw)
    filters, k = options.as_filters(recommender.items.parse), recommender.at_most(options.k)
    service.cache_query(request.scope["query_string"], options)
    news = service.ratings_since(raw) if options.since else []
    begin = time.perf_counter()

    def work() -> Recommendations:
        return recommender.recommend(raw, k, options.exclude_seen, filters, news)

    try:
        if recommender.is_fast and not (filters.diversity or filters.explain or news):
            answer = work()  # takes less time than a thread and back
        else:
            answer = await service.run_in_thread(work)
    except KeyError:
        return unknown_user(recommender, user)
    service.metrics.record_lists(answer.source, answer.model_version)
    if service.ab_test is not None and options.model is None:
        seconds = time.perf_counter() - begin
        service.metrics.record_list_seconds(answer.model_version, seconds)
        service.ab_test.mirror(raw, answer, k, options.exclude_seen, filters, news)
    return list_response(answer)


router.add_api_route(
    "/v1/users/{user:path}/recommendations",
    for_user,
    response_model=responses.RecommendationList,
    responses=error_responses(404),
    tags=["recommend"],
    route_class_override=CachedQueryRoute,
)


@router.post(
    "/v1/recommendations",
    response_model=responses.RecommendationList,
    responses=error_responses(400, 413),
    tags=["recommend"],
)
async def for_cold_user(
    request: Request, body: requests.ColdUserRequest, _query: NoQuery
) -> Response:
    """The best items for somebody who was not in training."""
    service = service_of(request)
    recommender = service.select_model(body.model)
    ratings, k = requests.as_pairs(body.ratings), recommender.at_most(body.k)
    answer = await service.run_in_thread(
        lambda: recommender.recommend_from(ratings, k, body.exclude_seen, body.as_filters())
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
    """The best items for up to 1,000 users, known or by their ratings, in one computation."""
    service = service_of(request)
    recommender = service.select_model(body.model)
    reply, sources = await service.run_in_thread(
        lambda: _batch(recommender, body, service.ratings_since)
    )
    for source, count in sources.items():
        service.metrics.record_lists(source, recommender.version, count)
    return reply


def _batch(
    recommender: Recommender, body: requests.BatchRequest, since: RatingsSince
) -> tuple[Response, Counter[str]]:
    """Make the reply, and count its lists by their source."""
    queries: list[RawId | RawRatings] = [
        requests.as_pairs(query.ratings) if query.user is None else query.user
        for query in body.askers
    ]
    k, filters = recommender.at_most(body.k), body.as_filters()
    answers = recommender.recommend_many(queries, k, body.exclude_seen, filters, since)
    sources: Counter[str] = Counter()
    entries = ",".join([_batch_entry(answer, sources) for answer in answers])
    version = to_json(recommender.version).decode()
    text = f'{{"results":[{entries}],"model_version":{version}}}'
    return Response(text.encode(), media_type="application/json"), sources


def _batch_entry(answer: Recommendations | RecrayError, sources: Counter[str]) -> str:
    if isinstance(answer, RecrayError):
        code = "unknown_user" if isinstance(answer, UnknownUser) else UNANSWERABLE
        return error_body(code, str(answer)).decode()
    sources[answer.source] += 1
    return f'{{"items":{answer.items_json()},"source":"{answer.source}"}}'


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
        facts = recommender.user(raw, service.ratings_since(raw))
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
    scored = await service.run_in_thread(lambda: recommender.score_pairs(pairs))
    return json_response(
        {
            "scores": scored,
            "returns": SCORE_NAMES[recommender.bundle.model.score_type],
            "model_version": recommender.version,
        }
    )
