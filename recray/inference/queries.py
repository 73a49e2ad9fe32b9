"""Users who want a list, as a model sees them."""

# Shape letters: U = users, S = embedding size.

from dataclasses import dataclass

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
        rated: The ratings that each one's scores follow from, in the same order.
        seen: What each one's list leaves out.
        now: (U,) int64 seconds when each list is asked for, where a model reads times and
            somebody said it.
    """

    embedding: Tensor
    source: NDArray[np.int8]
    rated: History
    seen: History
    now: Ids | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: slice) -> "Queries":
        first, last, _ = rows.indices(len(self))
        rated, seen = self.rated.rows(first, last), self.seen.rows(first, last)
        now = None if self.now is None else self.now[rows]
        return Queries(self.embedding[rows], self.source[rows], rated, seen, now)
