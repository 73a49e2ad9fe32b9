"""The tasks of ingest on one partition of users: gather, filter, split, and write the part files.

The ratings of a partition are schema.RAW_RATINGS sorted by user, then item. Ray sends these
functions to its workers, and their results, which are small, to the driver.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema
from recray.config import Settings, SplitSettings
from recray.data import feedback, split
from recray.data.filtered import ItemRules, drop_low, write_filtered
from recray.data.ids import GROUPS, group_of
from recray.data.row_order import distinct, order_by, run_starts
from recray.data.scan import ScannedRows
from recray.data.spill import (
    Rows,
    SpillFile,
    SpillFolder,
    merge_duplicates,
    slices,
)

ITEM_KEYS = pa.schema([("item", pa.int64()), ("key", pa.uint64()), ("row", pa.int64())])
ITEM_SPLITS = pa.schema([("row", pa.int64()), ("split", pa.int8())])
"""What partitions and groups of items exchange for a split of whole items."""
LOG_LINES = 1 << 48
"""Lines of the ratings log are counted from here on: it came after the source."""


@dataclass(frozen=True)
class PartitionCounts:
    """What is in a partition, and what a task took out of it.

    Args:
        rows: Its ratings.
        timed: Those whose time is known.
        first: The earliest of these times, in seconds; None where there is none.
        last: The latest.
        dropped: How many rows the task took out, by the reason: duplicates, or the name of the
            filter.
        overlap: Pairs that the source puts into more than one split.
    """

    rows: int
    timed: int
    first: int | None
    last: int | None
    dropped: Counter[str]
    overlap: int = 0

    @classmethod
    def of(cls, rows: Rows, dropped: Counter[str], overlap: int = 0) -> Self:
        """Count the ratings of a partition."""
        times = rows.timestamp[rows.timestamp != schema.UNKNOWN_TIME]
        first, last = (int(times.min()), int(times.max())) if len(times) else (None, None)
        return cls(len(rows.user), len(times), first, last, dropped, overlap)


def read_partition(spill: SpillFolder, partition: int) -> Rows:
    """The ratings of a partition in the version of the folder."""
    return Rows.of(spill.read(SpillFile.PARTITION, partition, spill.version))


def write_partition(
    spill: SpillFolder, partition: int, rows: Rows, filtered: Sequence[Rows] = ()
) -> None:
    """Write the ratings of a partition in the version of the folder, and those that filters drop
    from it beside what they have dropped from earlier versions.
    """
    write_filtered(spill, partition, filtered)
    spill.write(SpillFile.PARTITION, rows.table(), partition, spill.version)


def delete_partition(spill: SpillFolder, partition: int) -> None:
    """Remove the ratings of a partition in the version of the folder, once there is a later one."""
    spill.delete(SpillFile.PARTITION, partition, spill.version)


def gather(
    partition: int,
    *,
    spill: SpillFolder,
    scanned: list[ScannedRows],
    partitions: int,
    rules: ItemRules,
    settings: Settings,
    timed: bool,
) -> PartitionCounts:
    """Collect the rows of a partition from all scanned files and clean them: the one shuffle.

    Args:
        partition: Its number.
        spill: Where the files are.
        scanned: The files, in the order of the rows in the source.
        partitions: Number of partitions.
        rules: Which items stay.
        settings: Duplicates, the lowest rating, and whether the order of the source counts.
        timed: Whether the source has times.
    """
    dropped, filtered = Counter[str](), list[Rows]()
    drop = partial(drop_low, settings=settings.data, dropped=dropped, filtered=filtered)
    collect = partial(_collect, partition, partitions, spill, settings.tie_order == "file")
    given = collect([file for file in scanned if not file.feedback])
    given, others = rules.apply(given if timed else given.without_times())
    averaged = settings.data.merge_titles and settings.data.duplicates == "last"
    merged = merge_duplicates(given, "mean" if averaged else settings.data.duplicates)
    dropped["duplicates"] += len(given.user) - len(merged.user)
    rows = drop(merged, others)
    if log := [file for file in scanned if file.feedback]:
        logged, others = rules.apply(collect(log, first=LOG_LINES))
        latest = feedback.with_source(logged, given, settings.data.duplicates)
        high = drop(latest, others)
        rows, late = feedback.rerate(rows, high)
        merged_away = len(logged.user) - len(latest.user) + len(high.user) - len(late.user)
        dropped["duplicates"] += merged_away
        spill.write(SpillFile.LATE, late.table(), partition)
    write_partition(spill, partition, rows, filtered)
    return PartitionCounts.of(rows, dropped, _count_overlap(given))


def _collect(
    partition: int,
    partitions: int,
    spill: SpillFolder,
    numbered: bool,
    files: list[ScannedRows],
    first: int = 0,
) -> Rows:
    """The rows of a partition in these scanned files, in their order.

    Where they are numbered, from `first` on, runs and partitions change the numbers, but never
    which of a user's rows has the lower one.
    """
    tables = [schema.RAW_RATINGS.empty_table()]
    for file in files:
        begin, end = split.bytes_of(partition, partitions, file.offsets)
        tables.append(spill.read_slices(SpillFile.ROWS, file.fields, begin, end, *file.number))
    rows = Rows.of(pa.concat_tables(tables[1:] or tables))
    return rows._replace(line=np.arange(len(rows.user)) + first) if numbered else rows


def _count_overlap(ratings: Rows) -> int:
    """How many (user, item) pairs the source puts into more than one split."""
    if ratings.part is None or not len(ratings.user):
        return 0
    order = order_by(ratings.user, ratings.item)
    begins, part = run_starts(ratings.user[order], ratings.item[order]), ratings.part[order]
    return int((np.maximum.reduceat(part, begins) != np.minimum.reduceat(part, begins)).sum())


def count_items(partition: int, *, spill: SpillFolder) -> None:
    """Count the ratings of each item in a partition."""
    item, count = np.unique(read_partition(spill, partition).item, return_counts=True)
    spill.write(SpillFile.ITEM_COUNTS, pa.table({"raw": item, "count": count}), partition)


def drop_rare(
    partition: int, *, spill: SpillFolder, items: NDArray[np.int64], core: int
) -> PartitionCounts:
    """Drop the ratings of rare items, then users with too few ratings left.

    Args:
        partition: Its number.
        spill: Where it is; what is left of it is written as its next version.
        items: (N,) raw ids that stay, ascending.
        core: Ratings that a user must have.
    """
    before = read_partition(spill, partition)
    stays = np.isin(before.item, items)
    users, count = np.unique(before.user[stays], return_counts=True)
    stays &= np.isin(before.user, users[count >= core])
    rows = before.at(stays)
    write_partition(spill.later(), partition, rows, [before.at(~stays)])
    return PartitionCounts.of(rows, Counter(core=len(before.user) - len(rows.user)))


def count_times(
    partition: int, *, spill: SpillFolder, begin: int, end: int, width: int
) -> NDArray[np.int64]:
    """Count the rows of a partition in equal bins of time.

    Args:
        partition: Its number.
        spill: Where it is.
        begin: Where the first bin begins, in seconds.
        end: Rows from here on are left out, in seconds.
        width: Width of a bin, in seconds.
    """
    times = read_partition(spill, partition).timestamp
    times = times[(times >= begin) & (times < end)]
    return np.bincount((times - begin) // width, minlength=split.BINS)


def write_item_keys(partition: int, *, spill: SpillFolder, groups: int, seed: int) -> list[int]:
    """Write the hashes of a partition's rows by group of items, for a split of whole items.

    Args:
        partition: Its number.
        spill: Where it is.
        groups: Number of groups of items.
        seed: The split's seed.

    Returns:
        The byte where each group of items begins in the file, and its size.
    """
    rows = read_partition(spill, partition)
    group = split.slot_of(rows.item).astype(np.int64) * groups // split.SLOTS
    order = np.argsort(group, kind="stable")
    key = split.hash_ids(seed, rows.user, rows.item)
    keys = pa.table([rows.item[order], key[order], order], schema=ITEM_KEYS)
    begins = [0, *np.cumsum(np.bincount(group, minlength=groups)).tolist()]
    return spill.write_slices(SpillFile.ITEM_KEYS, ITEM_KEYS, slices(keys, begins), partition)


def split_items(
    group: int, *, spill: SpillFolder, offsets: list[list[int]], settings: SplitSettings
) -> list[int]:
    """Split whole items, from the keys that all partitions wrote.

    Args:
        group: The group of items.
        spill: Where the keys are.
        offsets: For each partition, where each group of items begins in its keys.
        settings: The fractions.

    Returns:
        The byte where the rows of each partition begin in the file, and its size.
    """
    tables = [
        spill.read_slices(SpillFile.ITEM_KEYS, ITEM_KEYS, own[group], own[group + 1], partition)
        for partition, own in enumerate(offsets)
    ]
    keys = pa.concat_tables(tables)
    which = split.assign_by_share(keys["item"].to_numpy(), keys["key"].to_numpy(), settings)
    decided = pa.table([keys["row"], which], schema=ITEM_SPLITS)
    begins = [0, *np.cumsum([len(table) for table in tables]).tolist()]
    of_partition = slices(decided, begins)
    return spill.write_slices(SpillFile.ITEM_SPLITS, ITEM_SPLITS, of_partition, group)


@dataclass(frozen=True)
class SplitCounts:
    """The users of a partition, by what their splits are.

    Args:
        rows: Their ratings.
        short: Users with too few ratings for a target of split.kind=next.
        groups: (3,) users that training knows, that validation adds, and the others.
        users: (4,) users with a rating in each of schema.PARTS.
    """

    rows: int
    short: int
    groups: NDArray[np.int64]
    users: NDArray[np.int64]

    @classmethod
    def of(cls, user: NDArray[np.int64], which: NDArray[np.int8], short: int) -> Self:
        """Count the users of a partition's rows, whose splits are decided."""
        _, counts = counts_by_split(user, which)
        groups = np.bincount(group_of(counts), minlength=GROUPS)
        return cls(len(user), short, groups, (counts > 0).sum(axis=1))


def split_partition(
    partition: int,
    *,
    spill: SpillFolder,
    settings: Settings,
    timed: bool,
    has_log: bool,
    cuts: tuple[int, int] | None = None,
    item_offsets: list[list[int]] | None = None,
) -> SplitCounts:
    """Decide the split of each row, and count ids by split.

    Args:
        partition: Its number.
        spill: Where it is.
        settings: The kind of split, fractions, seed and order.
        timed, has_log: Whether the source has times, and whether ratings came after it.
        cuts: As split.assign takes them.
        item_offsets: `per-item-random`: of each group of items, where each partition begins.
    """
    rows = read_partition(spill, partition)
    short = int((np.bincount(distinct(rows.user)[1]) <= split.SHORT).sum())
    if item_offsets is not None:
        which = _from_items(spill, partition, item_offsets, len(rows.user))
    elif rows.part is not None:
        which = split.within_given(rows.user, rows.item, rows.part, settings.split)
    else:
        times = rows.timestamp if timed else None
        which = split.assign(rows.user, rows.item, times, settings.split, cuts, rows.line)
    if has_log:
        rows, which = _with_late(spill, partition, rows, which)
    decided = pa.table({"split": which})
    if settings.is_ordered:
        user, item, _, time, _, line = rows
        place = split.places_in_order(user, item, time, settings.split.seed, line)
        decided = decided.append_column("place", [place])
    spill.write(SpillFile.SPLIT, decided, partition)
    raw, counts = counts_by_split(rows.item, which)
    spill.write(SpillFile.ITEMS, pa.table([raw, *counts], ["raw", *schema.PARTS]), partition)
    return SplitCounts.of(rows.user, which, short)


def _with_late(
    spill: SpillFolder, partition: int, rows: Rows, which: NDArray[np.int8]
) -> tuple[Rows, NDArray[np.int8]]:
    """The rows and their splits, with the new pairs of the ratings log, which train; the rows are
    written as the next version.
    """
    late = Rows.of(spill.read(SpillFile.LATE, partition))
    rows, which = feedback.append(rows, which, late, split.TRAIN)
    write_partition(spill.later(), partition, rows)
    return rows, which


def _from_items(
    spill: SpillFolder, partition: int, item_offsets: list[list[int]], rows: int
) -> NDArray[np.int8]:
    which = np.empty(rows, np.int8)
    for group, own in enumerate(item_offsets):
        begin, end = own[partition], own[partition + 1]
        table = spill.read_slices(SpillFile.ITEM_SPLITS, ITEM_SPLITS, begin, end, group)
        which[table["row"].to_numpy()] = table["split"].to_numpy()
    return which


def counts_by_split(
    ids: NDArray[np.int64], which: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) distinct ids, ascending, and the (4, N) rows of each in each of schema.PARTS."""
    raw, place = distinct(ids)
    cells = len(schema.PARTS) * len(raw)
    cell = which.astype(np.int64) * len(raw) + place
    return raw, np.bincount(cell, minlength=cells).reshape(len(schema.PARTS), len(raw))
