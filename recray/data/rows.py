"""Ratings in raw ids between the maps of ingest: columns, files of them, and what cleans them."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema, storage
from recray.storage import Folder


class Rows(NamedTuple):
    """Ratings as columns, in raw ids: (R,) each; timestamp is 0 where unknown."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        """Take the columns of a table of schema.RAW_RATINGS."""
        user, item, rating = (table[n].to_numpy() for n in ("raw_user", "raw_item", "rating"))
        return cls(user, item, rating, table["timestamp"].combine_chunks().fill_null(0).to_numpy())

    def at(self, index: NDArray[Any]) -> "Rows":
        """The rows that a mask or places choose."""
        user, item, rating, timestamp = self
        return Rows(user[index], item[index], rating[index], timestamp[index])

    def table(self) -> pa.Table:
        """The columns as a table of schema.RAW_RATINGS."""
        return pa.table(list(self), schema=schema.RAW_RATINGS)


def drop_duplicates(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    rating: NDArray[np.float32],
    timestamp: NDArray[np.int64],
    mean: bool,
) -> Rows:
    """One row for each (user, item), sorted by both.

    Args:
        user: (R,) raw ids, rows in file order.
        item: (R,) raw ids.
        rating: (R,) stars.
        timestamp: (R,) seconds.
        mean: Average the ratings and keep the latest time; otherwise the latest row stays, and
            of several at that time the last in the file.
    """
    # A mean must not depend on the order of the file; the last of several must.
    keys = (rating, timestamp, item, user) if mean else (timestamp, item, user)
    rows = Rows(user, item, rating, timestamp).at(np.lexsort(keys))
    if not len(rows.user):
        return rows
    changes = (rows.user[1:] != rows.user[:-1]) | (rows.item[1:] != rows.item[:-1])
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
    last = np.concatenate([begins[1:], [len(rows.user)]]) - 1
    if not mean:
        return rows.at(last)
    sums = np.add.reduceat(rows.rating.astype(np.float64), begins)
    means = (sums / (last - begins + 1)).astype(np.float32)
    return rows.at(last)._replace(rating=means)


def write_arrow(folder: Folder, name: str, table: pa.Table) -> None:
    """Write an uncompressed Arrow file, which a reader on this machine can map."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    folder.write_bytes(name, sink.getvalue())


def read_arrow(folder: Folder, name: str, begin: int = 0, end: int | None = None) -> pa.Table:
    """Rows begin..end-1 of an Arrow file; on a local disk only their pages are read."""
    if storage.is_uri(folder.path):
        stream: Any = pa.BufferReader(folder.read_bytes(name))
    else:
        stream = pa.memory_map(f"{folder.path}/{name}")
    table = pa.ipc.open_file(stream).read_all()
    return table.slice(begin, None if end is None else end - begin)
