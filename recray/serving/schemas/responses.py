"""What replies look like, for the OpenAPI document; see bodies.py for requests."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from recray.serving.schemas.requests import ItemId, UserId


class Described(BaseModel):
    """An item."""

    item: ItemId
    title: str
    year: int | None
    genres: list[str]


class Reason(BaseModel):
    """A rated item that speaks for a recommended one."""

    item: ItemId
    title: str
    rating: float
    share: Annotated[float, Field(description="What it adds to the score, or its likeness.")]


class Reasons(BaseModel):
    """Why an item is in the list."""

    kind: Annotated[
        Literal["exact", "approximate"],
        Field(description="Whether the shares of all rated items make up the score."),
    ]
    items: list[Reason]


class Listed(Described):
    """One recommended item."""

    score: Annotated[float, Field(description="Stars, or a logit that only orders; see /v1/model.")]
    why: Annotated[Reasons | None, Field(description="With explain.")] = None


Source = Annotated[Literal["model", "fold_in", "popular"], Field(description="What made the list.")]
EXAMPLE_ITEM: dict[str, Any] = {
    "item": 318,
    "title": "Shawshank Redemption, The (1994)",
    "year": 1994,
    "genres": ["Crime", "Drama"],
}


class Answer(BaseModel):
    """A recommended list, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "items": [{**EXAMPLE_ITEM, "score": 0.913407}],
                "source": "model",
                "model_version": "0f3a5c7e9b1d",
            }
        }
    )
    items: list[Listed]
    source: Source
    model_version: str


class Problem(BaseModel):
    """What went wrong, and what is allowed."""

    code: str
    message: str


class Failure(BaseModel):
    """Every error's body."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"error": {"code": "invalid", "message": "query.k: must be at least 1"}}
        }
    )
    error: Problem


class BatchEntry(BaseModel):
    """The list of one who asked."""

    items: list[Listed]
    source: Source


class BatchAnswer(BaseModel):
    """The lists in the order of those who asked; an error where there is none."""

    results: list[BatchEntry | Failure]
    model_version: str


class Similar(BaseModel):
    """Items like one item; the score is the cosine of their vectors."""

    item: Described
    items: list[Listed]
    source: Source
    model_version: str


class FoundItem(Described):
    """An item that was searched for."""

    ratings: Annotated[int, Field(description="Ratings in training.")]


class Found(BaseModel):
    """Items by title, best first."""

    items: list[FoundItem]
    model_version: str


class ItemFacts(FoundItem):
    """All that is known of an item."""

    imdb: str | None
    tmdb: int | None
    in_training: bool
    model_version: str


class GenreCount(BaseModel):
    """How many rated items have a genre."""

    genre: str
    ratings: int


class RatedItem(Described):
    """An item and the stars a user gave it."""

    rating: float


class UserFacts(BaseModel):
    """A user's history."""

    user: UserId
    in_training: bool
    source: Source
    ratings: int
    mean_rating: float | None
    genres: list[GenreCount]
    highest: list[RatedItem]
    model_version: str


class ScoredPair(BaseModel):
    """A pair and its score."""

    user: UserId
    item: ItemId
    title: str | None
    score: Annotated[
        float | None,
        Field(description="Null for a cold pair if the model ranks and predicts no stars."),
    ]
    source: Annotated[
        Literal["model", "fold_in", "cold"],
        Field(description="cold: the model knows nothing of the user or of the item."),
    ]


class Scores(BaseModel):
    """Scores in the order of the pairs."""

    scores: list[ScoredPair]
    returns: Annotated[Literal["stars", "logits"], Field(description="What a score is.")]
    model_version: str


class Status(BaseModel):
    """How the service is."""

    status: str


class RefusedVersion(BaseModel):
    """A version that was promoted and could not be used."""

    version: str
    reason: str
    time: Annotated[str, Field(description="ISO 8601.")]


class Readiness(Status):
    """How the service is, with which model, and with which one it should be."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "ready",
                "model_version": "0f3a5c7e9b1d",
                "wanted_version": "0f3a5c7e9b1d",
                "stale": False,
                "loading": None,
                "refused": None,
                "registry": "followed",
                "swaps": 2,
            }
        }
    )
    model_version: str
    wanted_version: Annotated[str, Field(description="The registry's current version.")]
    stale: Annotated[bool, Field(description="An older version answers than is wanted.")]
    loading: Annotated[str | None, Field(description="Being opened beside the one that answers.")]
    refused: RefusedVersion | None
    registry: Annotated[
        str | None, Field(description="followed, or why it cannot be read; null without one.")
    ]
    swaps: Annotated[int, Field(description="Models replaced in this replica.")]
