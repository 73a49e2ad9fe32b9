"""Users who want a list, as a model sees them."""

# Shape letters: U = users, S = embedding size.

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recray.inference.history import History
from recray.inference.top_k import Ids

SOURCES = ("model", "fold_in", "popular")
MODEL, FOLD_IN, POPULAR = range(len(SOURCES))


@dataclass(frozen=True)
class Queries:
    """Users who want a list, as the model sees them.

    Args:
        embedding: (U, S) user embeddings.
        source: (U,) int8 index into SOURCES: where each embedding comes from.
        rated_of: Gives the ratings that each one's scores follow from, in the same order: reasons
            need them, and models of histories.
        seen: What each one's list leaves out.
        now: (U,) int64 seconds when each list is asked for, where a model reads times and
            somebody said it.
    """

    embedding: Tensor
    source: NDArray[np.int8]
    rated_of: Callable[[], History]
    seen: History
    now: Ids | None = None

    @cached_property
    def rated(self) -> History:
        """What rated_of gives."""
        return self.rated_of()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: slice) -> "Queries":
        first, last, _ = rows.indices(len(self))
        now = None if self.now is None else self.now[rows]
        return Queries(
            self.embedding[rows],
            self.source[rows],
            lambda: self.rated.rows(first, last),
            self.seen.rows(first, last),
            now,
        )
