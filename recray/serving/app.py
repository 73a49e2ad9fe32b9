"""The HTTP interface: the app and its routes. Knows FastAPI and a Recommender, and nothing of Ray.

Raw ids of the data set in and out, titles beside them. Every error is {"error": {"code",
"message"}}. Replies are made of plain values and written without checking them once more.

More routes: write `def add(app: FastAPI, service: Service) -> None` in a file of its own, take what
routes share from replies.py, and list it in ROUTES below; it takes the model by `service.take()`,
once a request.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from recray import __version__
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.filters import Wish
from recray.inference.recommender import (
    GivenRatings,
    Recommendations,
    Recommender,
    Since,
    UnknownUser,
)
from recray.serving import docs_page, web_page
from recray.serving.ab_test import Arms
from recray.serving.current_model import Live
from recray.serving.fast_route import PATH, Shortcut
from recray.serving.guard import Guard, Protection, failure
from recray.serving.metrics import Tally
from recray.serving.routes import feedback
from recray.serving.routes import items as several
from recray.serving.schemas import requests
from recray.serving.schemas import responses as answers
from recray.serving.service import (
    ItemPath,
    NoQuery,
    Service,
    UserPath,
    failed,
    failures,
    json_reply,
    no_item,
    no_user,
)

EXAMPLE_USERS = 4
UNFIT = "unfit"
"""Code of what is right by the document and cannot be answered from this data set or model."""


def build_app(
    model: Recommender | Live,
    protection: Protection | None = None,
    tally: Tally | None = None,
    arms: Arms | None = None,
    kept: feedback.Feedback | None = None,
) -> FastAPI:
    """The app that answers for one model at a time.

    Args:
        model: Opened before, so that requests never wait for a file; a Live if others follow it.
        protection: Keys and limits; by default the limits without any key.
        tally: Counts what happens.
        arms: A second model and who gets it.
        kept: Where ratings go; None takes none in.
    """
    protection, tally = protection or Protection(), tally or Tally()
    app = FastAPI(
        title="recray",
        version=__version__,
        description="Recommendations from a model trained on Ray. Ids are those of the data set.",
        docs_url=None,  # FastAPI's page loads scripts from afar
        redoc_url=None,
    )
    service = Service(model if isinstance(model, Live) else Live(model), tally, arms, kept)
    _errors(app)
    for add in ROUTES:
        add(app, service)
    _describe_keys(app, protection)
    app.add_middleware(Shortcut, service=service)
    app.add_middleware(Guard, protection=protection, tally=tally)
    if protection.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=protection.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key"],
        )
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:3]]
        return failed(422, "invalid", "; ".join(problems))

    @app.exception_handler(RecrayError)
    async def refused(_request: Request, error: RecrayError) -> Response:
        return failed(422, UNFIT, str(error))

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        codes = {400: "invalid", 404: "not_found", 405: "method_not_allowed"}
        reply = failed(
            error.status_code, codes.get(error.status_code, "http_error"), str(error.detail)
        )
        reply.headers.update(error.headers or {})
        return reply


def _for_users(app: FastAPI, service: Service) -> None:
    @app.get(
        PATH,
        response_model=answers.Answer,
        responses=failures(404),
        tags=["recommend"],
    )
    async def for_user(
        request: Request, user: UserPath, options: Annotated[requests.QueryOptions, Query()]
    ) -> Response:
        """The best items for a user of the data set."""
        first = service.take()
        try:
            raw = first.users.parse(user)
        except KeyError:
            return no_user(first, user)
        recommender = service.choose(options.model, raw)
        wish, k = options.wish(recommender.items.parse), recommender.at_most(options.k)
        if wish.plain and options.model is None and options.since:
            service.remember(request.scope["query_string"], options.k, options.exclude_seen)
        news = service.since(raw) if options.since else []
        begin = time.perf_counter()

        def work() -> Recommendations:
            return recommender.recommend(raw, k, options.exclude_seen, wish, news)

        try:
            if recommender.quick.able and not (wish.diversity or wish.explain or news):
                answer = work()  # takes less than going to a thread and back
            else:
                answer = await service.apart(work)
        except KeyError:
            return no_user(recommender, user)
        service.tally.answer(answer.source, answer.model_version)
        if service.arms is not None and options.model is None:
            service.tally.arm(answer.model_version, time.perf_counter() - begin)
            service.arms.copy(raw, answer, k, options.exclude_seen, wish, news)
        return json_reply(answer.plain())


def _for_newcomers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/recommendations",
        response_model=answers.Answer,
        responses=failures(400, 413),
        tags=["recommend"],
    )
    async def for_ratings(asked: requests.Newcomer, _query: NoQuery) -> Response:
        """The best items for somebody who was not in training."""
        recommender = service.choose(asked.model)
        ratings, k = _pairs(asked.ratings), recommender.at_most(asked.k)
        answer = await service.apart(
            lambda: recommender.recommend_from(ratings, k, asked.exclude_seen, asked.wish())
        )
        service.tally.answer(answer.source, answer.model_version)
        return json_reply(answer.plain())

    @app.post(
        "/v1/recommendations:batch",
        response_model=answers.BatchAnswer,
        responses=failures(400, 413),
        tags=["recommend"],
    )
    async def for_many(asked: requests.Batch, _query: NoQuery) -> Response:
        """The best items for up to 1,000 users or people by their ratings, in one computation."""
        recommender = service.choose(asked.model)
        reply, sources = await service.apart(lambda: _batch(recommender, asked, service.since))
        for source, count in sources.items():
            service.tally.answer(source, recommender.version, count)
        return reply


def _batch(
    recommender: Recommender, asked: requests.Batch, since: Since
) -> tuple[Response, Counter[str]]:
    """The reply, and how many lists came from which source."""
    askers: list[RawId | GivenRatings] = []
    for asker in asked.askers:
        if asker.user is not None:
            askers.append(asker.user)
        else:
            askers.append(_pairs(asker.ratings or []))
    k = recommender.at_most(asked.k)
    wish, made = asked.wish(), list[Any]()
    if wish.plain:
        made += recommender.written_many(askers, k, asked.exclude_seen, since)
    else:
        made += recommender.recommend_many(askers, k, asked.exclude_seen, wish, since)
    sources: Counter[str] = Counter()
    entries = ",".join([_entry(answer, sources) for answer in made])
    version = to_json(recommender.version).decode()
    text = f'{{"results":[{entries}],"model_version":{version}}}'
    return Response(text.encode(), media_type="application/json"), sources


def _pairs(ratings: list[requests.Rating]) -> GivenRatings:
    return [(rating.item, rating.rating) for rating in ratings]


def _entry(answer: tuple[str, str] | Recommendations | RecrayError, sources: Counter[str]) -> str:
    if isinstance(answer, tuple):
        source, items = answer
    elif isinstance(answer, Recommendations):
        source, items = answer.source, to_json(answer.items).decode()
    else:
        code = "unknown_user" if isinstance(answer, UnknownUser) else UNFIT
        return failure(code, str(answer)).decode()
    sources[source] += 1
    return f'{{"items":{items},"source":"{source}"}}'


def _items(app: FastAPI, service: Service) -> None:
    @app.get("/v1/items", response_model=answers.Found, responses=failures(), tags=["items"])
    async def search(search: Annotated[requests.Search, Query()]) -> Response:
        """Items by title, those that begin so first."""
        recommender = service.take()
        found = await service.apart(lambda: recommender.facts.find(search.query, search.k))
        return json_reply({"items": found, "model_version": recommender.version})

    @app.get(
        "/v1/items/{item:path}/similar",
        response_model=answers.Similar,
        responses=failures(404),
        tags=["items"],
    )
    async def similar(
        item: ItemPath, options: Annotated[requests.SimilarOptions, Query()]
    ) -> Response:
        """The items most like one item, by the model's vectors."""
        recommender = service.take()
        wish = Wish(**options.kept())
        try:
            raw = recommender.items.parse(item)
            answer = recommender.similar(raw, recommender.at_most(options.k), wish)
        except KeyError:
            return no_item(recommender, item, " that the model was trained on")
        own = recommender.describe(recommender.items.encode_one(raw))
        return json_reply({"item": own, **answer.plain()})

    @app.get(
        "/v1/items/{item:path}",
        response_model=answers.ItemFacts,
        responses=failures(404),
        tags=["items"],
    )
    async def item(item: ItemPath, _query: NoQuery) -> Response:
        """All that is known of an item."""
        recommender = service.take()
        try:
            facts = recommender.item(recommender.items.parse(item))
        except KeyError:
            return no_item(recommender, item)
        return json_reply({**facts, "model_version": recommender.version})


def _users(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/users/{user:path}",
        response_model=answers.UserFacts,
        responses=failures(404),
        tags=["users"],
    )
    async def user(user: UserPath, _query: NoQuery) -> Response:
        """A user's history in short."""
        recommender = service.take()
        try:
            raw = recommender.users.parse(user)
            facts = recommender.user(raw, service.since(raw))
        except KeyError:
            return no_user(recommender, user)
        return json_reply({**facts, "model_version": recommender.version})

    @app.post(
        "/v1/scores",
        response_model=answers.Scores,
        responses=failures(400, 413),
        tags=["users"],
    )
    async def scores(asked: requests.Pairs, _query: NoQuery) -> Response:
        """The predicted rating, or the score, of up to 1,000 pairs."""
        recommender = service.take()
        pairs = [(pair.user, pair.item) for pair in asked.pairs]
        scored = await service.apart(lambda: recommender.score_pairs(pairs))
        return json_reply(
            {
                "scores": scored,
                "returns": recommender.bundle.model.returns,
                "model_version": recommender.version,
            }
        )


def _about(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", responses=failures(), tags=["about"])
    async def model(_query: NoQuery) -> dict[str, Any]:
        """What answers: version, preset, data set, and its measured metrics with intervals."""
        return _facts(service, service.take())

    @app.get("/v1/models", responses=failures(), tags=["about"])
    async def models(_query: NoQuery) -> dict[str, Any]:
        """Every model that is loaded; the one that answers unless told otherwise comes first."""
        return {"models": [_facts(service, recommender) for recommender in service.loaded()]}

    @app.get("/healthz", response_model=answers.Status, tags=["about"])
    async def alive() -> Response:
        """The process answers."""
        return json_reply({"status": "ok"})

    @app.get("/readyz", response_model=answers.Readiness, tags=["about"])
    async def ready() -> Response:
        """A model is loaded and checked; its version, and that of the model that should answer."""
        return json_reply({"status": "ready", **service.live.status()})

    @app.get("/docs", include_in_schema=False)
    async def documented() -> HTMLResponse:
        headers = {"content-security-policy": docs_page.POLICY}
        return HTMLResponse(docs_page.render(app.openapi()), headers=headers)


def _facts(service: Service, recommender: Recommender) -> dict[str, Any]:
    bundle = recommender.bundle
    return {
        "model_version": recommender.version,
        "created": bundle.created,
        "preset": bundle.settings.preset,
        "model": bundle.settings.model.kind,
        "scores": bundle.model.returns,
        "dataset": bundle.config["dataset"],
        "users": bundle.config["users"],
        "items": bundle.config["items"],
        "genres": recommender.facts.genre_names,
        "years": recommender.facts.year_span,
        "example_users": recommender.users.raw[:EXAMPLE_USERS].tolist(),
        "keeps_ratings": service.feedback is not None,
        "rating_range": bundle.config["rating_range"],
        "metrics": bundle.metrics.get("metrics", {}),
        "baselines": bundle.metrics.get("baselines", {}),
        "verdict": bundle.metrics.get("verdict"),
        "settings": bundle.settings.plain(),
    }


def _describe_keys(app: FastAPI, protection: Protection) -> None:
    """Say in the OpenAPI document that keys are asked for."""
    schema = app.openapi()  # made once; FastAPI keeps it
    if protection.keys:
        schema.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        schema["security"] = [{"key": []}, {"header": []}]
        for path in ("/healthz", "/readyz"):
            schema["paths"][path]["get"]["security"] = []


ROUTES: tuple[Callable[[FastAPI, Service], None], ...] = (
    _for_users,
    _for_newcomers,
    _items,
    _users,
    _about,
    feedback.add,
    several.add,
    web_page.add,
)
"""Of two routes that fit an address the first one answers; ids may hold slashes, so what ends in
{user:path} comes after what goes on behind it.
"""
