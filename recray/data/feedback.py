"""Ratings that came after a source: the source together with the log of what was rated since.

They train, and never change how the source is split. A pair of user and item that the source has
keeps its place in the splits and gets the new rating; a new pair belongs to the training split. So
a hold-out stays the same however much is rated, and a model trained on source and log can be
compared with one trained on the source alone.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from recray.config import Duplicates
from recray.data.feedback_events import MICRO, settled
from recray.data.feedback_log import RatingsLog
from recray.data.formats.layout import FileRange, RatingsFile, format_of_names
from recray.data.row_order import order_by
from recray.data.source import Source
from recray.data.spill import Rows, merge_duplicates
from recray.errors import RecrayError
from recray.storage import Folder

SNAPSHOTS = "snapshots"
COLUMNS = ("user", "item", "rating", "timestamp")


class LogSummary(BaseModel):
    """What a ratings log added to a source.

    Args:
        ratings: Ratings that were added.
        users: Users who gave them.
        repeated: Events that were stored twice.
        damaged_parts: Files of the log that cannot be read and are left out.
        unknown_items: Ratings of items that the source does not have, which are left out.
    """

    ratings: int
    users: int
    repeated: int
    damaged_parts: list[str]
    unknown_items: int


def with_log(
    source: Source, log: RatingsLog, duplicates: Duplicates = "last"
) -> tuple[Source, LogSummary]:
    """Add the ratings of a log to a source.

    The ratings as they are now are written beside the log, where every worker can read them.

    Args:
        source: The source.
        log: The log.
        duplicates: data.duplicates; all but `last` need every rating of a pair.

    Raises:
        RecrayError: The log is of another data set, or none of its items is in the source.
    """
    log.expect(source.name, ("raw_user" in source.text, "raw_item" in source.text))
    contents = log.read()
    latest, _ = settled(contents.events)
    known = _known(source, latest)
    if len(latest) and not len(known):
        raise RecrayError(
            f"{log.folder} holds {len(latest):,} ratings, none of an item of {source.name}: "
            "it is the log of other data"
        )
    summary = LogSummary(
        ratings=len(known),
        users=len(known["user"].unique()),
        repeated=contents.repeated,
        damaged_parts=contents.damaged,
        unknown_items=len(latest) - len(known),
    )
    if not len(known):
        return source, summary
    every = known if duplicates == "last" else _known(source, contents.events)
    file_range, digest = _snapshot(source, log, every)
    identity = hashlib.sha256(f"{source.identity} {digest}".encode()).hexdigest()
    return replace(source, ranges=(*source.ranges, file_range), identity=identity), summary


@contextmanager
def snapshot_while(source: Source) -> Iterator[None]:
    """Remove what `with_log` has written for workers at the end of the block, in which they read
    it; nothing, if the source is without a log.
    """
    try:
        yield
    finally:
        for one in source.ranges:
            if one.file.part == "logged":
                folder, _, name = one.file.path.rpartition("/")
                Folder(folder).delete(name)


def _known(source: Source, ratings: pa.Table) -> pa.Table:
    """The ratings of the source's own items; all of them where it lists none."""
    if not len(source.movies):
        return ratings
    items = source.movies["raw_item"].combine_chunks()
    return ratings.filter(pc.is_in(ratings["item"], items))


def _snapshot(source: Source, log: RatingsLog, ratings: pa.Table) -> tuple[FileRange, str]:
    """Write the ratings as one parquet file named by its content."""
    seconds = ratings["received"].to_numpy() // MICRO
    columns = [ratings["user"], ratings["item"], ratings["rating"].cast(pa.float32()), seconds]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, names=list(COLUMNS)).combine_chunks(), sink)
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    name, folder = f"{digest[:16]}.parquet", log.folder.child(SNAPSHOTS)
    folder.replace_bytes(name, content, durable=True)
    format_ = replace(format_of_names(name, COLUMNS), text=source.text)
    file = RatingsFile(name, f"{folder.path}/{name}", "parquet", format_, part="logged")
    return FileRange(file), digest


# --------------------------------------------------------------------- within a partition


def _codes(rows: Rows, logged: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One number for each pair of user and item."""
    _, user = np.unique(np.concatenate([rows.user, logged.user]), return_inverse=True)
    items, item = np.unique(np.concatenate([rows.item, logged.item]), return_inverse=True)
    code = user.astype(np.int64) * len(items) + item
    return code[: len(rows.user)], code[len(rows.user) :]


def with_source(logged: Rows, source: Rows, how: Duplicates) -> Rows:
    """What the log makes of each of its pairs, by data.duplicates.

    Args:
        logged: The log's rows, in its order.
        source: The source's rows.
        how: last: the log's latest rating, which came after the source's; otherwise all ratings
            of the pair together.
    """
    if how == "last" or not len(logged.user):
        return merge_duplicates(logged, how)
    code, new = _codes(source, logged)
    return merge_duplicates(Rows.join([source.at(np.isin(code, new)), logged]), how)


def rerate(rows: Rows, logged: Rows) -> tuple[Rows, Rows]:
    """Replace the ratings of pairs that were rated again; return all rows, and the new pairs.

    Args:
        rows: The source's, each pair once.
        logged: The log's, each pair once.
    """
    if not len(logged.user) or not len(rows.user):
        return rows, logged
    code, new = _codes(rows, logged)
    order = np.argsort(code)
    place = np.minimum(np.searchsorted(code, new, sorter=order), len(code) - 1)
    target = order[place]
    again = code[target] == new
    rating = rows.rating.copy()
    rating[target[again]] = logged.rating[again]
    return rows._replace(rating=rating), logged.at(~again)


def append(
    rows: Rows, which: NDArray[np.int8], logged: Rows, split: int
) -> tuple[Rows, NDArray[np.int8]]:
    """Rows with those of the log behind them, sorted by user, then item, and the split of each."""
    splits = np.concatenate([which, np.full(len(logged.user), split, np.int8)])
    both = Rows.join([rows, logged])._replace(part=None if rows.part is None else splits)
    order = order_by(both.user, both.item)
    return both.at(order), splits[order]
