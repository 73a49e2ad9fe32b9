"""What is known of items: titles, years, genres and popularity; and filters by these."""

# Shape letters: I = items that training knows.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic_core import to_json
from torch import Tensor

from recray.data.ids import IdMap, RawId
from recray.errors import RecrayError, unknown_name
from recray.inference.titles import Postings, TitleIndex

PREFIXES = 1 << 16
"""Items that are kept as JSON."""


@dataclass(frozen=True)
class Filters:
    """Which items a list may hold, and how it is arranged. The default leaves lists as they are.

    Args:
        exclude: Raw ids that must not appear; unknown ones cannot appear anyway.
        candidates: Only these raw ids may appear; unknown ones are passed over. None allows all.
        genres: An item must have at least one of these, in any case of letters.
        not_genres: An item must have none of these.
        year_from: First year; items of an unknown year are left out, as by year_to.
        year_to: Last year.
        min_popularity: Least number of training ratings of an item.
        diversity: 0 orders by score alone, 1 by unlikeness to the items above alone.
        explain: Name for each item the rated ones that speak for it.
    """

    exclude: Sequence[RawId] = ()
    candidates: Sequence[RawId] | None = None
    genres: Sequence[str] = ()
    not_genres: Sequence[str] = ()
    year_from: int | None = None
    year_to: int | None = None
    min_popularity: int = 0
    diversity: float = 0.0
    explain: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise RecrayError(f"diversity={self.diversity:g} is out of range: 0 to 1")
        first, last = self.year_from, self.year_to
        if first is not None and last is not None and first > last:
            raise RecrayError(f"year_from={first} is after year_to={last}: no item could be listed")

    @property
    def leave_out_items(self) -> bool:
        """Whether an item may be left out; otherwise the list is at most arranged."""
        chosen = (self.exclude, self.genres, self.not_genres, self.min_popularity)
        bounds = (self.candidates, self.year_from, self.year_to)
        return any(map(bool, chosen)) or any(bound is not None for bound in bounds)


NO_FILTERS = Filters()


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
        titles = table["title"].cast(pa.large_string()).chunks
        self.titles = titles[0] if len(titles) == 1 else pa.concat_arrays(titles)
        self.genres = Genres(table["genres"], ids.known)
        self._years: NDArray[np.int32] = table["year"].to_numpy()  # 0 where unknown
        self._prefixes: dict[int, str] = {}

    def fields(self, item: int) -> tuple[RawId, str, int | None, list[str]]:
        """Raw id, title, year and genres of a dense id: the arguments of an ItemSummary."""
        year = int(self._years[item]) or None
        return self.raw(item), self.title(item), year, self.genres.of(item)

    def raw(self, item: int) -> RawId:
        """The raw id of a dense id."""
        raw = self.ids.raw[item]
        return raw if isinstance(raw, str) else int(raw)

    def title(self, item: int) -> str:
        """The title of a dense id."""
        return str(self.titles[item].as_py())

    def ratings(self, item: int) -> int:
        """Training ratings of a dense id."""
        return int(self._popularity()[item]) if item < self.known else 0

    def describe(self, item: int) -> ItemSummary:
        """Summarise a dense id."""
        return ItemSummary(*self.fields(item))

    def facts(self, item: int) -> ItemFacts:
        """Tell all that is known of a dense id."""
        imdb, tmdb = (self._table[name][item].as_py() for name in ("imdb", "tmdb"))
        return ItemFacts(
            *self.fields(item), imdb, tmdb, self.ratings(item), in_training=item < self.known
        )

    def find(self, query: str, k: int) -> list[FoundItem]:
        """Find at most k items by title: see TitleIndex."""
        found = self._index.find(query, k)
        return [FoundItem(*self.fields(item), self.ratings(item)) for item in found]

    def json_prefix(self, item: int) -> str:
        """An item as JSON up to its score; kept, since writing JSON costs more than scoring."""
        found = self._prefixes.get(item)
        if found is None:
            if len(self._prefixes) >= PREFIXES:
                self._prefixes.clear()
            found = to_json(self.describe(item)).decode()[:-1] + ',"score":'
            self._prefixes[item] = found
        return found

    @cached_property
    def _index(self) -> TitleIndex:
        popularity = self._popularity().numpy()
        return TitleIndex(self.titles, np.pad(popularity, (0, len(self.ids) - len(popularity))))

    @cached_property
    def year_span(self) -> tuple[int, int] | None:
        """First and last year of the items; None if no year is known."""
        known = self._years[self._years > 0]
        return (int(known.min()), int(known.max())) if len(known) else None

    # ---------------------------------------------------------------------------- filters

    def _among(self, raw: Sequence[RawId]) -> NDArray[np.bool_]:
        mask = np.zeros(self.known, np.bool_)
        dense = self.ids.encode_all(raw)
        mask[dense[(dense >= 0) & (dense < self.known)]] = True
        return mask

    def candidate_mask(self, filters: Filters) -> Tensor | None:
        """Find the items that pass filters.

        Returns:
            (I,) bool; None if all pass.

        Raises:
            RecrayError: The catalogue has no such genre.
        """
        if not filters.leave_out_items:
            return None
        mask, year = ~self._among(filters.exclude), self._years[: self.known]
        if filters.candidates is not None:
            mask &= self._among(filters.candidates)
        if filters.genres:
            mask &= self.genres.mask(filters.genres)
        if filters.not_genres:
            mask &= ~self.genres.mask(filters.not_genres)
        if filters.year_from is not None:
            mask &= year >= max(filters.year_from, 1)
        if filters.year_to is not None:
            mask &= (year <= filters.year_to) & (year > 0)
        if filters.min_popularity:
            mask &= self._popularity().numpy() >= filters.min_popularity
        return torch.from_numpy(mask)


class Genres:
    """The genres of each item, as codes.

    Args:
        column: A list of names for each item.
        known: How many items, the first ones, masks are of.
    """

    def __init__(self, column: pa.ChunkedArray, known: int) -> None:
        lists = pa.concat_arrays(column.cast(pa.large_list(pa.string())).chunks)
        found = lists.flatten().dictionary_encode()
        self._names: list[str] = found.dictionary.to_pylist()
        kind = np.uint8 if len(self._names) <= np.iinfo(np.uint8).max else np.int32
        self._codes = found.indices.to_numpy().astype(kind)
        self._end = np.cumsum(pc.list_value_length(lists).to_numpy())
        self._known = known

    def of(self, item: int) -> list[str]:
        """The genres of a dense id."""
        begin = self._end[item - 1] if item else 0
        return [self._names[code] for code in self._codes[begin : self._end[item]].tolist()]

    @property
    def names(self) -> list[str]:
        """Every genre that occurs."""
        return sorted(self._names)

    @cached_property
    def _items(self) -> Postings:
        end = self._end[: self._known]
        rows = np.repeat(np.arange(self._known, dtype=np.int32), np.diff(end, prepend=0))
        return Postings(self._codes[: len(rows)], rows, (len(self._names), self._known))

    def mask(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """The known items that have one of these, in any case of letters.

        Raises:
            RecrayError: There is no such genre.
        """
        codes = []
        for name in names:
            own = [
                range(code, code + 1)
                for code, known in enumerate(self._names)
                if known.casefold() == name.casefold()
            ]
            if not own:
                raise unknown_name("genre", name, self.names)
            codes += own
        return self._items.having(codes)
