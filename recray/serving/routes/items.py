"""Items: search by title, items like one item, and what is known of one or of several."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from recray.serving.schemas import requests, responses
from recray.serving.service import (
    ItemPath,
    NoQuery,
    error_responses,
    json_response,
    service_of,
    unknown_item,
)

router = APIRouter(tags=["items"])


@router.get("/v1/items", response_model=responses.SearchResults, responses=error_responses())
async def search(request: Request, query: Annotated[requests.SearchQuery, Query()]) -> Response:
    """Items by title, those that begin so first."""
    service = service_of(request)
    recommender = service.model()
    found = await service.run_in_thread(lambda: recommender.catalog.find(query.query, query.k))
    return json_response({"items": found, "model_version": recommender.version})


@router.post(
    "/v1/items:batch", response_model=responses.ItemsResponse, responses=error_responses(400, 413)
)
async def items(request: Request, body: requests.ItemsRequest, _query: NoQuery) -> Response:
    """All that is known of up to 1,000 items; those that no split has are left out."""
    recommender = service_of(request).model()
    dense = recommender.items.encode_all(body.items).tolist()
    known = [recommender.catalog.facts(item) for item in dict.fromkeys(dense) if item >= 0]
    return json_response({"items": known, "model_version": recommender.version})


@router.get(
    "/v1/items/{item:path}/similar",
    response_model=responses.SimilarItems,
    responses=error_responses(404),
)
async def similar(
    request: Request, item: ItemPath, options: Annotated[requests.SimilarOptions, Query()]
) -> Response:
    """The items most like one item, by the model's vectors."""
    recommender = service_of(request).model()
    filters, k = options.item_filters(), recommender.at_most(options.k)
    try:
        raw = recommender.items.parse(item)
        answer = recommender.similar(raw, k, filters)
    except KeyError:
        return unknown_item(recommender, item, " that the model was trained on")
    summary = recommender.catalog.describe(recommender.items.encode_one(raw))
    return json_response({"item": summary, **answer.plain()})


@router.get(
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
