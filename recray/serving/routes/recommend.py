"""Lists for users of the data set and for new ones, histories, and scores of pairs."""

import time
from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic_core import to_json

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.recommender import (
    GivenRatings,
    Recommendations,
    Recommender,
    Since,
    UnknownUser,
)
from recray.schema import SCORE_NAMES
from recray.serving.fast_route import PATH
from recray.serving.guard import error_body
from recray.serving.schemas import requests, responses
from recray.serving.service import (
    UNANSWERABLE,
    NoQuery,
    UserPath,
    error_responses,
    json_response,
    service_of,
    unknown_user,
)

router = APIRouter()


@router.get(
    PATH,
    response_model=responses.RecommendationList,
    responses=error_responses(404),
    tags=["recommend"],
)
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
    wish, k = options.wish(recommender.items.parse), recommender.at_most(options.k)
    if wish.plain and options.model is None and options.since:
        service.cache_query(request.scope["query_string"], options.k, options.exclude_seen)
    news = service.ratings_since(raw) if options.since else []
    begin = time.perf_counter()

    def work() -> Recommendations:
        return recommender.recommend(raw, k, options.exclude_seen, wish, news)

    try:
        if recommender.quick.able and not (wish.diversity or wish.explain or news):
            answer = work()  # takes less time than a thread and back
        else:
            answer = await service.run_in_thread(work)
    except KeyError:
        return unknown_user(recommender, user)
    service.metrics.record_lists(answer.source, answer.model_version)
    if service.ab_test is not None and options.model is None:
        seconds = time.perf_counter() - begin
        service.metrics.record_list_seconds(answer.model_version, seconds)
        service.ab_test.mirror(raw, answer, k, options.exclude_seen, wish, news)
    return json_response(answer.plain())


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
        lambda: recommender.recommend_from(ratings, k, body.exclude_seen, body.wish())
    )
    service.metrics.record_lists(answer.source, answer.model_version)
    return json_response(answer.plain())


@router.post(
    "/v1/recommendations:batch",
    response_model=responses.BatchRecommendations,
    responses=error_responses(400, 413),
    tags=["recommend"],
)
async def for_batch(request: Request, body: requests.BatchRequest, _query: NoQuery) -> Response:
    """The best items for up to 1,000 users or people by their ratings, in one computation."""
    service = service_of(request)
    recommender = service.select_model(body.model)
    reply, sources = await service.run_in_thread(
        lambda: _batch(recommender, body, service.ratings_since)
    )
    for source, count in sources.items():
        service.metrics.record_lists(source, recommender.version, count)
    return reply


def _batch(
    recommender: Recommender, body: requests.BatchRequest, since: Since
) -> tuple[Response, Counter[str]]:
    """Make the reply, and count its lists by their source."""
    queries: list[RawId | GivenRatings] = [
        requests.as_pairs(query.ratings) if query.user is None else query.user
        for query in body.askers
    ]
    k, wish = recommender.at_most(body.k), body.wish()
    answers: list[tuple[str, str] | Recommendations | RecrayError] = []
    if wish.plain:
        answers += recommender.written_many(queries, k, body.exclude_seen, since)
    else:
        answers += recommender.recommend_many(queries, k, body.exclude_seen, wish, since)
    sources: Counter[str] = Counter()
    entries = ",".join([_batch_entry(answer, sources) for answer in answers])
    version = to_json(recommender.version).decode()
    text = f'{{"results":[{entries}],"model_version":{version}}}'
    return Response(text.encode(), media_type="application/json"), sources


def _batch_entry(
    answer: tuple[str, str] | Recommendations | RecrayError, sources: Counter[str]
) -> str:
    if isinstance(answer, tuple):
        source, items = answer
    elif isinstance(answer, Recommendations):
        source, items = answer.source, to_json(answer.items).decode()
    else:
        code = "unknown_user" if isinstance(answer, UnknownUser) else UNANSWERABLE
        return error_body(code, str(answer)).decode()
    sources[source] += 1
    return f'{{"items":{items},"source":"{source}"}}'


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
    return json_response({**facts, "model_version": recommender.version})


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
