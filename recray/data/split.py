"""Splits, partitions and the order of rows, as pure functions of raw ids and a seed.

They are decided from a stable hash, never from the order or the place of rows, so that any number
of workers, blocks and files gives the same split. All functions expect every row of a user.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from recray.config import SplitSettings
from recray.data.row_order import order_by, run_starts
from recray.errors import RecrayError
from recray.schema import UNKNOWN_TIME

TRAIN, VALID, TEST, FOLD_IN = 0, 1, 2, 3
"""Codes of schema.PARTS."""
SLOTS = 256
"""Hash slots that users (or items) fall into; a partition is a run of them."""
SHORT = 2
"""Rows of a user with too few for a history, a row that validates and one that tests."""
BINS = 4096
"""Bins of time that are counted at once on the way to a cut."""

USER_SALT = 0x75736572
"""Salt of the hash that chooses whole users ("user" in ASCII). Without it, seed 0 gives the hash of
slot_of, and all users with the lowest hashes lie in one partition."""

Ids = NDArray[np.int64]
Splits = NDArray[np.int8]
"""(R,) code of the split that each row belongs to."""
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


def slot_of(raw: Ids) -> NDArray[np.uint8]:
    """Which of the 256 slots each user (or item) falls into; a partition is a run of slots."""
    return (hash_ids(0, raw) >> _U64(56)).astype(np.uint8)


def bytes_of(partition: int, partitions: int, offsets: Sequence[int]) -> tuple[int, int]:
    """Where the slots of a partition begin and end in a file.

    Args:
        partition: Its number.
        partitions: How many there are.
        offsets: The byte where each slot begins in the file, and where the last one ends.
    """
    width = SLOTS // partitions
    return offsets[partition * width], offsets[(partition + 1) * width]


def partitions_for(rows: int) -> int:
    """Number of partitions, and so of part files; it follows from the row count alone."""
    partitions = 8
    while partitions < SLOTS and partitions * 500_000 < rows:
        partitions *= 2
    return partitions


def assign(
    user: Ids,
    item: Ids,
    timestamp: Ids | None,
    settings: SplitSettings,
    cuts: tuple[int, int] | None = None,
    line: Ids | None = None,
) -> Splits:
    """Which split each rating belongs to: TRAIN, VALID, TEST or FOLD_IN.

    Args:
        user: (R,) raw ids; all rows of a user are here, no (user, item) pair twice.
        item: (R,) raw ids.
        timestamp: (R,) seconds, UNKNOWN_TIME where unknown; None where the data has no times.
        settings: The kind, fractions and seed. `per-item-random` looks at whole items, which are
            not here; see assign_by_share.
        cuts: For `temporal`: where valid and test begin, in seconds; `next`: where targets do.
        line: (R,) places in the source, which order rows of one user at one time; None: a hash
            of their ids does.

    Raises:
        RecrayError: The kind needs time and there is none.
    """
    key = hash_ids(settings.seed, user, item)
    match settings.kind:
        case "random":
            return _lowest(_share(key), settings.test, settings.valid)
        case "kfold":
            return _by_fold(key, hash_ids(settings.seed + 1, user, item), settings)
        case "per-user-random":
            return assign_by_share(user, key, settings)
        case "held-out-users":
            return _by_user(user, key, settings)
        case "per-item-random":
            raise ValueError("per-item-random is decided item by item, by assign_by_share")
        case "given":
            raise ValueError("given is decided by the source, see within_given")
        case "next":
            return _next(user, _tie(key, line), timestamp, settings, cuts)
    return _by_time(user, _tie(key, line), timestamp, settings, cuts)


def assign_by_share(group: Ids, key: NDArray[np.uint64], settings: SplitSettings) -> Splits:
    """Split each user (or item) by itself: the fractions of its rows, those with the lowest keys.

    Args:
        group: (R,) raw ids of users or items; all rows of each are here.
        key: (R,) hashes of the rows.
        settings: The fractions.
    """
    rank, count = _rank_in_group(group, key)
    return _by_share(rank, count, settings)


def cut_at(
    count: Callable[[int, int, int], NDArray[np.int64]], first: int, last: int, allowed: float
) -> int:
    """The earliest time such that at most so many rows are at or after it.

    Args:
        count: count(begin, end, width) gives the rows in bins of that width from begin on, rows
            from end on left out.
        first: The earliest time of a row, in seconds.
        last: The latest.
        allowed: Rows; fewer than there are.

    Returns:
        A time in first + 1..last + 1; all rows of one second are on one side of it.
    """
    # More rows than allowed are at or after `low`; `after` rows, not too many, from `high` on.
    low, high, after = first, last + 1, 0
    while high - low > 1:
        width = -(-(high - low) // BINS)
        counts = np.asarray(count(low, high, width))
        from_edge = np.append(counts[::-1].cumsum()[::-1], 0) + after
        edge = int(np.flatnonzero(from_edge <= allowed)[0])
        after = int(from_edge[edge])
        low, high = low + (edge - 1) * width, min(low + edge * width, high)
    return high


def _share(key: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1)."""
    return (key >> _U64(11)).astype(np.float64) * 2.0**-53


def _lowest(
    value: NDArray[np.float64] | Ids,
    test: float | NDArray[np.float64],
    valid: float | NDArray[np.float64],
) -> Splits:
    """Rows with a value below `test` to test, those less than `valid` above it to valid."""
    split = np.full(len(value), TRAIN, np.int8)
    split[value < test + valid] = VALID
    split[value < test] = TEST
    return split


def _by_fold(key: NDArray[np.uint64], again: NDArray[np.uint64], settings: SplitSettings) -> Splits:
    split = np.full(len(key), TRAIN, np.int8)
    split[_share(again) < settings.valid] = VALID
    split[(_share(key) * settings.folds).astype(np.int64) == settings.fold] = TEST
    return split


def within_given(user: Ids, item: Ids, part: Splits, settings: SplitSettings) -> Splits:
    """Which split each rating belongs to where the source says TRAIN or TEST.

    Args:
        user: (R,) raw ids.
        item: (R,) raw ids.
        part: (R,) what the source says.
        settings: valid is the share of the training rows that validate, and the seed.
    """
    share = _share(hash_ids(settings.seed, user, item))
    return np.where((part == TRAIN) & (share < settings.valid), VALID, part).astype(np.int8)


def _by_user(user: Ids, key: NDArray[np.uint64], settings: SplitSettings) -> Splits:
    """Whole users to test and valid; of each, the known rows to FOLD_IN.

    A user with too few rows to know some and to ask for others trains.
    """
    share = _share(hash_ids(settings.seed, np.full_like(user, USER_SALT), user))
    rank, count = _rank_in_group(user, key)
    if isinstance(settings.fold_in, int):
        known = np.full(len(user), settings.fold_in)
    else:
        known = np.clip(np.floor(count * settings.fold_in + 0.5), 1, np.maximum(count - 1, 1))
    split = _lowest(share, settings.test, settings.valid)
    split[(split != TRAIN) & (rank < known)] = FOLD_IN
    split[known >= count] = TRAIN
    return split


def _by_time(
    user: Ids,
    key: NDArray[np.uint64],
    timestamp: Ids | None,
    settings: SplitSettings,
    cuts: tuple[int, int] | None,
) -> Splits:
    """The kinds that need time; of a user's rows at one time the lowest key is the latest."""
    if timestamp is None:
        raise RecrayError(
            f"split.kind={settings.kind} needs timestamps, and this data has none; "
            "use random, per-user-random, per-item-random or kfold"
        )
    if settings.kind != "temporal":
        rank, count = _rank_in_group(user, key, ~timestamp)  # the latest first, the unknown last
        by_rank = _by_share if settings.kind == "per-user-ratio" else _latest
        split = by_rank(rank, count, settings)
        # What may be the oldest of a user's ratings is no test of what comes after the others.
        split[timestamp == UNKNOWN_TIME] = TRAIN
        return split
    if cuts is None:
        raise ValueError("temporal needs the cuts of the whole data")
    split = np.full(len(timestamp), TRAIN, np.int8)
    for begin, share, code in ((cuts[0], settings.valid, VALID), (cuts[1], settings.test, TEST)):
        if share > 0:
            split[timestamp >= begin] = code
    return split


def _tie(key: NDArray[np.uint64], line: Ids | None) -> NDArray[np.uint64]:
    """(R,) keys of which the lowest is the latest of a user's rows at one time."""
    return key if line is None else ~line.astype(_U64)


def _next(
    user: Ids,
    key: NDArray[np.uint64],
    timestamp: Ids | None,
    settings: SplitSettings,
    cuts: tuple[int, int] | None,
) -> Splits:
    """Each user's last row to test, the one before to valid; after a cut only.

    A user with one or two rows has no target, and a row of unknown time is none. What is known
    after a cut is never trained on, so what a model learns ends before it.
    """
    time = np.full(len(user), UNKNOWN_TIME) if timestamp is None else timestamp
    rank, count = _rank_in_group(user, key, ~time)
    after = np.ones(len(user), bool) if cuts is None else time >= cuts[0]
    split = np.full(len(user), TRAIN if cuts is None else FOLD_IN, np.int8)
    split[~after] = TRAIN
    targets = after & (count > SHORT)
    split[targets & (rank == 0)] = TEST
    if settings.valid > 0:
        split[targets & (rank == 1)] = VALID
    if timestamp is not None:
        split[timestamp == UNKNOWN_TIME] = TRAIN
    return split


def places_in_order(
    user: Ids, item: Ids, timestamp: Ids, seed: int, line: Ids | None
) -> NDArray[np.int32]:
    """Each row's place among the rows of its user, from 0: by time, then by line.

    Args:
        user: (R,) raw ids; all rows of a user are here.
        item: (R,) raw ids.
        timestamp: (R,) seconds; an unknown time stands first.
        seed: The split's seed; without lines a hash decides, as it does in `assign`.
        line: (R,) places in the source.
    """
    tie = _tie(hash_ids(seed, user, item), line)
    rank, count = _rank_in_group(user, tie, ~timestamp)
    return (count - 1 - rank).astype(np.int32)


def _rank_in_group(
    group: Ids, tie: NDArray[np.uint64], first: Ids | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's place among the rows of its user (or item), and how many those are."""
    rank, counts = np.empty(len(group), np.int64), np.empty(len(group), np.int64)
    if not len(group):
        return rank, counts
    order = order_by(group, tie) if first is None else order_by(group, first, tie)
    begins = run_starts(group[order])
    count = np.diff(begins, append=len(group))
    rank[order] = np.arange(len(group)) - np.repeat(begins, count)
    counts[order] = np.repeat(count, count)
    return rank, counts


def _by_share(rank: NDArray[np.int64], count: NDArray[np.int64], settings: SplitSettings) -> Splits:
    """The fraction of each group's rows, rounded; at least one row of each group trains."""
    test = np.minimum(np.floor(count * settings.test + 0.5), count - 1)
    valid = np.minimum(np.floor(count * settings.valid + 0.5), count - 1 - test)
    return _lowest(rank, test, valid)


def _latest(rank: NDArray[np.int64], count: NDArray[np.int64], settings: SplitSettings) -> Splits:
    """Each user's latest row to test, the one before to valid; one row always trains."""
    split = np.full(len(rank), TRAIN, np.int8)
    split[(rank == 0) & (count >= 2)] = TEST
    if settings.valid > 0:
        split[(rank == 1) & (count >= 3)] = VALID
    return split
