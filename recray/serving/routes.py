"""Routes of items, of ratings that users give while the model serves, and of the service itself."""

import asyncio
import functools
from concurrent.futures import Future
from dataclasses import asdict
from importlib import resources
from typing import Annotated

import jinja2
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from recray.data.ids import RawId
from recray.errors import StorageError
from recray.inference.recommender import Recommender
from recray.schema import SCORE_NAMES
from recray.serving.feedback_service import KeyReused, TooManyRatings, check_rating
from recray.serving.rating_rules import RatingRules
from recray.serving.schemas import requests, responses
from recray.serving.service import (
    ItemPath,
    NoQuery,
    Service,
    UserPath,
    error_response,
    error_responses,
    json_response,
    refuse_repeated,
    run_short,
    service_of,
    unknown_item,
)

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
}

items_router = APIRouter(tags=["items"], dependencies=[Depends(refuse_repeated)])
router = APIRouter(dependencies=[Depends(refuse_repeated)])


@items_router.get("/v1/items", response_model=responses.SearchResults, responses=error_responses())
async def search(request: Request, query: Annotated[requests.SearchQuery, Query()]) -> Response:
    """Items by title, those that begin so first."""
    service = service_of(request)
    recommender = service.model()
    found = await run_short(request, lambda: recommender.catalog.find(query.query, query.k))
    return json_response({"items": found, "model_version": recommender.version})


@items_router.post(
    "/v1/items:batch", response_model=responses.ItemsResponse, responses=error_responses(400, 413)
)
async def items(request: Request, body: requests.ItemsRequest, _query: NoQuery) -> Response:
    """All that is known of up to 1,000 items; those that no split has are left out."""
    recommender = service_of(request).model()
    dense = recommender.items.encode_all(body.items).tolist()

    def reply() -> Response:
        known = [recommender.catalog.facts(item) for item in dict.fromkeys(dense) if item >= 0]
        return json_response({"items": known, "model_version": recommender.version})

    return await run_short(request, reply)


@items_router.get(
    "/v1/items/{item:path}/similar",
    response_model=responses.SimilarItems,
    responses=error_responses(404),
)
async def similar(
    request: Request, item: ItemPath, options: Annotated[requests.SimilarOptions, Query()]
) -> Response:
    """The items most like one item, by the model's vectors, or what follows it in histories."""
    recommender = service_of(request).model()
    filters, k = options.as_filters(), recommender.at_most(options.k)
    try:
        raw = recommender.items.parse(item)
        answer = await run_short(request, lambda: recommender.similar(raw, k, filters))
    except KeyError:
        return unknown_item(recommender, item, " that the model was trained on")
    summary = recommender.catalog.describe(recommender.items.encode_one(raw))
    return json_response({"item": summary, **answer.plain()})


@items_router.get(
    "/v1/items/{item:path}", response_model=responses.ItemResponse, responses=error_responses(404)
)
async def item(request: Request, item: ItemPath, _query: NoQuery) -> Response:
    """All that is known of an item."""
    recommender = service_of(request).model()
    try:
        facts = recommender.item(recommender.items.parse(item))
    except KeyError:
        return unknown_item(recommender, item)
    return json_response({**asdict(facts), "model_version": recommender.version})


# -------------------------------------------------------------------------------- ratings


@router.post(
    "/v1/ratings",
    response_model=responses.FeedbackStored,
    status_code=202,
    responses=error_responses(400, 409, 413),
    tags=["feedback"],
)
async def rate(request: Request, body: requests.NewRating, _query: NoQuery) -> Response:
    """Keep a rating: on the disk when this answers, in the user's lists within a second."""
    service = service_of(request)
    recommender, feedback = service.model(), service.feedback
    if feedback is None:
        return _no_log()
    rules, caller = rating_rules_of(request)
    rules.check_user(caller, body.user)
    check_rating(recommender, body.user, body.item, body.rating)
    rules.check_count(caller)
    try:
        written, repeated = feedback.store(body.user, body.item, body.rating, body.key)
    except KeyReused as error:
        return error_response(409, "key_reused", str(error))
    except TooManyRatings as error:
        return error_response(409, "too_many_ratings", str(error))
    refused = await _kept(written)
    if refused is not None:
        return refused
    facts = {"status": "kept", "repeated": repeated, "model_version": recommender.version}
    return json_response({**body.model_dump(), **facts}, 202)


@router.delete(
    "/v1/ratings/{user}/{item:path}",
    response_model=responses.RatingRemoved,
    responses=error_responses(404, 409),
    tags=["feedback"],
)
async def take_back(request: Request, user: UserPath, item: ItemPath, _query: NoQuery) -> Response:
    """Take back a user's rating of an item that was kept here; it trains no more."""
    service = service_of(request)
    recommender = service.model()
    try:
        raw_user, raw_item = recommender.users.parse(user), recommender.items.parse(item)
    except KeyError:
        return error_response(404, "unknown_rating", f"no rating of {item!r} by {user!r}")
    return await _remove(request, raw_user, raw_item)


@router.delete(
    "/v1/users/{user:path}/ratings",
    response_model=responses.RatingRemoved,
    responses=error_responses(404, 409),
    tags=["feedback"],
)
async def take_all_back(request: Request, user: UserPath, _query: NoQuery) -> Response:
    """Take back all of a user's ratings that were kept here; they train no more."""
    service = service_of(request)
    try:
        raw_user = service.model().users.parse(user)
    except KeyError:
        return error_response(404, "unknown_user", f"no user {user!r} can have ratings here")
    return await _remove(request, raw_user, None)


def rating_rules_of(request: Request) -> tuple[RatingRules, str]:
    """Return the rules of ratings, and the name of the key that sent a request."""
    rules: RatingRules = request.app.state.rating_rules
    return rules, request.scope.get("caller", "")


async def _remove(request: Request, user: RawId, item: RawId | None) -> Response:
    service = service_of(request)
    feedback = service.feedback
    if feedback is None:
        return _no_log()
    rules, caller = rating_rules_of(request)
    rules.check_user(caller, user)
    refused = await _kept(feedback.take_back(user, item))
    facts = {"status": "removed", "user": user, "item": item}
    return refused or json_response({**facts, "model_version": service.model().version})


async def _kept(written: Future[None]) -> Response | None:
    """Wait until something is on the disk; what to answer if it cannot be kept."""
    try:
        # A request that times out must not take its rating back: the key makes a repeat harmless.
        await asyncio.shield(asyncio.wrap_future(written))
    except StorageError as error:
        return error_response(503, "not_kept", f"the rating could not be kept: {error}")
    return None


@router.get(
    "/v1/ratings",
    response_model=responses.RatingsLogStatus,
    responses=error_responses(409),
    tags=["feedback"],
)
async def log_status(request: Request, _query: NoQuery) -> Response:
    """How much the ratings log holds, and which of its parts cannot be read."""
    feedback = service_of(request).feedback
    return _no_log() if feedback is None else json_response(feedback.status())


def _no_log() -> Response:
    text = "this service keeps no ratings: serve a registry, or give --ratings-log"
    return error_response(409, "no_log", text)


# ---------------------------------------------------------------------------- the service


@router.get(
    "/v1/model", response_model=responses.ModelInfo, responses=error_responses(), tags=["about"]
)
async def model(request: Request, _query: NoQuery) -> Response:
    """What answers: version, preset, data set, and its measured metrics with intervals."""
    service = service_of(request)
    return json_response(_info(service, service.model()))


@router.get(
    "/v1/models", response_model=responses.LoadedModels, responses=error_responses(), tags=["about"]
)
async def models(request: Request, _query: NoQuery) -> Response:
    """Every model that is loaded; the one that answers unless told otherwise comes first."""
    service = service_of(request)
    infos = [_info(service, recommender) for recommender in service.loaded()]
    return json_response(responses.LoadedModels(models=infos))


def _info(service: Service, recommender: Recommender) -> responses.ModelInfo:
    bundle, years = recommender.bundle, recommender.catalog.year_span
    return responses.ModelInfo(
        model_version=recommender.version,
        created=bundle.created,
        preset=bundle.settings.preset,
        model=bundle.settings.model.kind,
        scores=SCORE_NAMES[bundle.model.score_type],
        dataset=bundle.config["dataset"],
        users=bundle.config["users"],
        items=bundle.config["items"],
        genres=recommender.catalog.genres.names,
        years=None if years is None else list(years),
        example_users=recommender.example_users,
        reads_order=recommender.reads_order,
        keeps_ratings=service.feedback is not None,
        rating_range=list(recommender.rating_scale),
        metrics=bundle.metrics.get("metrics", {}),
        baselines=bundle.metrics.get("baselines", {}),
        verdict=bundle.metrics.get("verdict"),
        settings=bundle.settings.plain(),
    )


@router.get("/healthz", response_model=responses.Status, tags=["about"])
async def alive() -> Response:
    """The process answers."""
    return json_response(responses.Status(status="ok"))


@router.get("/readyz", response_model=responses.Readiness, tags=["about"])
async def ready(request: Request) -> Response:
    """A model is loaded and checked; its version, and that of the model that should answer."""
    service = service_of(request)
    state = service.holder.status()
    if service.feedback is not None:
        state.ratings = "kept" if service.feedback.keeps else "not_kept"
    return json_response(state)


# FastAPI's own page loads scripts from another server; this one has no script at all.
@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Show the OpenAPI document as a page."""
    page = _docs_template().render(schema=request.app.openapi())
    return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})


@router.get("/", include_in_schema=False)
@router.get("/page/page.css", include_in_schema=False)
@router.get("/page/page.js", include_in_schema=False)
async def page(request: Request) -> Response:
    """Serve the page and its two files; the policy lets the browser load nothing else."""
    name, kind = PAGE_FILES[request.scope["route"].path]
    headers = {"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer"}
    return Response(_read(name), media_type=f"{kind}; charset=utf-8", headers=headers)


@functools.cache
def _read(name: str) -> bytes:
    return (resources.files("recray") / "serving" / "page" / name).read_bytes()


@functools.cache
def _docs_template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("docs.html").decode())
