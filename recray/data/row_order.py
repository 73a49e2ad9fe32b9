"""The order of rows by several columns, and where runs of equal rows begin."""

# Shape letters: R = rows.

import numpy as np
from numpy.typing import NDArray

KEY_BITS = 64
"""Bits of the key that several columns are packed into for sorting."""
Integers = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.uint64]


def order_by(*columns: Integers) -> NDArray[np.int64]:
    """The stable order of rows by several columns, the first one first.

    The columns' ranges are packed into 64 bits, the last one's low bits left out if they do not
    fit; where that leaves rows undecided, np.lexsort decides.

    Args:
        columns: (R,) integers each.

    Returns:
        (R,) places, as np.lexsort(columns[::-1]) gives them.
    """
    if len(columns[0]) < 2:
        return np.arange(len(columns[0]))
    key, lost = _packed(columns)
    if key is None:
        return np.lexsort(columns[::-1])
    order = np.argsort(key)
    ordered = key[order]
    if not (ordered[1:] == ordered[:-1]).any():
        return order
    return np.lexsort(columns[::-1]) if lost else np.argsort(key, kind="stable")


def _packed(
    columns: tuple[Integers, ...],
) -> tuple[NDArray[np.uint64] | None, bool]:
    """One key for each row, None if only a part of the first columns would fit; and whether the
    last column lost bits.
    """
    key, free = np.zeros(len(columns[0]), np.uint64), KEY_BITS
    for place, column in enumerate(columns):
        offsets = _offsets(column)
        bits = int(offsets.max()).bit_length()
        if bits > free:
            if place < len(columns) - 1:
                return None, True
            kept = offsets >> np.uint64(bits - free) if free else np.zeros_like(offsets)
            return ((key << np.uint64(free)) | kept if free < KEY_BITS else kept), True
        key = (key << np.uint64(bits)) | offsets if bits < KEY_BITS else offsets
        free -= bits
    return key, False


def _offsets(column: Integers) -> NDArray[np.uint64]:
    """The column from 0 on, in the same order; the ranks of one that is sorted already."""
    steps = column[1:] != column[:-1]
    if (column[1:] >= column[:-1]).all():
        return np.concatenate([[0], np.cumsum(steps)]).astype(np.uint64)
    return column.astype(np.uint64) - np.asarray(column.min()).astype(np.uint64)


def run_starts(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run of equal rows begins; columns are sorted, and not empty."""
    differs = np.zeros(len(columns[0]) - 1, bool)
    for column in columns:
        differs |= column[1:] != column[:-1]
    return np.concatenate([[0], np.flatnonzero(differs) + 1])
