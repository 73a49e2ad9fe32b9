"""Normal equations of many rows at once: the ratings of each row as a matrix and a right side.

A row is a user or an item, and its ratings name rows of the other side. Rows of about one length
are padded to that length, so that batched products take the place of a loop over rows: on a CPU
what is gathered stays in the cache, and the same code fills a GPU.
"""

# Shape letters: R = rows that are solved, N = rows of the other side, D = vector length, B = rows
# of a block or group, L = ratings of its longest row, P = all ratings, with those that only pad.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from recray.models.objectives.preference import Graded

SHORT = 0.5
"""Rows with no more ratings than this part of D are grouped apart."""
ROW_BLOCK = 512
"""Rows that are solved at once, at most, on a CPU; each holds a (D, D) matrix."""
CPU_NUMBERS, GPU_NUMBERS = 1 << 18, 1 << 26
"""Numbers that are gathered at once, and half of what matrices hold that are solved at once: on a
CPU 1 MB of vectors and 2 MB of matrices, which a core's cache holds.
"""


def rows_at_once(dim: int, device: torch.device) -> int:
    """Rows of which the (D, D) matrices are held at once, an even number."""
    most = CPU_NUMBERS if device.type == "cpu" else GPU_NUMBERS
    return min(max(most // dim**2, 8) * 2, ROW_BLOCK if device.type == "cpu" else 1 << 14)


class Block(NamedTuple):
    """B rows of a group, each padded to L ratings.

    Args:
        first: Where its rows begin among those of the group.
        rows: How many they are.
        begin: Where its padded ratings begin.
        length: L.
        adds: Whether it holds more ratings of the row of the block before it: a row of too many
            comes in pieces.
    """

    first: int
    rows: int
    begin: int
    length: int
    adds: bool


class RowGroup(NamedTuple):
    """Rows that are solved at once, the longest first.

    Args:
        first: Where they begin among all rows.
        last: Where the next group begins.
        longest: Ratings of its longest row.
        blocks: What is gathered at once; rows without ratings are in none.
    """

    first: int
    last: int
    longest: int
    blocks: tuple[Block, ...]


class Equations(NamedTuple):
    """What the ratings of B rows add to their normal equations.

    Args:
        matrix: (B, D, D).
        right: (B, D).
    """

    matrix: Tensor
    right: Tensor


@dataclass(frozen=True)
class GroupedRows:
    """The ratings of R rows, grouped by length once for all epochs.

    Args:
        rows: (R,) int64 numbers of the rows, in the order of the groups.
        groups: Which of them are solved at once.
        places: (P,) rows of the other side; N pads.
        graded: Targets and weights of the (P,) ratings, 0 where they pad; None means 1.
        short: Groups of rows with so many ratings at most have no longer ones.
    """

    rows: Tensor
    groups: tuple[RowGroup, ...]
    places: Tensor
    graded: Graded | None
    short: int

    @classmethod
    def of(
        cls,
        indptr: Tensor,
        places: Tensor,
        others: int,
        dim: int,
        graded: Graded | None = None,
        members: Sequence[Tensor] | None = None,
    ) -> Self:
        """Group rows.

        Args:
            indptr: (R + 1,) int64; row r has the ratings indptr[r]..indptr[r + 1] - 1.
            places: (ratings,) int64 rows of the other side.
            others: How many these are, N.
            dim: D, which says how many rows are solved at once.
            graded: Targets and weights of the ratings; None means 1.
            members: (B,) int64 rows of each group; None: by length, short rows apart.
        """
        length_R = indptr.diff()
        most = max((CPU_NUMBERS if places.device.type == "cpu" else GPU_NUMBERS) // dim, 1)
        short = 0 if members is not None else min(int(dim * SHORT), most)  # none comes in pieces
        if members is None:
            members = _by_length(length_R, short, rows_at_once(dim, indptr.device))
        rows, groups, slots, begin, first = [], [], [], 0, 0
        for chosen in members:
            chosen = chosen[torch.argsort(length_R[chosen], descending=True, stable=True)]
            lengths = length_R[chosen].tolist()
            blocks = tuple(_blocks(lengths, begin, most))
            slots.append(_slots(indptr, chosen, blocks))
            begin += len(slots[-1])
            rows.append(chosen)
            groups.append(RowGroup(first, first + len(chosen), max(lengths[:1], default=0), blocks))
            first += len(chosen)
        slot, numbers = (torch.cat([indptr.new_zeros(0), *parts]) for parts in (slots, rows))
        kept = None
        if graded is not None:
            weight = None if graded.weight is None else _padded(graded.weight, slot, 0)
            kept = Graded(_padded(graded.target, slot, 0), weight)
        return cls(numbers, tuple(groups), _padded(places, slot, others), kept, short)

    def members(self, group: RowGroup) -> Tensor:
        """(B,) int64 numbers of the rows of a group."""
        return self.rows[group.first : group.last]

    def equations(self, group: RowGroup, table: Tensor) -> Equations:
        """What the ratings of a group add to the normal equations of its rows.

        Args:
            group: One of `groups`.
            table: (N + 1, D) rows of the other side, the last one zeros.
        """
        rows, dim = group.last - group.first, table.shape[1]
        matrix, right = table.new_empty(rows, dim, dim), table.new_empty(rows, dim)
        done = 0
        for block in group.blocks:
            done = block.first + block.rows
            own = matrix[block.first : done]
            vectors, graded = self.gathered(block, table)
            weighted = vectors
            if graded is not None and graded.weight is not None:
                weighted = vectors * graded.weight[:, :, None]
            if graded is None:
                sums = vectors.sum(dim=1)
            else:
                sums = torch.bmm(graded.target[:, None], weighted)[:, 0]
            if block.adds:
                own.baddbmm_(weighted.mT, vectors)
                right[block.first : done] += sums
            else:
                torch.bmm(weighted.mT, vectors, out=own)
                right[block.first : done] = sums
        matrix[done:], right[done:] = 0, 0
        return Equations(matrix, right)

    def gathered(self, block: Block, table: Tensor) -> tuple[Tensor, Graded | None]:
        """(B, L, D) vectors of the ratings of a block, and their (B, L) targets and weights."""
        shape = block.rows, block.length
        part = slice(block.begin, block.begin + block.rows * block.length)
        vectors = table.index_select(0, self.places[part]).view(*shape, -1)
        if self.graded is None:
            return vectors, None
        weight = None if self.graded.weight is None else self.graded.weight[part].view(shape)
        return vectors, Graded(self.graded.target[part].view(shape), weight)


def _by_length(length_R: Tensor, short: int, size: int) -> list[Tensor]:
    """Groups of rows of about one length; short ones apart from the others."""
    order = torch.argsort(length_R, descending=True, stable=True)
    long = int((length_R > short).sum())
    return [part for half in order.tensor_split([long]) for part in half.split(size) if len(part)]


def _blocks(lengths: list[int], begin: int, most: int) -> Iterator[Block]:
    """Cut the rows of a group into blocks of at most so many ratings; lengths are descending."""
    first = 0
    while first < len(lengths) and lengths[first]:
        length = lengths[first]
        rows = min(max(most // length, 1), len(lengths) - first)
        while not lengths[first + rows - 1]:  # rows without ratings are at the end, in no block
            rows -= 1
        for done in range(0, length, most if rows == 1 else length):
            piece = min(most, length - done) if rows == 1 else length
            yield Block(first, rows, begin, piece, done > 0)
            begin += rows * piece
        first += rows


def _slots(indptr: Tensor, chosen: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """(P,) int64 which rating lies in each padded place of a group; -1 pads."""
    whole = [b for b in blocks if not b.adds]
    if not whole:
        return indptr.new_zeros(0)
    rows = sum(b.rows for b in whole)
    ends = [*(b.begin for b in whole[1:]), blocks[-1].begin + blocks[-1].rows * blocks[-1].length]
    sizes = [(end - b.begin) // b.rows for b, end in zip(whole, ends, strict=True)]
    of_block = torch.tensor([b.rows for b in whole], device=indptr.device)
    padded = torch.repeat_interleave(torch.tensor(sizes, device=indptr.device), of_block)
    begins = indptr[chosen[:rows]]
    ends_R = indptr[chosen[:rows] + 1]
    before = padded.cumsum(dim=0) - padded
    slot = torch.arange(int(padded.sum()), device=indptr.device)
    slot += torch.repeat_interleave(begins - before, padded)
    return slot.masked_fill_(slot >= torch.repeat_interleave(ends_R, padded), -1)


def _padded(value: Tensor, slot: Tensor, pad: int) -> Tensor:
    """The values at (P,) places, and `pad` at -1; int64 numbers become int32 where they fit."""
    if not value.is_floating_point() and pad < 1 << 31:
        value = value.int()
    return torch.cat([value, value.new_full((1,), pad)])[slot]
