"""A counted Markov chain: which items follow which in the histories of the training."""

# Shape letters: B = pairs, U = users, I = items, N = pairs of items that occur, M = items of a
# history that are read, S = length of a user state.

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import refuse_outside
from recray.models.counts import ALONE, SCALE, Group, HistoryPairs, in_units
from recray.models.history import ClosedForm, RatingsCSR

EXACT_IDS = 1 << 24
"""Up to here a float32 number tells ids apart."""
ENTRIES = 1 << 22
"""Entries of the table that are added up at once."""
REST = 1e-9
"""What the share of an item among all ratings is multiplied by, so that it orders only the items
that followed nothing of a history.
"""


class Markov(ClosedForm):
    """Score of a pair: sum over the last items of a history of recent_decay^j T[that item, item].

    T[a, b] is the sum of decay^(k - 1) over pairs a, b that stand k places apart in a training
    history, k up to the window; row a is divided by (its sum + 1)^row_power, column b by
    (ratings of b)^popularity_power. j is 0 for the last item. Only the pairs that occur are kept,
    so the table grows with the ratings and not with the square of the catalogue.

    Items that followed nothing of the history come last, the most rated first: REST times its share
    of all ratings is added to each item's score.

    A user state is (2 M) numbers: the ids of the last M items, newest first and -1 where there are
    fewer, then their weights.

    Args:
        users: Number of users.
        items: Number of items.
        window: Farthest places that are counted.
        decay: Weight of a pair one place farther apart, 0 < decay <= 1.
        recent: How many items M of a history make its scores.
        recent_decay: Weight of an item one place earlier, 0 < recent_decay <= 1.
        row_power: 1: the successors of an item share a weight of 1; 0: frequent items say more.
        popularity_power: 0: popular successors stay; more: they are worth less.

    Raises:
        RecrayError: The catalogue is too large for ids in a float32 state.
    """

    reads_order, reads_times = True, False
    sized_by_data = ("begin", "successor", "value")

    def __init__(
        self,
        users: int,
        items: int,
        window: int = 20,
        decay: float = 0.85,
        recent: int = 50,
        recent_decay: float = 0.8,
        row_power: float = 0.9,
        popularity_power: float = 0.2,
    ) -> None:
        super().__init__(users, items)
        if items > EXACT_IDS:
            raise RecrayError(f"markov takes up to {EXACT_IDS:,} items, the data have {items:,}")
        self.window, self.decay = window, decay
        self.recent, self.recent_decay = recent, recent_decay
        self.row_power, self.popularity_power = row_power, popularity_power
        self.register_buffer("begin", torch.zeros(items + 1, dtype=torch.int64))
        self.register_buffer("successor", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("value", torch.zeros(0))
        self.register_buffer("rest", torch.zeros(items))
        self.begin: Tensor
        self.successor: Tensor
        self.value: Tensor
        self.rest: Tensor

    def fit(self, histories: RatingsCSR, group: Group = ALONE) -> None:
        """Count the successors of each item and scale the counts."""
        pairs = HistoryPairs(histories.indptr, histories.item, self.items, group)
        units = in_units(self.decay ** np.arange(self.window, dtype=np.float64))[:, None]
        found = list(pairs.blocks(range(1, self.window + 1), units))
        row, column, count = (np.concatenate(parts) for parts in zip(*found, strict=True))
        value = count / SCALE
        row_sum = np.bincount(row, value, self.items)
        value /= (row_sum[row] + 1) ** self.row_power
        value /= pairs.counts[column].astype(np.float64) ** self.popularity_power
        begin = np.searchsorted(row, np.arange(self.items + 1))
        self.begin.copy_(torch.from_numpy(begin))
        self.successor = torch.from_numpy(column.astype(np.int32))
        self.value = torch.from_numpy(value.astype(np.float32))
        share = pairs.counts / max(pairs.counts.sum(), 1)
        self.rest.copy_(torch.from_numpy((REST * share).astype(np.float32)))

    def check_weights(self) -> None:
        """Compare the places of the rows with the table; see Model."""
        begin, entries = self.begin, len(self.successor)
        ends = len(begin) == self.items + 1 and (int(begin[0]), int(begin[-1])) == (0, entries)
        if not ends or len(self.value) != entries or bool((begin.diff() < 0).any()):
            raise ValueError(f"begin does not divide the {entries:,} entries of the table")
        refuse_outside("successor", self.successor, self.items)

    def state_of(self, known: RatingsCSR) -> Tensor:
        """The last items of each history and their weights: (U, 2 M) float32."""
        place = known.indptr[1:, None] - 1 - torch.arange(self.recent)
        inside = place >= known.indptr[:-1, None]
        weight = self.recent_decay ** torch.arange(self.recent, dtype=torch.float64)
        item = torch.full(place.shape, -1, dtype=torch.int64)
        item[inside] = known.item[place[inside]]
        return torch.cat([item.float(), torch.where(inside, weight, 0.0).float()], dim=1)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for the items first..last-1: (U, 2 M) to (U, last - first)."""
        item, weight = self._items_of(state)
        begin, end = self._rows_of(item, first, last)
        # Blocks of users, so that few entries of the table are held at once.
        filled = (end - begin).sum(axis=1).cumsum()
        blocks = np.searchsorted(filled, np.arange(ENTRIES, filled[-1:].sum(), ENTRIES))
        parts = [
            self._sums(b, e, w, first, last)
            for b, e, w in zip(
                *(np.split(each, np.unique(blocks)) for each in (begin, end, weight)), strict=True
            )
        ]
        return torch.from_numpy(np.concatenate(parts)) + self.rest[first:last]

    def _sums(
        self,
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
        weight: NDArray[np.float64],
        first: int,
        last: int,
    ) -> NDArray[np.float32]:
        """Add up entries of the table: (U, M) places and weights to (U, last - first) scores."""
        users, width = len(begin), last - first
        count = (end - begin).reshape(-1)
        # Place of each entry: counted on from where its row of the table begins.
        place = np.arange(count.sum()) + np.repeat(
            begin.reshape(-1) - count.cumsum() + count, count
        )
        cell = self.successor.numpy()[place] + np.repeat(
            np.repeat(np.arange(users) * width, begin.shape[1]) - first, count
        )
        added = self.value.numpy()[place] * np.repeat(weight.reshape(-1), count)
        # bincount adds in the order of the entries, so a user's sums depend on nobody else.
        sums = np.bincount(cell, added, users * width)
        return sums.reshape(users, width).astype(np.float32)

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of B pairs: (B, 2 M) states and (B,) ids to (B,)."""
        read, weight = self._items_of(state)
        wanted = item.numpy()[:, None]
        place, end = self._rows_of(read, wanted, wanted + 1)
        value = np.append(self.value.numpy(), np.float32(0))[np.where(place < end, place, -1)]
        return torch.from_numpy((value * weight).sum(axis=1).astype(np.float32)) + self.rest[item]

    def _items_of(self, state: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The items and the weights in states."""
        item, weight = (
            state.detach().cpu().numpy().reshape(len(state), 2, self.recent).swapaxes(0, 1)
        )
        return item.astype(np.int64), weight.astype(np.float64)

    def _rows_of(
        self, item: NDArray[np.int64], first: Any, last: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the successors first..last-1 of items begin and end in the table."""
        offset, known = self.begin.numpy(), item >= 0
        begin, end = (np.where(known, offset[item + add], 0) for add in (0, 1))
        if isinstance(first, int) and first == 0 and last == self.items:
            return begin, end
        successor = self.successor.numpy()
        low, high = (_lower_bound(successor, begin, end, wanted) for wanted in (first, last))
        return low, high


def _lower_bound(
    ascending: NDArray[np.int32], begin: NDArray[np.int64], end: NDArray[np.int64], wanted: Any
) -> NDArray[np.int64]:
    """First place of begin..end-1 that holds `wanted` or more, by halving; else `end`."""
    low, high = begin, end
    while (open_ := low < high).any():
        middle = (low + high) // 2
        less = open_ & (ascending[np.where(open_, middle, 0)] < wanted)
        low, high = np.where(less, middle + 1, low), np.where(open_ & ~less, middle, high)
    return low
