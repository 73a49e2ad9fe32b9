"""The files between the tasks of ingest, and the ratings in them.

A spill file is an Arrow file, which a reader on the same machine maps into memory. One that is read
in slices, a few rows by each of many tasks, is a row of record batches: a reader asks the store for
the bytes of its own slices alone. In a store all of them are compressed.

The first task, which fills such files, is in scan.py; the later ones are in tasks.py.
"""

# Shape letters: R = rows.

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema
from recray.config import Duplicates
from recray.data.row_order import order_by, run_starts
from recray.storage import Folder, is_uri, range_reader

Index = NDArray[np.bool_] | NDArray[np.int64] | slice


PART = pa.field("part", pa.int8())
"""The column of ratings whose split the source itself says: a code of schema.PARTS."""
TEXTS = pa.schema([("key", pa.int64()), ("text", pa.string())])
"""Text ids, and the hashes that stand for them."""


class SpillFile(Enum):
    """The kinds of spill files; each kind has one writer.

    The comment says which task writes it, what its number counts, and who reads it.
    """

    ROWS = "rows"  # scan, by file range and run: parsed ratings by slot; read by gather
    USER_TEXTS = "user-texts"  # scan, by file range: text ids and hashes by slot; read by encode
    ITEM_TEXTS = "item-texts"  # scan, by file range: text ids and hashes; read by the driver
    PARTITION = "partition"  # gather, core, split, by partition and version: its ratings
    FILTERED = "filtered"  # gather, core, by partition and version: dropped ratings; read by encode
    LATE = "late"  # gather, by partition: new pairs of the ratings log; read by split
    ITEM_COUNTS = "item-counts"  # core, by partition: ratings of each item; read by the driver
    ITEM_KEYS = "item-keys"  # split, by partition: rows by group of items; read by split_items
    ITEM_SPLITS = "item-splits"  # split_items, by group of items: decided splits; read by split
    SPLIT = "split"  # split, by partition: the split of each row; read by encode
    ITEMS = "items"  # split, by partition: ratings of each item by split; read by the driver


@dataclass(frozen=True)
class SpillFolder:
    """Where the tasks of one ingest leave files for each other.

    A task may be done again, and a lost one may still write. So none writes what it has read: what
    changes the ratings of a partition leaves them in the next version.

    Args:
        folder: The folder.
        version: How often partitions have been changed.
    """

    folder: Folder
    version: int = 0

    def later(self, versions: int = 1) -> "SpillFolder":
        """The same folder, so many versions later."""
        return replace(self, version=self.version + versions)

    def write(self, kind: SpillFile, table: pa.Table, *number: int) -> None:
        """Write a file of that kind and number."""
        write_arrow(self.folder, _file_name(kind, number), table)

    def read(self, kind: SpillFile, *number: int) -> pa.Table:
        """A file of that kind and number."""
        return read_arrow(self.folder, _file_name(kind, number))

    def write_slices(
        self, kind: SpillFile, fields: pa.Schema, slices: Iterable[pa.Table], *number: int
    ) -> list[int]:
        """Write tables of these columns into a file, so that each can be read alone.

        Returns:
            The byte where each slice begins, and where the last one ends.
        """
        with (
            self.folder.write_stream(_file_name(kind, number)) as stream,
            pa.ipc.new_stream(stream, fields, options=_options(self.folder)) as writer,
        ):
            # The columns are written with the first batch: an empty one keeps them out of slices.
            writer.write_batch(pa.RecordBatch.from_pylist([], fields))
            offsets = [stream.tell()]
            for table in slices:
                if len(table):
                    writer.write_table(table.combine_chunks())
                offsets.append(stream.tell())
        return offsets

    def read_slices(
        self, kind: SpillFile, fields: pa.Schema, begin: int, end: int, *number: int
    ) -> pa.Table:
        """The slices in the bytes begin..end-1 of a file of that kind and number.

        Only these bytes are asked for, and of a local file the table keeps nothing else in memory.
        """
        if begin == end:
            return fields.empty_table()
        name = _file_name(kind, number)
        if is_uri(self.folder.path):
            content = range_reader(self.folder, name)(begin, end - begin)
        else:
            with pa.memory_map(f"{self.folder.path}/{name}") as mapped:
                mapped.seek(begin)
                content = mapped.read_buffer(end - begin)
        stream, batches = pa.BufferReader(content), []
        while stream.tell() < content.size:
            batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(stream), fields))
        return pa.Table.from_batches(batches, fields)

    def delete(self, kind: SpillFile, *number: int) -> None:
        """Remove a file of that kind and number, which nobody reads any more."""
        self.folder.delete(_file_name(kind, number))

    def exists(self, kind: SpillFile, *number: int) -> bool:
        """Whether a file of that kind and number was written."""
        return self.folder.exists(_file_name(kind, number))


def _file_name(kind: SpillFile, number: tuple[int, ...]) -> str:
    return f"{'-'.join([kind.value, *map(str, number)])}.arrow"


def _options(folder: Folder) -> pa.ipc.IpcWriteOptions:
    """A file on a disk is mapped as it is; one in a store is compressed on its way."""
    return pa.ipc.IpcWriteOptions(compression="zstd" if is_uri(folder.path) else None)


def slices(table: pa.Table, offsets: Sequence[int] | NDArray[np.int64]) -> Iterator[pa.Table]:
    """The slices of a table that begin at these rows, but for the last number: there they end."""
    return (table.slice(begin, end - begin) for begin, end in pairwise(offsets))


def write_arrow(folder: Folder, name: str, table: pa.Table) -> None:
    """Write an Arrow file without waiting for the disk: only the run that wrote it reads it."""
    options = _options(folder)
    with (
        folder.write_stream(name) as stream,
        pa.ipc.new_file(stream, table.schema, options=options) as writer,
    ):
        writer.write_table(table.combine_chunks())


def read_arrow(folder: Folder, name: str) -> pa.Table:
    """An Arrow file; one on a local disk is mapped."""
    if is_uri(folder.path):
        opened = pa.BufferReader(folder.read_bytes(name))
    else:
        opened = pa.memory_map(f"{folder.path}/{name}")
    with closing(opened) as stream:  # the table keeps the memory alive after this
        return pa.ipc.open_file(stream).read_all()


MORE_COLUMNS = ("part", "line")
"""Columns of Rows that may be missing."""


class Rows(NamedTuple):
    """Ratings as columns by the keys of raw ids: (R,) each; an unknown time is UNKNOWN_TIME.

    `part` is the split that the source itself says a row belongs to, None where it says nothing.
    `line` grows with the place of a row in the source, None where that decides nothing.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]
    part: NDArray[np.int8] | None = None
    line: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        """Take the columns of a table of schema.RAW_RATINGS, with or without `part` and `line`."""
        user, item, rating = (table[n].to_numpy() for n in ("raw_user", "raw_item", "rating"))
        timestamp = table["timestamp"].combine_chunks().fill_null(schema.UNKNOWN_TIME).to_numpy()
        given = (table[n].to_numpy() if n in table.column_names else None for n in MORE_COLUMNS)
        return cls(user, item, rating, timestamp, *given)

    def without_times(self) -> "Rows":
        """The same rows, all times unknown."""
        return self._replace(timestamp=np.full(len(self.user), schema.UNKNOWN_TIME))

    @classmethod
    def join(cls, parts: "list[Rows]") -> "Rows":
        """The rows of all parts, one at least, without what the source says of splits."""
        columns = zip(*(part[:4] for part in parts), strict=True)
        joined = cls(*(np.concatenate(column) for column in columns))
        lines = [part.line for part in parts if part.line is not None]
        return joined._replace(line=np.concatenate(lines) if lines else None)

    def at(self, index: Index) -> "Rows":
        """The rows that a mask, places or a slice choose."""
        user, item, rating, timestamp, part, line = self
        part = None if part is None else part[index]
        line = None if line is None else line[index]
        return Rows(user[index], item[index], rating[index], timestamp[index], part, line)

    def table(self) -> pa.Table:
        """The columns as a table of schema.RAW_RATINGS, with `part` and `line` where given."""
        table = pa.table(list(self[:4]), schema=schema.RAW_RATINGS)
        for name, column in zip(MORE_COLUMNS, self[4:], strict=True):
            table = table if column is None else table.append_column(name, pa.array(column))
        return table


def merge_duplicates(ratings: Rows, how: Duplicates) -> Rows:
    """One row for each (user, item), sorted by both.

    Args:
        ratings: Rows in file order.
        how: last: the latest row stays, and of several at that time the last in the file. The
            mean, sum or count of the ratings, or the highest one, do not depend on the order of
            the file; they keep the latest time, and the line of the last row at that time.
    """
    if not len(ratings.user):
        return ratings
    order = order_by(ratings.user, ratings.item)
    begins = run_starts(ratings.user[order], ratings.item[order])
    if len(begins) == len(order) and how != "count":
        return ratings.at(order)
    count = np.diff(begins, append=len(order))
    by_rating = how != "last" and ratings.line is None  # else the last line of a time must be last
    _order_runs_by_time(order, ratings, count, by_rating)
    latest, rating = ratings.at(order[begins + count - 1]), ratings.rating[order]
    match how:
        case "last":
            return latest
        case "count":
            ratings_now = count
        case "max":
            ratings_now = np.maximum.reduceat(rating, begins)
        case _:
            ratings_now = np.add.reduceat(rating.astype(np.float64), begins)
            ratings_now = ratings_now / count if how == "mean" else ratings_now
    return latest._replace(rating=ratings_now.astype(np.float32))


def _order_runs_by_time(
    order: NDArray[np.int64], ratings: Rows, count: NDArray[np.int64], by_rating: bool
) -> None:
    """Put the rows of each pair's repeated ratings, usually few, into the order of their time.

    A mean or sum must not depend on the order of the file, so the rating decides between equal
    times; for the last of several the file's order does.

    Args:
        order: (R,) places of the rows by user and item, changed here.
        ratings: The rows.
        count: How many rows each run of equal pairs has.
        by_rating: Whether the rating decides between equal times.
    """
    repeated = np.flatnonzero(np.repeat(count > 1, count))
    some = ratings.at(order[repeated])
    keys = (some.timestamp, some.item, some.user)
    in_order = np.lexsort((some.rating, *keys)) if by_rating else np.lexsort(keys)
    order[repeated] = order[repeated][in_order]
