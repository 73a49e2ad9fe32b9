"""Bodies of responses, as the OpenAPI document describes them; see requests.py for requests."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from recray.serving.schemas.requests import ItemId, UserId, example


class ItemSummary(BaseModel):
    """An item."""

    item: ItemId
    title: str
    year: int | None
    genres: list[str]


class Reason(BaseModel):
    """A rated item that speaks for a recommended one."""

    item: ItemId
    title: str
    rating: Annotated[float, Field(description="A plain item has the highest.")]
    share: Annotated[float, Field(description="What it adds to the score, or its likeness.")]


class Explanation(BaseModel):
    """Why an item is in the list."""

    kind: Annotated[
        Literal["exact", "approximate"],
        Field(
            description=(
                "exact: the shares of all rated items make up the score or, of a model of "
                "histories, each is what the score would lose without that item."
            )
        ),
    ]
    items: list[Reason]


class RecommendedItem(ItemSummary):
    """One recommended item."""

    score: Annotated[float, Field(description="Stars, or a logit that only orders; see /v1/model.")]
    why: Annotated[Explanation | None, Field(description="With explain.")] = None


Skipped = Annotated[
    int | None,
    Field(
        description="With ratings: how many of them are of items that training does not know.",
        examples=[0],
    ),
]
Source = Annotated[Literal["model", "fold_in", "popular"], Field(description="What made the list.")]
EXAMPLE_ITEM: dict[str, JsonValue] = {
    "item": 318,
    "title": "Shawshank Redemption, The (1994)",
    "year": 1994,
    "genres": ["Crime", "Drama"],
}


class RecommendationList(BaseModel):
    """A recommended list, best first."""

    model_config = example(
        items=[{**EXAMPLE_ITEM, "score": 0.913407}], source="model", model_version="0f3a5c7e9b1d"
    )
    items: list[RecommendedItem]
    source: Source
    skipped: Skipped = None
    model_version: str


class ErrorDetail(BaseModel):
    """What went wrong, and what is allowed."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    model_config = example(error={"code": "invalid", "message": "query.k: must be at least 1"})
    error: ErrorDetail


class BatchEntry(BaseModel):
    """One list of a batch."""

    items: list[RecommendedItem]
    source: Source
    skipped: Skipped = None


class BatchRecommendations(BaseModel):
    """The lists in the order of the request, with an error in place of a list that cannot be."""

    results: list[BatchEntry | ErrorResponse]
    model_version: str


class SimilarItems(BaseModel):
    """Items like one item. The score is the cosine of their vectors; of a model of histories
    without vectors, that of the list after this item alone.
    """

    item: ItemSummary
    items: list[RecommendedItem]
    source: Source
    model_version: str


class SearchResult(ItemSummary):
    """An item that was found."""

    ratings: Annotated[int, Field(description="Ratings in training.")]


class SearchResults(BaseModel):
    """Items by title, best first."""

    items: list[SearchResult]
    model_version: str


class ItemDetails(SearchResult):
    """All that is known of an item."""

    imdb: str | None
    tmdb: int | None
    in_training: bool


class ItemResponse(ItemDetails):
    """All that is known of an item, and the version that knows it."""

    model_version: str


class ItemsResponse(BaseModel):
    """What is known of several items, in the order of the request."""

    items: list[ItemDetails]
    model_version: str


class GenreCount(BaseModel):
    """How many rated items have a genre."""

    genre: str
    ratings: int


class RatedItem(ItemSummary):
    """An item, and a user's rating of it."""

    rating: float


class UserHistory(BaseModel):
    """A user's history in short."""

    user: UserId
    in_training: bool
    source: Source
    ratings: int
    mean_rating: float | None
    genres: list[GenreCount]
    highest: list[RatedItem]
    latest: Annotated[
        list[RatedItem],
        Field(description="The newest first; empty where the model reads no order."),
    ]
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


class FeedbackStored(BaseModel):
    """A rating that is on the disk."""

    status: Literal["kept"]
    user: UserId
    item: ItemId
    rating: float
    key: str
    repeated: Annotated[bool, Field(description="It had come before, and counts once.")]
    model_version: str


class RatingRemoved(BaseModel):
    """A rating that was taken back, or all of a user's; on the disk."""

    status: Literal["removed"]
    user: UserId
    item: Annotated[ItemId | None, Field(description="null: all of the user's.")]
    model_version: str


class RatingsLogStatus(BaseModel):
    """What the ratings log holds."""

    dataset: str
    users: int
    ratings: int
    damaged_parts: list[str]


class ModelInfo(BaseModel):
    """A loaded model: version, preset, data set, and its measured metrics with intervals."""

    model_version: str
    created: Annotated[str | None, Field(description="ISO 8601.")]
    preset: str | None
    model: str
    scores: Annotated[Literal["stars", "logits"], Field(description="What a score is.")]
    dataset: str
    users: int
    items: int
    genres: list[str]
    years: Annotated[list[int] | None, Field(description="First and last year of the items.")]
    example_users: list[int | str]
    reads_order: Annotated[
        bool, Field(description="Whether lists follow from the order of a history: what is next.")
    ]
    keeps_ratings: Annotated[bool, Field(description="Whether POST /v1/ratings takes ratings.")]
    rating_range: Annotated[list[float], Field(description="Lowest and highest rating.")]
    metrics: dict[str, JsonValue]
    baselines: dict[str, JsonValue]
    verdict: str | None
    settings: dict[str, JsonValue]


class LoadedModels(BaseModel):
    """Every loaded model; the one that answers unless a request names another comes first."""

    models: list[ModelInfo]


class Status(BaseModel):
    """The state of the service."""

    status: str


class RefusedVersion(BaseModel):
    """A version that was promoted and could not be used."""

    version: str
    reason: str
    time: Annotated[str, Field(description="ISO 8601.")]


class Readiness(Status):
    """The state of the service, the version that answers, and the one that should."""

    model_config = example(
        status="ready",
        model_version="0f3a5c7e9b1d",
        wanted_version="0f3a5c7e9b1d",
        stale=False,
        loading=None,
        refused=None,
        registry="followed",
        swaps=2,
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
    ratings: Annotated[
        Literal["kept", "not_kept"] | None,
        Field(description="not_kept: the log cannot be written now; null where there is none."),
    ] = None
    damaged_users: Annotated[
        list[str], Field(description="Files of users that turned out to be damaged in use.")
    ] = []
