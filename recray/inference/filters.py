"""What somebody wants of a list beside its length, and variety in it."""

# Shape letters: P = items to choose from, D = vector length, K = length of a list.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recray.data.ids import RawId
from recray.errors import RecrayError

POOL = 300
"""Variety is chosen among so many of the best items, or four times the list if that is more."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants of a list beside its length. The default leaves everything as it is.

    Args:
        exclude: Raw ids that must not appear; unknown ones cannot appear anyway.
        candidates: Only these raw ids may appear; unknown ones are passed over. None allows all.
        genres: At least one of these, in any case of letters.
        not_genres: None of these.
        year_from: First year; items of an unknown year are left out, as by year_to.
        year_to: Last year.
        min_popularity: Fewest training ratings of an item.
        diversity: 0 orders by score alone, 1 by unlikeness to the items above alone.
        explain: Say of each item which rated ones speak for it.
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
    def filters(self) -> bool:
        """Whether it may leave items out."""
        plain = (self.exclude, self.genres, self.not_genres, self.min_popularity)
        bounds = (self.candidates, self.year_from, self.year_to)
        return any(map(bool, plain)) or any(bound is not None for bound in bounds)

    @property
    def plain(self) -> bool:
        """Whether lists are as they are without any wish."""
        return not (self.filters or self.diversity or self.explain)


ANYTHING = Wish()


def pool_of(k: int, items: int, diversity: float) -> int:
    """How many of the best items a list of k is chosen from."""
    return min(items, max(POOL, 4 * k)) if diversity else k


def diversify(unit: Tensor, score: NDArray[np.float32], k: int, diversity: float) -> NDArray[Any]:
    """Choose k of P items, each the best balance of its score and its unlikeness to those before.

    Of the rest the one with the largest (1 - diversity) * score - diversity * likeness is next;
    scores are scaled to 0..1 among the P, likeness is the largest cosine with a chosen one.

    Args:
        unit: (P, D) item vectors of length 1, best score first.
        score: (P,) descending.
        k: Length of the list; all of them if fewer.
        diversity: 0..1.

    Returns:
        (K,) int64 places among the P.

    Source: Carbonell and Goldstein (1998), SIGIR, "The use of MMR".
    """
    vectors = unit.numpy()
    spread = float(score[0] - score[-1]) if len(score) else 0.0
    gain = (1 - diversity) * (score - score[-1:]) / max(spread, 1e-12)
    likeness = np.full(len(score), -1.0, np.float32)
    chosen: list[int] = []
    for _ in range(min(k, len(score))):
        value = gain - diversity * likeness
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        np.maximum(likeness, vectors @ vectors[chosen[-1]], out=likeness)
    return np.array(chosen, np.int64)
