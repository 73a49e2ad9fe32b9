"""What is known of items: ids, titles, years, genres and popularity; and search by title."""

# Shape letters: I = items that training knows.

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pydantic_core import to_json
from torch import Tensor

from recray.data.ids import IdMap, RawId
from recray.inference.filters import CandidateFilter, Filters
from recray.inference.title_search import TitleIndex

GENRE_ROWS = 4096
"""Rows whose genres are made Python lists at once, so that memory never holds all of them twice."""


@dataclass(frozen=True)
class ItemSummary:
    """An item as lists show it; the year is None where it is unknown."""

    item: RawId
    title: str
    year: int | None
    genres: list[str]


@dataclass(frozen=True)
class FoundItem(ItemSummary):
    """An item that a search found, with the number of its training ratings."""

    ratings: int


@dataclass(frozen=True)
class ItemFacts(ItemSummary):
    """All that is known of an item: its ids elsewhere too, and whether training knows it."""

    imdb: str | None
    tmdb: int | None
    ratings: int
    in_training: bool


class ItemCatalog:
    """The items of a bundle, by dense id.

    Args:
        ids: Raw and dense ids.
        table: schema.ITEMS, one row for each of them.
        popularity: Gives the (I,) training ratings of each item that training knows; called when
            they are first needed.
    """

    def __init__(self, ids: IdMap, table: pa.Table, popularity: Callable[[], Tensor]) -> None:
        self.ids, self.known = ids, ids.known
        self._popularity, self._table = popularity, table
        self.raw: list[RawId] = ids.raw.tolist()
        self.titles: list[str] = table["title"].to_pylist()
        self.genres = _shared_lists(table["genres"])
        self._years = table["year"].to_numpy()
        self._year_or_none: list[int | None] = [year or None for year in self._years.tolist()]
        self._filter = CandidateFilter(ids, self.genres, self._years, popularity)

    def fields(self, item: int) -> tuple[RawId, str, int | None, list[str]]:
        """Raw id, title, year and genres of a dense id: the arguments of an ItemSummary."""
        return self.raw[item], self.titles[item], self._year_or_none[item], self.genres[item]

    def describe(self, item: int) -> ItemSummary:
        """Summarise a dense id."""
        return ItemSummary(*self.fields(item))

    def facts(self, item: int) -> ItemFacts:
        """Tell all that is known of a dense id."""
        imdb, tmdb = (self._table[name][item].as_py() for name in ("imdb", "tmdb"))
        return ItemFacts(
            *self.fields(item), imdb, tmdb, self._ratings[item], in_training=item < self.known
        )

    def find(self, query: str, k: int) -> list[FoundItem]:
        """Find at most k items by title: see TitleIndex."""
        found = self._index.find(query, k)
        return [FoundItem(*self.fields(item), self._ratings[item]) for item in found]

    def candidate_mask(self, filters: Filters) -> Tensor | None:
        """Find the items that pass filters: see CandidateFilter."""
        return self._filter.candidate_mask(filters)

    @property
    def genre_names(self) -> list[str]:
        """Every genre that occurs."""
        return self._filter.genre_names

    @cached_property
    def json_prefixes(self) -> list[str]:
        """Each known item as JSON up to its score, since writing JSON costs more than scoring."""
        known = range(self.known)
        return [to_json(self.describe(i)).decode()[:-1] + ',"score":' for i in known]

    @cached_property
    def _ratings(self) -> list[int]:
        known = [int(count) for count in self._popularity().tolist()]
        return known + [0] * (len(self.ids) - self.known)

    @cached_property
    def _index(self) -> TitleIndex:
        return TitleIndex(self.titles, self._ratings)

    @cached_property
    def year_span(self) -> tuple[int, int] | None:
        """First and last year of the items; None if no year is known."""
        known = self._years[self._years > 0]
        return (int(known.min()), int(known.max())) if len(known) else None


def _shared_lists(genres: pa.ChunkedArray) -> list[list[str]]:
    """The genres of each item; items with the same ones share a list, to save memory."""
    known: dict[tuple[str, ...], list[str]] = {}
    shared: list[list[str]] = []
    for first in range(0, len(genres), GENRE_ROWS):
        rows = genres.slice(first, GENRE_ROWS).to_pylist()
        shared += [known.setdefault(tuple(names), names) for names in rows]
    return shared
