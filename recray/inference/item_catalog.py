"""What is known of items: ids, titles, years, genres, popularity; found and filtered by it."""

# Shape letters: I = items that training knows.

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.ids import IdMap, RawId
from recray.errors import unknown_name
from recray.inference.filters import Wish
from recray.inference.title_search import TitleIndex

PIECE = 4096
"""Items whose genres are read at once."""


class Items:
    """The items of a bundle, by dense id.

    Args:
        ids: Raw and dense ids.
        table: schema.ITEMS, one row for each of them.
        count: Gives the (I,) training ratings of each item that training knows; called once, when
            they are first needed.
    """

    def __init__(self, ids: IdMap, table: pa.Table, count: Callable[[], Tensor]) -> None:
        self.ids, self.known = ids, ids.known
        self._count = count
        self.raw: list[RawId] = ids.raw.tolist()
        self.titles: list[str] = table["title"].to_pylist()
        self.genres = _shared(table["genres"])
        self._years = table["year"].to_numpy()
        self._year_or_none = [year or None for year in self._years.tolist()]
        self._table = table

    def describe(self, item: int) -> dict[str, Any]:
        """Raw id, title, year and genres of a dense id; year is None where unknown."""
        return {
            "item": self.raw[item],
            "title": self.titles[item],
            "year": self._year_or_none[item],
            "genres": self.genres[item],
        }

    def facts(self, item: int) -> dict[str, Any]:
        """All that is known: describe, ids elsewhere, and whether and how training knows it."""
        known = item < self.known
        elsewhere = {name: self._table[name][item].as_py() for name in ("imdb", "tmdb")}
        more = {"ratings": self._ratings[item], "in_training": known}
        return self.describe(item) | elsewhere | more

    def find(self, query: str, k: int) -> list[dict[str, Any]]:
        """At most k items by title, described, with their ratings: see TitleIndex."""
        found = self._index.find(query, k)
        return [self.describe(item) | {"ratings": self._ratings[item]} for item in found]

    @cached_property
    def popularity(self) -> Tensor:
        """(I,) training ratings of each item."""
        return self._count()

    @cached_property
    def _ratings(self) -> list[int]:
        known = [int(count) for count in self.popularity.tolist()]
        return known + [0] * (len(self.ids) - self.known)

    @cached_property
    def _index(self) -> TitleIndex:
        return TitleIndex(self.titles, self._ratings)

    @cached_property
    def year_span(self) -> tuple[int, int] | None:
        """First and last year of the items; None if no year is known."""
        known = self._years[self._years > 0]
        return (int(known.min()), int(known.max())) if len(known) else None

    # --------------------------------------------------------------------------- filters

    @cached_property
    def genre_names(self) -> list[str]:
        """Every genre that occurs."""
        return sorted({name for own in self.genres for name in own})

    @cached_property
    def _of_genre(self) -> dict[str, NDArray[np.bool_]]:
        masks = {name.casefold(): np.zeros(self.known, np.bool_) for name in self.genre_names}
        for item, own in enumerate(self.genres[: self.known]):
            for name in own:
                masks[name.casefold()][item] = True
        return masks

    def _with_any(self, genres: Sequence[str]) -> NDArray[np.bool_]:
        mask = np.zeros(self.known, np.bool_)
        for name in genres:
            own = self._of_genre.get(name.casefold())
            if own is None:
                raise unknown_name("genre", name, self.genre_names)
            mask |= own
        return mask

    def _these(self, raw: Sequence[RawId]) -> NDArray[np.bool_]:
        mask = np.zeros(self.known, np.bool_)
        dense = self.ids.encode_all(raw)
        mask[dense[(dense >= 0) & (dense < self.known)]] = True
        return mask

    def allowed(self, wish: Wish) -> Tensor | None:
        """Which items the wish lets through.

        Returns:
            (I,) bool; None if it lets all through.

        Raises:
            RecrayError: The catalogue has no such genre.
        """
        if not wish.filters:
            return None
        mask, year = ~self._these(wish.exclude), self._years[: self.known]
        if wish.candidates is not None:
            mask &= self._these(wish.candidates)
        if wish.genres:
            mask &= self._with_any(wish.genres)
        if wish.not_genres:
            mask &= ~self._with_any(wish.not_genres)
        if wish.year_from is not None:
            mask &= year >= max(wish.year_from, 1)
        if wish.year_to is not None:
            mask &= (year <= wish.year_to) & (year > 0)
        if wish.min_popularity:
            mask &= self.popularity.numpy() >= wish.min_popularity
        return torch.from_numpy(mask)


def _shared(genres: pa.ChunkedArray) -> list[list[str]]:
    """The genres of each item; items with the same ones share a list, for memory's sake."""
    known: dict[tuple[str, ...], list[str]] = {}
    shared: list[list[str]] = []
    for first in range(0, len(genres), PIECE):
        own = genres.slice(first, PIECE).to_pylist()
        shared += [known.setdefault(tuple(names), names) for names in own]
    return shared
