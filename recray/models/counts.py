"""Pairs of items in histories, counted on every worker and put together exactly.

A weight is a whole number of units of 1 / SCALE, so that sums do not depend on their order: one
worker and many count the same, to the digit. Counts are sparse: only pairs that occur are held.
"""

# Shape letters: R = ratings of this worker, I = items, N = pairs that occur, W = workers.

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Whole = NDArray[np.int64]

SCALE = 1 << 30
"""Units of a weight of 1: its rounding error is below 1e-9, and 8 billion such pairs still fit."""
BLOCK_PAIRS = 1 << 22
"""Pairs, over all workers, that are counted at once, so that memory does not grow with the data."""


class Group(Protocol):
    """The workers of a training, as far as counting needs them."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""

    @property
    def size(self) -> int:
        """Number of workers."""

    def sum(self, value: Tensor) -> Tensor:
        """Sum the tensor over all workers, in place; the result is the same on each."""


@dataclass(frozen=True)
class Alone:
    """A group of one worker."""

    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """The tensor itself."""
        return value


ALONE = Alone()


def in_units(weight: NDArray[np.float64]) -> Whole:
    """Weights as whole numbers of units, rounded to the nearest one."""
    units: Whole = np.rint(weight * SCALE).astype(np.int64)
    return units


def merged(key: Whole, count: Whole, group: Group) -> tuple[Whole, Whole]:
    """Sum counts over workers by their keys.

    Args:
        key: (N,) keys of this worker, each once.
        count: (N,) their counts.
        group: The workers.

    Returns:
        Keys of all workers, ascending and each once, and their summed counts: the same on each.
    """
    # Every worker writes its own place of a message that is zero elsewhere, and the sum is the
    # message of all: as many numbers as there are pairs, however many could occur.
    sizes = torch.zeros(group.size, dtype=torch.int64)
    sizes[group.rank] = len(key)
    ends = group.sum(sizes).cumsum(dim=0).tolist()
    message = torch.zeros(2, ends[-1], dtype=torch.int64)
    own = slice(ends[group.rank] - len(key), ends[group.rank])
    message[0, own], message[1, own] = torch.from_numpy(key), torch.from_numpy(count)
    every, counts = group.sum(message).numpy()
    order = np.argsort(every, kind="stable")
    return summed_by_key(every[order], counts[order])


def summed_by_key(key: Whole, count: Whole) -> tuple[Whole, Whole]:
    """Sum the counts of equal keys; (N,) keys, ascending, to those keys once and their sums."""
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], np.add.reduceat(count, first) if len(first) else count


class HistoryPairs:
    """Pairs of ratings of one user that are at most so many places apart.

    Args:
        indptr: (users + 1,) int64; user u has the items indptr[u]..indptr[u + 1] - 1, in order.
        item: (R,) int64 ids.
        items: Number of items I.
        group: The workers; each has other users.
    """

    def __init__(self, indptr: Tensor, item: Tensor, items: int, group: Group) -> None:
        self.item, self.items, self.group = item.numpy(), items, group
        counts = indptr.diff().numpy()
        self._end = np.repeat(indptr[1:].numpy(), counts)
        self._by_item = np.argsort(self.item, kind="stable")
        own = np.bincount(self.item, minlength=items)
        self._ends = np.concatenate([[0], own.cumsum()])
        self.counts: Whole = group.sum(torch.from_numpy(own.copy())).numpy()
        """(I,) ratings of each item, over all workers."""

    def blocks(self, lags: range, units: Whole) -> Iterator[tuple[Whole, Whole, Whole]]:
        """Yield the summed weights of pairs of items, a block of first items at a time.

        Args:
            lags: How many places the second of a pair comes after the first.
            units: (lags, left + 1) weights in units: by the place of the lag, and by how many
                ratings of the user come after the second one (the last column: so many or more).

        Yields:
            (N,) first items, ascending, (N,) second items, ascending in each first one, and (N,)
            sums of weights over all workers, in units.
        """
        edges, most = [0], max(BLOCK_PAIRS // len(lags), 1)
        begins = np.concatenate([[0], self.counts.cumsum()])
        while edges[-1] < self.items:
            within = np.searchsorted(begins, begins[edges[-1]] + most, side="right") - 1
            edges.append(max(int(within), edges[-1] + 1))
        for first, last in pairwise(edges):
            key, count = merged(*self._own(first, last, lags, units), self.group)
            yield key // self.items + first, key % self.items, count

    def _own(self, first: int, last: int, lags: range, units: Whole) -> tuple[Whole, Whole]:
        """This worker's sums of the pairs whose first item is first..last-1, by their keys."""
        place = self._by_item[self._ends[first] : self._ends[last]]
        other = place[:, None] + np.asarray(lags)
        left = self._end[place][:, None] - 1 - other
        row, lag = np.nonzero(left >= 0)
        cell = lag * units.shape[1] + np.minimum(left[row, lag], units.shape[1] - 1)
        pair = (self.item[place[row]] - first) * self.items + self.item[other[row, lag]]
        # Pair and weight in one number: numpy sorts plain numbers several times as fast as places.
        packed = pair * units.size + cell
        packed.sort()
        return summed_by_key(packed // units.size, units.reshape(-1)[packed % units.size])
