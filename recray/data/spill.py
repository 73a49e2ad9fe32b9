"""The files between the tasks of ingest, the ratings in them, and how these are sorted and cleaned.

A spill file is an uncompressed Arrow file, which a reader on the same machine maps into memory.
"""

# Shape letters: R = rows.

from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema
from recray.storage import Folder, is_uri

KEY_BITS = 64
"""Bits of the key that several columns are packed into for sorting."""
Integers = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.uint64]
Index = NDArray[np.bool_] | NDArray[np.int64]


class SpillFile(Enum):
    """The kinds of spill files; each kind has one writer.

    The comment says who writes it, what its number counts, and who reads it.
    """

    ROWS = "rows"  # scan, by file range and chunk: parsed ratings by slot; read by gather
    TEXTS = "texts"  # scan, by file range: text ids and their hashes; read by the driver
    PARTITION = "partition"  # gather, core, split, by partition: its ratings; read by what follows
    LATE = "late"  # gather, by partition: new pairs of the ratings log; read by split
    ITEM_COUNTS = "item-counts"  # core, by partition: ratings of each item; read by the driver
    ITEM_KEYS = "item-keys"  # split, by partition: rows by group of items; read by split_items
    ITEM_SPLITS = "item-splits"  # split_items, by group of items: decided splits; read by split
    SPLIT = "split"  # split, by partition: the split of each row; read by encode
    USERS = "users"  # split, by partition: ratings of each user by split; read by the driver
    ITEMS = "items"  # split, by partition: ratings of each item by split; read by the driver


@dataclass(frozen=True)
class SpillFolder:
    """Where the tasks of one ingest leave files for each other."""

    folder: Folder

    def write(self, kind: SpillFile, table: pa.Table, *number: int | str) -> None:
        """Write a file of that kind and number."""
        write_arrow(self.folder, _file_name(kind, number), table)

    def read(
        self, kind: SpillFile, *number: int | str, begin: int = 0, end: int | None = None
    ) -> pa.Table:
        """Rows begin..end-1 of a file of that kind and number."""
        return read_arrow(self.folder, _file_name(kind, number), begin, end)

    def exists(self, kind: SpillFile, *number: int | str) -> bool:
        """Whether a file of that kind and number was written."""
        return self.folder.exists(_file_name(kind, number))


def _file_name(kind: SpillFile, number: tuple[int | str, ...]) -> str:
    return f"{'-'.join([kind.value, *map(str, number)])}.arrow"


def write_arrow(folder: Folder, name: str, table: pa.Table) -> None:
    """Write an Arrow file without waiting for the disk: only the run that wrote it reads it."""
    with folder.write_stream(name) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(folder: Folder, name: str, begin: int = 0, end: int | None = None) -> pa.Table:
    """Rows begin..end-1 of an Arrow file; on a local disk only their pages are read."""
    if is_uri(folder.path):
        table = pa.ipc.open_file(pa.BufferReader(folder.read_bytes(name))).read_all()
    else:
        # The table keeps the mapped memory alive after the file is closed.
        with closing(pa.memory_map(f"{folder.path}/{name}")) as stream:
            table = pa.ipc.open_file(stream).read_all()
    return table.slice(begin, None if end is None else end - begin)


class Rows(NamedTuple):
    """Ratings as columns by the keys of raw ids: (R,) each; timestamp is 0 where unknown.

    `part` is the split that the source itself says a row belongs to, None where it says nothing.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]
    part: NDArray[np.int8] | None = None

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        """Take the columns of a table of schema.RAW_RATINGS, with or without `part`."""
        user, item, rating = (table[n].to_numpy() for n in ("raw_user", "raw_item", "rating"))
        timestamp = table["timestamp"].combine_chunks().fill_null(0).to_numpy()
        part = table["part"].to_numpy() if "part" in table.column_names else None
        return cls(user, item, rating, timestamp, part)

    def at(self, index: Index) -> "Rows":
        """The rows that a mask or places choose."""
        user, item, rating, timestamp, part = self
        chosen = None if part is None else part[index]
        return Rows(user[index], item[index], rating[index], timestamp[index], chosen)

    def table(self) -> pa.Table:
        """The columns as a table of schema.RAW_RATINGS, with `part` where there is one."""
        table = pa.table(list(self[:4]), schema=schema.RAW_RATINGS)
        return table if self.part is None else table.append_column("part", pa.array(self.part))


def drop_duplicates(ratings: Rows, mean: bool) -> Rows:
    """One row for each (user, item), sorted by both.

    Args:
        ratings: Rows in file order.
        mean: Average the ratings and keep the latest time; otherwise the latest row stays, and
            of several at that time the last in the file.
    """
    if not len(ratings.user):
        return ratings
    rows = ratings.at(order_by(ratings.user, ratings.item))
    begins = run_starts(rows.user, rows.item)
    if len(begins) == len(rows.user):
        return rows
    rows = rows.at(_by_time_in_runs(rows, begins, mean))
    last = np.concatenate([begins[1:], [len(rows.user)]]) - 1
    if not mean:
        return rows.at(last)
    sums = np.add.reduceat(rows.rating.astype(np.float64), begins)
    means = (sums / (last - begins + 1)).astype(np.float32)
    return rows.at(last)._replace(rating=means)


def _by_time_in_runs(rows: Rows, begins: NDArray[np.int64], by_rating: bool) -> NDArray[np.int64]:
    """The order in which each pair's repeated ratings, usually few, stand by their time.

    A mean must not depend on the order of the file, so the rating decides between equal times; for
    the last of several the file's order does.
    """
    count = np.diff(begins, append=len(rows.user))
    repeated = np.flatnonzero(np.repeat(count > 1, count))
    some = rows.at(repeated)
    keys = (some.timestamp, some.item, some.user)
    order = np.arange(len(rows.user))
    in_order = np.lexsort((some.rating, *keys)) if by_rating else np.lexsort(keys)
    order[repeated] = repeated[in_order]
    return order


def count_overlap(ratings: Rows) -> int:
    """How many (user, item) pairs the source puts into more than one split."""
    if ratings.part is None or not len(ratings.user):
        return 0
    rows = ratings.at(order_by(ratings.user, ratings.item))
    begins = run_starts(rows.user, rows.item)
    part = np.asarray(rows.part)
    differs = np.maximum.reduceat(part, begins) != np.minimum.reduceat(part, begins)
    return int(differs.sum())


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
