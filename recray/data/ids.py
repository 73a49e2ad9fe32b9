"""Raw MovieLens ids and the dense ids that models use."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

ID_LIMIT = 10**18
"""Raw ids are below this, so that they fit 64 bits with room for arithmetic."""


@dataclass(frozen=True)
class IdMap:
    """A bijection between raw ids and 0..size-1.

    The `known` ids of the training split come first, by ascending raw id; those that only valid
    or test have follow, ascending too.

    Args:
        raw: (size,) raw id of each dense id.
        known: How many of them training knows.
    """

    raw: NDArray[np.int64]
    known: int

    @classmethod
    def build(cls, raw: NDArray[np.int64], in_training: NDArray[np.bool_]) -> Self:
        """Number distinct raw ids.

        Args:
            raw: (N,) distinct raw ids in any order.
            in_training: (N,) whether the training split has the id.
        """
        order = np.lexsort((raw, ~in_training))
        return cls(raw[order], int(in_training.sum()))

    def __len__(self) -> int:
        return len(self.raw)

    def encode(self, raw: NDArray[np.int64]) -> NDArray[np.int32]:
        """Dense ids of raw ids, -1 for those that are in no split."""
        dense = np.full(len(raw), -1, np.int32)
        for first, part in ((0, self.raw[: self.known]), (self.known, self.raw[self.known :])):
            if len(part):
                place = np.minimum(np.searchsorted(part, raw), len(part) - 1)
                found = part[place] == raw
                dense[found] = (place[found] + first).astype(np.int32)
        return dense

    def encode_one(self, raw: int) -> int:
        """Dense id of one raw id, -1 if there is none."""
        return int(self.encode(np.array([raw], np.int64))[0]) if 0 <= raw < ID_LIMIT else -1
