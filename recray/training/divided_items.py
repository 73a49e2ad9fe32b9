"""Solves items over workers: each sums the equations of its share, and solves these alone.

Every worker has ratings of every item. Its part of the normal equations of an item goes to the one
worker that solves the item, which adds the parts in the order of the workers: so the digits do not
depend on who answered first, as they may in an all-reduce.
"""

# Shape letters: I = items, W = workers, D = vector length, C = items of a worker in a chunk (even),
# F = numbers that stand for two items: D (D + 1) of their matrices and 2 D right sides.

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recray.models.objectives.normal_equations import Equations, GroupedRows, rows_at_once
from recray.models.objectives.preference import Graded
from recray.models.objectives.row_solver import Priors, Spectrum, solve_equations
from recray.training.shard import Workers

Solve = Callable[[Equations, Tensor], Tensor]
"""From the summed equations of (C,) items, and which these are, to their (C, D) rows."""


class Chunk(NamedTuple):
    """Items that are exchanged at once.

    Args:
        items: (W, C) int64 which items each worker solves; some occur twice, to fill the rows.
        places: (W, C) where they are among the rows of their group.
    """

    items: Tensor
    places: Tensor


class _Pending(NamedTuple):
    """A chunk under way: `received` is there after `wait`; `sent` must live until then."""

    chunk: Chunk
    wait: Callable[[], object]
    received: Tensor
    sent: Tensor


def chunk_sizes(items: int, workers: int, dim: int, device: torch.device) -> list[int]:
    """C of each chunk."""
    most, sizes = rows_at_once(dim, device), []
    while items > 0:
        each = -(-items // workers)
        sizes.append(min(each + each % 2, most))
        items -= sizes[-1] * workers
    return sizes


@dataclass(frozen=True)
class DividedItems:
    """The ratings of all items that this worker has, and which items it solves.

    Args:
        known: The ratings; a group holds the items of a chunk.
        chunks: One for each group.
        workers: The group.
    """

    known: GroupedRows
    chunks: tuple[Chunk, ...]
    workers: Workers

    @classmethod
    def of(
        cls,
        indptr: Tensor,
        users: Tensor,
        table: tuple[int, int],
        graded: Graded | None,
        counts: Tensor,
        workers: Workers,
    ) -> "DividedItems":
        """Divide the items.

        Args:
            indptr: (I + 1,) int64; item i has the ratings indptr[i]..indptr[i + 1] - 1 here.
            users: (ratings,) int64 this worker's users who rated.
            table: Number of these users, and D.
            graded: Targets and weights of the ratings; None means 1.
            counts: (I,) ratings of each item on all workers; the same on each.
            workers: The group.
        """
        order, chunks, groups = torch.argsort(counts, descending=True, stable=True), [], []
        first = 0
        for size in chunk_sizes(len(counts), workers.size, table[1], users.device):
            members = order[first : first + size * workers.size]
            first += len(members)
            groups.append(members)
            # Neighbours in the order have about as many ratings, so each worker has as much to do.
            slots = torch.arange(size * workers.size, device=order.device) % len(members)
            chunks.append(members[slots].view(size, workers.size).T.contiguous())
        known = GroupedRows.of(indptr, users, *table, graded, groups)
        found = []
        for group, items in zip(known.groups, chunks, strict=True):
            place = torch.empty_like(order)
            place[known.members(group)] = torch.arange(group.last - group.first).to(place.device)
            found.append(Chunk(items, place[items]))
        return cls(known, tuple(found), workers)

    def solve(
        self, fixed: Tensor, spectrum: Spectrum, priors: Priors, old: Tensor, steps: int | None
    ) -> Tensor:
        """The (I, D) vectors of all items, the same on each worker.

        Args:
            fixed: (N, D) vectors of this worker's users.
            spectrum: Of the Gram matrix of all users; the same on each worker.
            priors: What the items are solved with beside their ratings.
            old: (I, D) vectors that conjugate gradients begin with, if their steps are counted.
            steps: How many steps; None solves exactly.
        """

        def solved(given: Equations, own: Tensor) -> Tensor:
            start = None if steps is None else old[own] @ spectrum.basis
            return solve_equations(given, priors.at(own), start, steps) @ spectrum.basis.T

        return self.each(spectrum.table(fixed), solved)

    def each(self, table: Tensor, solve: Solve) -> Tensor:
        """The (I, D) rows of all items, the same on each worker.

        The exchange of a chunk goes on while the equations of the next one are built.

        Args:
            table: (N + 1, D) rows of this worker's users, the last one zeros.
            solve: Gives the rows of this worker's items.
        """
        solved, pending = [], None
        for group, chunk in zip(self.known.groups, self.chunks, strict=True):
            sent = pack(self.known.equations(group, table), chunk.places)
            begun = _Pending(chunk, *self.workers.begin_exchange(sent), sent)
            if pending is not None:
                solved.append(self._finish(pending, solve))
            pending = begun
        if pending is not None:
            solved.append(self._finish(pending, solve))
        wait, gathered = self.workers.begin_gather(torch.cat(solved))
        wait()
        items = torch.cat([chunk.items for chunk in self.chunks], dim=1)
        rows = table.new_empty(len(self.known.rows), gathered.shape[2])
        return rows.index_copy_(0, items.flatten(), gathered.flatten(0, 1))

    def _finish(self, pending: _Pending, solve: Solve) -> Tensor:
        """The (C, D) rows of this worker's items of a chunk."""
        pending.wait()
        total = pending.received[0]
        for other in pending.received[1:]:
            total += other
        return solve(unpack(total), pending.chunk.items[self.workers.rank])


def pack(equations: Equations, places: Tensor) -> Tensor:
    """(W, C / 2, F) the equations at (W, C) places, without what symmetry says twice.

    Two matrices share a square: the lower triangle of one, and the upper one of the other.
    """
    dim = equations.right.shape[1]
    one, two = places.chunk(2, dim=1)
    packed = equations.right.new_empty(*one.shape, dim * (dim + 3))
    square, diagonal, right = packed.split([dim * dim, dim, 2 * dim], dim=-1)
    first, second = equations.matrix[one], equations.matrix[two]
    square.unflatten(-1, (dim, dim)).copy_(torch.where(_lower(first), first, second))
    diagonal.copy_(second.diagonal(dim1=-2, dim2=-1))
    right.unflatten(-1, (2, dim)).copy_(equations.right[torch.stack([one, two], dim=-1)])
    return packed


def unpack(packed: Tensor) -> Equations:
    """The C equations of (C / 2, F) packed ones."""
    dim = _dim_of(packed.shape[-1])
    square, diagonal, right = packed.split([dim * dim, dim, 2 * dim], dim=-1)
    square = square.unflatten(-1, (dim, dim))
    lower = _lower(square)
    mirrored = square.mT
    halves = torch.where(lower, square, mirrored), torch.where(lower, mirrored, square)
    matrix = torch.cat(halves)
    matrix[len(packed) :].diagonal(dim1=1, dim2=2).copy_(diagonal)
    return Equations(matrix, right.unflatten(-1, (2, dim)).transpose(0, 1).flatten(0, 1))


def _lower(matrix: Tensor) -> Tensor:
    return torch.ones_like(matrix[(0,) * (matrix.ndim - 2)], dtype=torch.bool).tril()


def _dim_of(numbers: int) -> int:
    """D of D (D + 3) numbers."""
    return math.isqrt(9 + 4 * numbers) // 2 - 1  # (2 D + 3)^2 is 9 + 4 D (D + 3)
