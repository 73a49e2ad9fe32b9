"""What requests may say, for checking and for the OpenAPI document."""

from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from recray.data.ids import ID_LENGTH, ID_LIMIT, RawId
from recray.inference.filters import Wish

MAX_K = 500
MAX_RATINGS = 1000
MAX_IDS = 1000
MAX_BATCH = 1000
MAX_YEAR = 9999


def _whole(value: Any) -> Any:
    """5.0 is an integer in JSON; Python's JSON reader makes it a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the bounds, or they leave the document
Id = Annotated[
    Annotated[int, Field(strict=True, ge=0, lt=ID_LIMIT)]
    | Annotated[str, Field(strict=True, min_length=1, max_length=ID_LENGTH)],
    WHOLE,
]
ItemId = Annotated[
    Id, Field(description="Raw item id, as the data has it: a number or a text.", examples=[1])
]
UserId = Annotated[
    Id, Field(description="Raw user id, as the data has it: a number or a text.", examples=[1])
]
IdText = Annotated[str, Field(min_length=1, max_length=ID_LENGTH)]
Genres = Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=50)]
Year = Annotated[int, Field(ge=1, le=MAX_YEAR), WHOLE]
Length = Annotated[
    int,
    Field(ge=1, le=MAX_K, description="Length of the list; the catalogue may have fewer."),
    WHOLE,
]


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


class Filters(Strict):
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
        int, Field(ge=0, lt=ID_LIMIT, description="Fewest ratings in training."), WHOLE
    ] = 0

    def kept(self) -> dict[str, Any]:
        """The filters as a Wish takes them."""
        return {name: getattr(self, name) for name in Filters.model_fields}


class Options(Filters):
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


class QueryOptions(Options):
    """The options in an address; a list is a parameter given several times."""

    since: Annotated[bool, Field(description="Count ratings since training.")] = True
    exclude: Annotated[
        list[IdText], Field(max_length=MAX_IDS, description="Raw ids that must not appear.")
    ] = Field(default_factory=list)
    candidates: Annotated[
        list[IdText] | None,
        Field(
            max_length=MAX_IDS, description="Only these raw ids may appear; unknown ones cannot."
        ),
    ] = None

    def wish(self, parse: Callable[[str], RawId]) -> Wish:
        """What is wanted; ids that cannot be any of the data's are none."""
        allowed = self.candidates
        return Wish(
            exclude=_parsed(self.exclude, parse),
            candidates=None if allowed is None else _parsed(allowed, parse),
            diversity=self.diversity,
            explain=self.explain,
            **self.kept(),
        )


def _parsed(written: list[str], parse: Callable[[str], RawId]) -> list[RawId]:
    ids = []
    for text in written:
        try:
            ids.append(parse(text))
        except KeyError:
            continue  # no item has it, so it excludes nothing and allows nothing
    return ids


class BodyOptions(Options):
    """The options in a body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    exclude: Annotated[
        list[ItemId], Field(max_length=MAX_IDS, description="Raw ids that must not appear.")
    ] = Field(default_factory=list)
    candidates: Annotated[
        list[ItemId] | None,
        Field(
            max_length=MAX_IDS, description="Only these raw ids may appear; unknown ones cannot."
        ),
    ] = None

    def wish(self) -> Wish:
        """What is wanted."""
        return Wish(
            exclude=self.exclude,
            candidates=self.candidates,
            diversity=self.diversity,
            explain=self.explain,
            **self.kept(),
        )


class SimilarOptions(Filters):
    """How many similar items, and of which kind."""

    k: Length = 10


class Search(Strict):
    """What somebody types."""

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


class Nothing(Strict):
    """No parameters."""


class Rating(Strict):
    """One rating of somebody's."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"item": 1, "rating": 5}}
    )
    item: ItemId
    rating: Annotated[float, Field(allow_inf_nan=False, description="Stars, on the data's scale.")]


Ratings = Annotated[
    list[Rating],
    Field(
        max_length=MAX_RATINGS,
        description="Of somebody not in training; none gives popular items.",
    ),
]


class Newcomer(BodyOptions):
    """Who asks, by ratings, and what is wanted."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "ratings": [{"item": 1, "rating": 5}, {"item": 50, "rating": 3.5}],
                "k": 5,
                "genres": ["Drama"],
                "explain": True,
            }
        },
    )
    ratings: Ratings = Field(default_factory=list)


class Asker(Strict):
    """Who asks: a user of the data set, or somebody by ratings; neither gets popular items."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "not": {
                "required": ["user", "ratings"],
                "properties": {"user": {"not": {"type": "null"}}, "ratings": {"type": "array"}},
            }
        },
    )
    user: Annotated[UserId | None, Field(description="Raw user id; without it, by ratings.")] = None
    ratings: Annotated[list[Rating] | None, Field(max_length=MAX_RATINGS)] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.user is not None and self.ratings is not None:
            raise ValueError("give user or ratings, not both")
        return self


class Batch(BodyOptions):
    """Several who ask for the same."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "askers": [{"user": 1}, {"ratings": [{"item": 1, "rating": 5}]}],
                "k": 5,
            }
        },
    )
    askers: Annotated[list[Asker], Field(min_length=1, max_length=MAX_BATCH)]


class Pair(Strict):
    """A user and an item."""

    user: UserId
    item: ItemId


class Pairs(Strict):
    """Pairs to score."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"pairs": [{"user": 1, "item": 50}]}},
    )
    pairs: Annotated[list[Pair], Field(min_length=1, max_length=MAX_BATCH)]
