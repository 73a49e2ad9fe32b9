"""What is known of items: titles, years, genres and popularity; filters, and search by title."""

# Shape letters: I = items that training knows.

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic_core import to_json
from torch import Tensor

from recray.data.ids import IdMap, RawId
from recray.errors import RecrayError, unknown_name

GENRE_ROWS = 4096
"""Rows whose genres are made Python lists at once, so that memory never holds all of them twice."""


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
        self.raw: list[RawId] = ids.raw.tolist()
        self.titles: list[str] = table["title"].to_pylist()
        self.genres = _shared_lists(table["genres"])
        self._years: NDArray[np.int32] = table["year"].to_numpy()  # 0 where unknown
        self._year_or_none: list[int | None] = [year or None for year in self._years.tolist()]

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
    def _index(self) -> "TitleIndex":
        return TitleIndex(self.titles, self._ratings)

    @cached_property
    def year_span(self) -> tuple[int, int] | None:
        """First and last year of the items; None if no year is known."""
        known = self._years[self._years > 0]
        return (int(known.min()), int(known.max())) if len(known) else None

    # ---------------------------------------------------------------------------- filters

    @cached_property
    def genre_names(self) -> list[str]:
        """Every genre that occurs."""
        return sorted({name for names in self.genres for name in names})

    @cached_property
    def _mask_of_genre(self) -> dict[str, NDArray[np.bool_]]:
        masks = {name.casefold(): np.zeros(self.known, np.bool_) for name in self.genre_names}
        for item, names in enumerate(self.genres[: self.known]):
            for name in names:
                masks[name.casefold()][item] = True
        return masks

    def _with_any(self, genres: Sequence[str]) -> NDArray[np.bool_]:
        mask = np.zeros(self.known, np.bool_)
        for name in genres:
            if name.casefold() not in self._mask_of_genre:
                raise unknown_name("genre", name, self.genre_names)
            mask |= self._mask_of_genre[name.casefold()]
        return mask

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
            mask &= self._with_any(filters.genres)
        if filters.not_genres:
            mask &= ~self._with_any(filters.not_genres)
        if filters.year_from is not None:
            mask &= year >= max(filters.year_from, 1)
        if filters.year_to is not None:
            mask &= (year <= filters.year_to) & (year > 0)
        if filters.min_popularity:
            mask &= self._popularity().numpy() >= filters.min_popularity
        return torch.from_numpy(mask)


def _shared_lists(genres: pa.ChunkedArray) -> list[list[str]]:
    """The genres of each item; items with the same ones share a list, to save memory."""
    known: dict[tuple[str, ...], list[str]] = {}
    shared: list[list[str]] = []
    for first in range(0, len(genres), GENRE_ROWS):
        rows = genres.slice(first, GENRE_ROWS).to_pylist()
        shared += [known.setdefault(tuple(names), names) for names in rows]
    return shared


# -------------------------------------------------------------------------- search by title
# Accents, case and articles do not matter; beginnings come first, and typing errors are tried last.

_ARTICLES = "the|a|an|le|la|les|l'|un|une|der|die|das|ein|eine|el|los|las|il|lo|gli|de|het|den|o|os"
_TURNED = re.compile(rf"(^|\()([^()]+), ({_ARTICLES})(?=\s*(?:\(|\)|$))", re.IGNORECASE)
_LEADING = re.compile(r"^(?:the|a|an) ")
_BETWEEN = re.compile(r"[^\w]+")


def fold(text: str) -> str:
    """Lower-case words without accents, with one space between them."""
    plain = text.casefold()
    if not plain.isascii():
        marks = unicodedata.normalize("NFKD", plain)
        plain = "".join(letter for letter in marks if not unicodedata.combining(letter))
    return _BETWEEN.sub(" ", re.sub("['\u2019]", "", plain)).strip()


def spoken(title: str) -> str:
    """A title with its articles in front: The Shawshank Redemption, not Shawshank Redemption, The.

    Those of further titles in brackets too.
    """

    def turn(found: re.Match[str]) -> str:
        before, rest, article = found.groups()
        return before + article + ("" if article.endswith("'") else " ") + rest.strip()

    return _TURNED.sub(turn, title)


class TitleIndex:
    """Finds items by what somebody types.

    Args:
        titles: Title of each item.
        weight: Of each item; the heavier of two equal finds comes first.
    """

    def __init__(self, titles: list[str], weight: Sequence[float]) -> None:
        self._folded = [" " + fold(spoken(title)) for title in titles]
        self._weight = weight

    def find(self, query: str, k: int) -> list[int]:
        """At most k items: titles that begin so, then those with these words, then with each.

        The last word may be a beginning. A leading article may be left out, and titles are also
        found as they are written, such as "Shawshank Redemption, The". Where nothing is found, each
        word of three letters and more may have one letter wrong, missing, too many, or swapped.
        """
        wanted = fold(query), fold(spoken(query))
        if not wanted[0]:
            return []
        found = []
        for item, title in enumerate(self._folded):
            rank = min(_rank(words, title) for words in wanted)
            if rank < NO_MATCH:
                found.append((rank, -self._weight[item], item))
        if not found:
            found = list(self._mistyped(wanted[0].split()))
        return [item for _, _, item in sorted(found)[:k]]

    @cached_property
    def _words(self) -> str:
        return "\n".join(sorted({word for title in self._folded for word in title.split()}))

    def _mistyped(self, words: list[str]) -> Iterator[tuple[int, float, int]]:
        """Rank, weight and item of titles that have all words, but for a letter of each."""
        meant = [re.findall(_but_for_a_letter(word), self._words, re.MULTILINE) for word in words]
        if not all(meant):
            return
        each = [re.compile(f" (?:{'|'.join(variants)})(?= |$)") for variants in meant]
        for item, title in enumerate(self._folded):
            places = [pattern.search(title) for pattern in each]
            if all(places):
                begins = any(place is not None and place.start() == 0 for place in places)
                yield int(not begins), -self._weight[item], item


NO_MATCH = 3
"""The rank of a title that was not found."""
MIN_TYPO_LETTERS = 3
"""Words of fewer letters are taken as they are."""


def _rank(words: str, title: str) -> int:
    """0 begins so, 1 has these words in this order, 2 has words that begin so, 3 none of it."""
    if (at := title.find(" " + words)) == 0:
        return 0
    if at > 0:
        return 0 if _LEADING.sub("", title[1:]).startswith(words) else 1
    return 2 if all(" " + word in title for word in words.split()) else NO_MATCH


def _but_for_a_letter(word: str) -> str:
    """A pattern of the words that begin so, but for one letter."""
    if len(word) < MIN_TYPO_LETTERS:
        return rf"^{word}\w*$"
    places = range(len(word))
    wrong = [word[:i] + r"\w?" + word[i + 1 :] for i in places]  # or one too many
    missing = [word[:i] + r"\w" + word[i:] for i in places]
    swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]]
    return rf"^(?:{'|'.join((*wrong, *missing, *swapped))})\w*$"
