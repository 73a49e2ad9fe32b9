"""Ratings between the maps of ingest: columns, files of them, and what cleans them."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema, storage
from recray.data.sorting import begins_of, order_by
from recray.storage import Folder


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

    def at(self, index: NDArray[Any]) -> "Rows":
        """The rows that a mask or places choose."""
        user, item, rating, timestamp, part = self
        chosen = None if part is None else part[index]
        return Rows(user[index], item[index], rating[index], timestamp[index], chosen)

    def table(self) -> pa.Table:
        """The columns as a table of schema.RAW_RATINGS, with `part` where there is one."""
        table = pa.table(list(self[:4]), schema=schema.RAW_RATINGS)
        return table if self.part is None else table.append_column("part", pa.array(self.part))


def drop_duplicates(given: Rows, mean: bool) -> Rows:
    """One row for each (user, item), sorted by both.

    Args:
        given: Rows in file order.
        mean: Average the ratings and keep the latest time; otherwise the latest row stays, and
            of several at that time the last in the file.
    """
    if not len(given.user):
        return given
    rows = given.at(order_by(given.user, given.item))
    begins = begins_of(rows.user, rows.item)
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
    keys: tuple[NDArray[Any], ...] = (some.timestamp, some.item, some.user)
    order = np.arange(len(rows.user))
    order[repeated] = repeated[np.lexsort((some.rating, *keys) if by_rating else keys)]
    return order


def in_several_parts(given: Rows) -> int:
    """How many (user, item) pairs the source puts into more than one split."""
    if given.part is None or not len(given.user):
        return 0
    rows = given.at(order_by(given.user, given.item))
    begins = begins_of(rows.user, rows.item)
    part = np.asarray(rows.part)
    differs = np.maximum.reduceat(part, begins) != np.minimum.reduceat(part, begins)
    return int(differs.sum())


def write_arrow(folder: Folder, name: str, table: pa.Table) -> None:
    """Write an uncompressed Arrow file, which a reader on this machine can map.

    It does not wait for the disk: what only this run reads need not survive it.
    """
    with folder.write_stream(name) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(folder: Folder, name: str, begin: int = 0, end: int | None = None) -> pa.Table:
    """Rows begin..end-1 of an Arrow file; on a local disk only their pages are read."""
    if storage.is_uri(folder.path):
        stream: Any = pa.BufferReader(folder.read_bytes(name))
    else:
        stream = pa.memory_map(f"{folder.path}/{name}")
    table = pa.ipc.open_file(stream).read_all()
    return table.slice(begin, None if end is None else end - begin)
