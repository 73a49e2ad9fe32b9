"""The order of rows by several columns, runs of equal rows, and distinct values."""

# Shape letters: R = rows.

import numpy as np
from numpy.typing import NDArray

KEY_BITS = 64
"""Bits of the key that several columns and the row's number are packed into for sorting."""
TABLE_SHARE = 8
"""Values up to so many times the number of rows are counted in a table, larger ones are sorted."""
Integers = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.uint64]


def order_by(*columns: Integers) -> NDArray[np.int64]:
    """The stable order of rows by several columns, the first one first.

    The columns' ranges and the row's number are packed into 64 bits, which sort several times as
    fast as places do. Columns that do not fit lose their low bits; np.lexsort decides between rows
    that are equal then.

    Args:
        columns: (R,) integers each.

    Returns:
        (R,) places, as np.lexsort(columns[::-1]) gives them.
    """
    rows = len(columns[0])
    if rows < 2:
        return np.arange(rows)
    bits = np.uint64((rows - 1).bit_length())
    key, lost = _packed(columns, KEY_BITS - int(bits))
    key <<= bits
    key |= np.arange(rows, dtype=np.uint64)
    key.sort()
    order = (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    if lost:
        key >>= bits
        same = key[1:] == key[:-1]
        if same.any():
            undecided = np.flatnonzero(np.append(same, False) | np.append(False, same))
            places = np.sort(order[undecided])
            order[undecided] = places[np.lexsort([column[places] for column in columns[::-1]])]
    return order


def _packed(columns: tuple[Integers, ...], bits: int) -> tuple[NDArray[np.uint64], bool]:
    """One key of so many bits for each row, and whether some columns lost bits."""
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        offsets = _offsets(column)
        needed = int(offsets.max()).bit_length()
        kept = min(needed, bits)
        key <<= np.uint64(kept)
        if kept:
            key |= offsets >> np.uint64(needed - kept)
        bits -= kept
        if kept < needed:
            return key, True
    return key, False


def _offsets(column: Integers) -> NDArray[np.uint64]:
    """The column from 0 on, in the same order; the ranks of one that is sorted already."""
    if is_sorted(column):
        steps = column[1:] != column[:-1]
        return np.concatenate([[0], np.cumsum(steps)]).astype(np.uint64)
    return column.astype(np.uint64) - np.asarray(column.min()).astype(np.uint64)


def is_sorted(column: Integers) -> bool:
    """Whether no value is below the one before it."""
    return bool((column[1:] >= column[:-1]).all())


def run_starts(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run of equal rows begins; columns are sorted, and not empty."""
    differs = np.zeros(len(columns[0]) - 1, bool)
    for column in columns:
        differs |= column[1:] != column[:-1]
    return np.concatenate([[0], np.flatnonzero(differs) + 1])


def distinct(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As np.unique(ids, return_inverse=True), faster where ids are sorted or small.

    Args:
        ids: (R,) values, none below 0.

    Returns:
        (N,) distinct values, ascending; and (R,) the place of each row's value among them.
    """
    if not len(ids):
        return ids, np.zeros(0, np.int64)
    if is_sorted(ids):
        begins = run_starts(ids)
        return ids[begins], np.repeat(np.arange(len(begins)), np.diff(begins, append=len(ids)))
    most = int(ids.max())
    if most <= TABLE_SHARE * len(ids):
        there = np.zeros(most + 1, bool)
        there[ids] = True
        return np.flatnonzero(there), (np.cumsum(there) - 1)[ids]
    order = order_by(ids)
    place = np.empty(len(ids), np.int64)
    found, place[order] = distinct(ids[order])
    return found, place
