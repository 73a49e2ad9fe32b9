"""Splits and user buckets as pure functions of raw ids and a seed.

They are decided from a stable hash, never from the order or the place of rows, so that any number
of workers, blocks and files gives the same split. All functions expect every row of a user.
"""

import numpy as np
from numpy.typing import NDArray

from recray.config import SplitSettings
from recray.errors import RecrayError

TRAIN, VALID, TEST = 0, 1, 2
SLOTS = 256

Ids = NDArray[np.int64]
_U64 = np.uint64


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U64(27))) * _U64(0x94D049BB133111EB)
    return value ^ (value >> _U64(31))


def hash_ids(seed: int, *ids: Ids) -> NDArray[np.uint64]:
    """A stable 64-bit hash of a seed and one or more id columns, row by row."""
    state = _mix(np.full(len(ids[0]), seed, _U64) + _U64(0x9E3779B97F4A7C15))
    for column in ids:
        state = _mix(state + _U64(0x9E3779B97F4A7C15) + column.astype(_U64))
    return state


def user_slot(raw_user: Ids) -> NDArray[np.uint8]:
    """Which of the 256 slots each user falls into; a bucket is a run of slots."""
    return (hash_ids(0, raw_user) >> _U64(56)).astype(np.uint8)


def buckets_for(rows: int) -> int:
    """Number of user buckets, and so of part files: follows from the row count alone."""
    wanted = 8
    while wanted < SLOTS and wanted * 500_000 < rows:
        wanted *= 2
    return wanted


def assign(
    user: Ids, item: Ids, timestamp: Ids | None, settings: SplitSettings
) -> NDArray[np.int8]:
    """Which split each rating belongs to: TRAIN, VALID or TEST.

    Args:
        user: (R,) raw ids; all rows of a user are here, no (user, item) pair twice.
        item: (R,) raw ids.
        timestamp: (R,) seconds; None where unknown.
        settings: The kind, fractions and seed.

    Raises:
        RecrayError: The kind needs time and there is none.
    """
    key = hash_ids(settings.seed, user, item)
    if settings.kind == "random":
        return _by_threshold(key, settings)
    if settings.kind == "per-user-random":
        rank, count = _rank_in_user(user, key)
        return _by_share(rank, count, settings)
    if timestamp is None:
        raise RecrayError(
            f"split.kind={settings.kind} needs timestamps, and this data has none; "
            "use random or per-user-random"
        )
    rank, count = _rank_in_user(user, key, -timestamp)
    return _latest(rank, count, settings)


def _by_threshold(key: NDArray[np.uint64], settings: SplitSettings) -> NDArray[np.int8]:
    share = (key >> _U64(11)) * 2.0**-53
    split = np.full(len(key), TRAIN, np.int8)
    split[share < settings.test + settings.valid] = VALID
    split[share < settings.test] = TEST
    return split


def _rank_in_user(
    user: Ids, tie: NDArray[np.uint64], first: Ids | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's place among its user's rows, and how many rows the user has."""
    order = np.lexsort((tie, user) if first is None else (tie, first, user))
    _, start, inverse, count = np.unique(
        user[order], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - start[inverse]
    counts = np.empty(len(user), np.int64)
    counts[order] = count[inverse]
    return rank, counts


def _by_share(
    rank: NDArray[np.int64], count: NDArray[np.int64], settings: SplitSettings
) -> NDArray[np.int8]:
    """The fraction of each user's rows, rounded; at least one row of each user trains."""
    test = np.minimum(np.floor(count * settings.test + 0.5), count - 1)
    valid = np.minimum(np.floor(count * settings.valid + 0.5), count - 1 - test)
    split = np.full(len(rank), TRAIN, np.int8)
    split[rank < test + valid] = VALID
    split[rank < test] = TEST
    return split


def _latest(
    rank: NDArray[np.int64], count: NDArray[np.int64], settings: SplitSettings
) -> NDArray[np.int8]:
    """Each user's latest row to test, the one before to valid; one row always trains."""
    split = np.full(len(rank), TRAIN, np.int8)
    split[(rank == 0) & (count >= 2)] = TEST
    if settings.valid > 0:
        split[(rank == 1) & (count >= 3)] = VALID
    return split
