"""What is known of several items at once: what a page needs that shows lists of them."""

from typing import Annotated

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from recray.serving.schemas import requests
from recray.serving.schemas import responses as answers
from recray.serving.service import NoQuery, Service, failures, json_reply


class ItemIds(requests.Strict):
    """Items to tell of."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"items": [1, 50]}})
    items: Annotated[list[requests.ItemId], Field(min_length=1, max_length=requests.MAX_IDS)]


class KnownItem(answers.FoundItem):
    """All that is known of an item."""

    imdb: str | None
    tmdb: int | None
    in_training: bool


class ManyItems(BaseModel):
    """What is known of several items, in the order asked for."""

    items: list[KnownItem]
    model_version: str


def add(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.post(
        "/v1/items:batch",
        response_model=ManyItems,
        responses=failures(400, 413),
        tags=["items"],
    )
    async def many(asked: ItemIds, _query: NoQuery) -> Response:
        """All that is known of up to 1,000 items; those that no split has are left out."""
        recommender = service.take()
        dense = recommender.items.encode_all(asked.items).tolist()
        known = [recommender.facts.facts(item) for item in dict.fromkeys(dense) if item >= 0]
        return json_reply({"items": known, "model_version": recommender.version})
