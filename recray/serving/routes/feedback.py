"""Ratings that users give while the model serves."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from recray.errors import StorageError
from recray.serving.feedback_service import KeyReused, check_rating
from recray.serving.schemas import requests, responses
from recray.serving.service import (
    NoQuery,
    error_response,
    error_responses,
    json_response,
    service_of,
)

router = APIRouter(prefix="/v1/ratings", tags=["feedback"])


@router.post(
    "",
    response_model=responses.FeedbackStored,
    status_code=202,
    responses=error_responses(400, 409, 413),
)
async def rate(request: Request, body: requests.NewRating, _query: NoQuery) -> Response:
    """Keep a rating: on the disk when this answers, in the user's lists within a second."""
    service = service_of(request)
    recommender, feedback = service.model(), service.feedback
    if feedback is None:
        return _no_log()
    check_rating(recommender, body.user, body.item, body.rating)
    try:
        written, repeated = feedback.store(body.user, body.item, body.rating, body.key)
    except KeyReused as error:
        return error_response(409, "key_reused", str(error))
    try:
        # A request that times out must not take its rating back: the key makes a repeat harmless.
        await asyncio.shield(asyncio.wrap_future(written))
    except StorageError as error:
        return error_response(503, "not_kept", f"the rating could not be kept: {error}")
    facts = {"status": "kept", "repeated": repeated, "model_version": recommender.version}
    return json_response({**body.model_dump(), **facts}, 202)


@router.get("", response_model=responses.RatingsLogStatus, responses=error_responses(409))
async def log_status(request: Request, _query: NoQuery) -> Response:
    """How much the ratings log holds, and which of its parts cannot be read."""
    feedback = service_of(request).feedback
    return _no_log() if feedback is None else json_response(feedback.status())


def _no_log() -> Response:
    text = "this service keeps no ratings: serve a registry, or give --ratings-log"
    return error_response(409, "no_log", text)
