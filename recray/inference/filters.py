"""Which items a list may hold, and how it is arranged."""

# Shape letters: I = items that training knows.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.ids import IdMap, RawId
from recray.errors import RecrayError, unknown_name


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

    @property
    def leave_out_items(self) -> bool:
        """Whether an item may be left out; otherwise the list is at most arranged."""
        chosen = (self.exclude, self.genres, self.not_genres, self.min_popularity)
        bounds = (self.candidates, self.year_from, self.year_to)
        return any(map(bool, chosen)) or any(bound is not None for bound in bounds)


NO_FILTERS = Filters()


class CandidateFilter:
    """Turns filters into masks of items.

    Args:
        ids: Raw and dense item ids.
        genres: Genres of each item, by dense id.
        years: Year of each item, 0 where unknown.
        popularity: Gives the (I,) training ratings of each item that training knows.
    """

    def __init__(
        self,
        ids: IdMap,
        genres: list[list[str]],
        years: NDArray[np.int32],
        popularity: Callable[[], Tensor],
    ) -> None:
        self.ids, self.items = ids, ids.known
        self._genres, self._years, self._popularity = genres, years[: self.items], popularity

    @cached_property
    def genre_names(self) -> list[str]:
        """Every genre that occurs."""
        return sorted({name for names in self._genres for name in names})

    @cached_property
    def _mask_of_genre(self) -> dict[str, NDArray[np.bool_]]:
        masks = {name.casefold(): np.zeros(self.items, np.bool_) for name in self.genre_names}
        for item, names in enumerate(self._genres[: self.items]):
            for name in names:
                masks[name.casefold()][item] = True
        return masks

    def _with_any(self, genres: Sequence[str]) -> NDArray[np.bool_]:
        mask = np.zeros(self.items, np.bool_)
        for name in genres:
            if name.casefold() not in self._mask_of_genre:
                raise unknown_name("genre", name, self.genre_names)
            mask |= self._mask_of_genre[name.casefold()]
        return mask

    def _among(self, raw: Sequence[RawId]) -> NDArray[np.bool_]:
        mask = np.zeros(self.items, np.bool_)
        dense = self.ids.encode_all(raw)
        mask[dense[(dense >= 0) & (dense < self.items)]] = True
        return mask

    def candidate_mask(self, filters: Filters) -> Tensor | None:
        """Find the items that pass.

        Returns:
            (I,) bool; None if all pass.

        Raises:
            RecrayError: The catalogue has no such genre.
        """
        if not filters.leave_out_items:
            return None
        mask, year = ~self._among(filters.exclude), self._years
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
