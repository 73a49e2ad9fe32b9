"""Parameters and bodies of requests: they are checked, and described in the OpenAPI document."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from recray.data.feedback_log import KEY_LENGTH
from recray.data.ids import ID_LENGTH, ID_LIMIT, RawId
from recray.inference.catalog import NO_FILTERS, Filters
from recray.inference.raw_ratings import CLOCK_TOLERANCE, RawRating, RawRatings

MAX_K = 500
MAX_RATINGS = 1000
MAX_IDS = 1000
MAX_BATCH = 1000
MAX_YEAR = 9999


def _integer(value: Any) -> Any:
    """5.0 is an integer in JSON; Python's JSON reader makes it a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


INTEGER = BeforeValidator(_integer)
"""Stands after the bounds of a field: before them it would keep them out of the document."""
Id = Annotated[
    Annotated[int, Field(strict=True, ge=0, lt=ID_LIMIT)]
    | Annotated[str, Field(strict=True, min_length=1, max_length=ID_LENGTH)],
    INTEGER,
]
ItemId = Annotated[
    Id, Field(description="Raw item id, as the data has it: a number or a text.", examples=[1])
]
UserId = Annotated[
    Id, Field(description="Raw user id, as the data has it: a number or a text.", examples=[1])
]
IdText = Annotated[str, Field(min_length=1, max_length=ID_LENGTH)]
Genres = Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=50)]
Year = Annotated[int, Field(ge=1, le=MAX_YEAR), INTEGER]
Length = Annotated[
    int,
    Field(ge=1, le=MAX_K, description="Length of the list; the catalogue may have fewer."),
    INTEGER,
]
Stars = Annotated[float, Field(allow_inf_nan=False, description="Stars, on the data's scale.")]
Seconds = Annotated[int, Field(gt=-ID_LIMIT, lt=ID_LIMIT), INTEGER]
Now = Annotated[
    Seconds | None,
    Field(
        description=(
            "When the list is asked for, in seconds since 1970, for a model that reads times; "
            "without it, when the last rating came. No time may be after it, or, without it, more "
            f"than {CLOCK_TOLERANCE} seconds after the clock of the service."
        ),
        examples=[None],
    ),
]
EXCLUDE = Field(max_length=MAX_IDS, description="Raw ids that must not appear.")
CANDIDATES = Field(
    max_length=MAX_IDS, description="Only these raw ids may appear; unknown ones cannot."
)


def example(**content: JsonValue) -> ConfigDict:
    """The configuration of a model with an example of its content for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"example": content})


class StrictModel(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid")


class StrictBody(StrictModel):
    """Takes no text for a number either; addresses are all text, but JSON has types."""

    model_config = ConfigDict(strict=True)


class NoParameters(StrictModel):
    """No parameters."""


class ItemFilters(StrictModel):
    """Which items may be in a list."""

    genres: Annotated[Genres, Field(description="At least one of these.", examples=[["Drama"]])] = (
        Field(default_factory=list)
    )
    not_genres: Annotated[Genres, Field(description="None of these.", examples=[["Horror"]])] = (
        Field(default_factory=list)
    )
    year_from: Annotated[Year | None, Field(description="First year.")] = None
    year_to: Annotated[Year | None, Field(description="Last year.")] = None
    min_popularity: Annotated[
        int, Field(ge=0, lt=ID_LIMIT, description="Fewest ratings in training."), INTEGER
    ] = 0

    def as_filters(self) -> Filters:
        """Make the filters of the recommender from the fields that are called alike."""
        names = Filters.__dataclass_fields__.keys() & type(self).model_fields.keys()
        return Filters(**{name: getattr(self, name) for name in names})


class ListOptions(ItemFilters):
    """How long a list is, which items may be in it, and how it is arranged."""

    k: Length = 10
    exclude_seen: Annotated[bool, Field(description="Leave out rated items.")] = True
    diversity: Annotated[
        float,
        Field(
            ge=0, le=1, allow_inf_nan=False, description="0 by score alone, 1 as varied as can be."
        ),
    ] = 0.0
    explain: Annotated[bool, Field(description="Name the rated items behind each.")] = False
    model: Annotated[str | None, Field(max_length=64, description="A version of /v1/models.")] = (
        None
    )


class QueryOptions(ListOptions):
    """The options in an address; a list is a parameter given several times."""

    since: Annotated[bool, Field(description="Count ratings since training.")] = True
    now: Now = None
    exclude: Annotated[list[IdText], EXCLUDE] = Field(default_factory=list)
    candidates: Annotated[list[IdText] | None, CANDIDATES] = None

    def parsed_filters(self, parse: Callable[[str], RawId]) -> Filters:
        """Make the filters of the recommender, which knows raw ids.

        Args:
            parse: Makes a raw id of its text; a KeyError says that no item can have it.
        """
        if self.model_fields_set <= {"k", "exclude_seen", "model", "since", "now"}:
            return NO_FILTERS
        return replace(
            self.as_filters(),
            exclude=_parse_ids(self.exclude, parse),
            candidates=None if self.candidates is None else _parse_ids(self.candidates, parse),
        )


LIST_PARAMETERS = frozenset({"genres", "not_genres", "exclude", "candidates"})
"""Parameters of an address that may be given several times."""


def _parse_ids(texts: list[str], parse: Callable[[str], RawId]) -> list[RawId]:
    ids = []
    for text in texts:
        try:
            ids.append(parse(text))
        except KeyError:
            continue  # no item has this id, so it excludes none and allows none
    return ids


class BodyOptions(ListOptions):
    """The options in a body."""

    model_config = ConfigDict(strict=True)

    exclude: Annotated[list[ItemId], EXCLUDE] = Field(default_factory=list)
    candidates: Annotated[list[ItemId] | None, CANDIDATES] = None


class UserListRequest(BodyOptions):
    """A list for a user of the data set; in a body, since an address ends at 64 kB."""

    model_config = example(exclude=[1, 50], k=5)
    since: Annotated[bool, Field(description="Count ratings since training.")] = True
    now: Now = None


class SimilarOptions(ItemFilters):
    """How many similar items, and of which kind."""

    k: Length = 10


class SearchQuery(StrictModel):
    """A search for items by title."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            description="Part of a title; accents, case and articles do not matter.",
            examples=["the shawshank"],
        ),
    ]
    k: Length = 10


class Rating(StrictBody):
    """One rating, or a plain item that was taken without one."""

    model_config = example(item=1, rating=5)
    item: ItemId
    rating: Annotated[
        Stars | None,
        Field(description="Without it a plain item, which counts as the highest rating."),
    ] = None
    time: Annotated[
        Seconds | None,
        Field(description="Seconds since 1970, with all ratings or with none.", examples=[None]),
    ] = None


Ratings = Annotated[
    list[Rating],
    Field(
        max_length=MAX_RATINGS,
        description=(
            "Of somebody not in training, oldest first where no times come; none gives popular "
            "items. Items unknown to training are skipped, and counted in the reply."
        ),
    ),
]


def as_raw(ratings: list[Rating] | None) -> RawRatings:
    """The ratings as the recommender takes them."""
    return [RawRating(each.item, each.rating, each.time) for each in ratings or ()]


class ColdUserRequest(BodyOptions):
    """A list for somebody new, by their ratings or by the items they took."""

    model_config = example(
        ratings=[{"item": 1, "rating": 5}, {"item": 50, "rating": 3.5}],
        k=5,
        genres=["Drama"],
        explain=True,
    )
    ratings: Ratings = Field(default_factory=list)
    now: Now = None


class BatchQuery(StrictBody):
    """A user of the data set, or somebody new by their ratings; with neither, popular items."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["user", "ratings"],
                "properties": {"user": {"not": {"type": "null"}}, "ratings": {"type": "array"}},
            }
        },
    )
    user: Annotated[UserId | None, Field(description="Raw user id; without it, by ratings.")] = None
    ratings: Ratings | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.user is not None and self.ratings is not None:
            raise ValueError("give user or ratings, not both")
        return self


class BatchRequest(BodyOptions):
    """Lists for several, with the same options."""

    model_config = example(askers=[{"user": 1}, {"ratings": [{"item": 1, "rating": 5}]}], k=5)
    askers: Annotated[list[BatchQuery], Field(min_length=1, max_length=MAX_BATCH)]
    now: Now = None


class Pair(StrictModel):
    """A user and an item."""

    user: UserId
    item: ItemId


class ScoreRequest(StrictBody):
    """Pairs to score."""

    model_config = example(pairs=[{"user": 1, "item": 50}])
    pairs: Annotated[list[Pair], Field(min_length=1, max_length=MAX_BATCH)]


class ItemsRequest(StrictModel):
    """Items to describe."""

    model_config = example(items=[1, 50])
    items: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_IDS)]


class NewRating(StrictModel):
    """A rating to keep for the next training."""

    model_config = example(user=1, item=50, rating=4, key="8f14e45f-1")
    user: Annotated[Id, Field(description="Raw user id; may be new.", examples=[1])]
    item: ItemId
    rating: Annotated[Stars, Field(strict=True)]
    key: Annotated[
        str,
        Field(
            strict=True,
            min_length=1,
            max_length=KEY_LENGTH,
            description="Idempotency key: fresh for each rating, the same when it is sent again.",
        ),
    ]
