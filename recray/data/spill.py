"""The files between the tasks of ingest, the ratings in them, and the first task, which scans.

A spill file is an uncompressed Arrow file, which a reader on the same machine maps into memory. The
first task parses a range of a ratings file and spills its rows; the later tasks are in tasks.py.
"""

# Shape letters: R = rows.

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import DataSettings, Duplicates
from recray.data.advice import advice
from recray.data.formats.layout import FileRange
from recray.data.formats.reading import parsed
from recray.data.ids import id_hash
from recray.data.source import Source
from recray.data.split import SLOTS, order_by, run_starts, slot_of
from recray.errors import RecrayError
from recray.storage import Folder, is_uri

Index = NDArray[np.bool_] | NDArray[np.int64] | slice


class SpillFile(Enum):
    """The kinds of spill files; each kind has one writer.

    The comment says which task writes it, what its number counts, and who reads it.
    """

    ROWS = "rows"  # scan, by file range and chunk: parsed ratings by slot; read by gather
    TEXTS = "texts"  # scan, by file range: text ids and their hashes; read by the driver
    PARTITION = "partition"  # gather, core, split, by partition: its ratings; read by what follows
    FILTERED = "filtered"  # gather, core, by partition: ratings that filters drop; read by encode
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

    def read_all(self, kind: SpillFile, count: int) -> list[pa.Table]:
        """The files of that kind with the numbers 0..count-1."""
        return [self.read(kind, number) for number in range(count)]

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
        opened = pa.BufferReader(folder.read_bytes(name))
    else:
        opened = pa.memory_map(f"{folder.path}/{name}")
    with closing(opened) as stream:  # the table keeps the memory alive after this
        table = pa.ipc.open_file(stream).read_all()
    return table.slice(begin, None if end is None else end - begin)


class Rows(NamedTuple):
    """Ratings as columns by the keys of raw ids: (R,) each; an unknown time is UNKNOWN_TIME.

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
        timestamp = table["timestamp"].combine_chunks().fill_null(schema.UNKNOWN_TIME).to_numpy()
        part = table["part"].to_numpy() if "part" in table.column_names else None
        return cls(user, item, rating, timestamp, part)

    def without_times(self) -> "Rows":
        """The same rows, all times unknown."""
        return self._replace(timestamp=np.full(len(self.user), schema.UNKNOWN_TIME))

    @classmethod
    def join(cls, parts: "list[Rows]") -> "Rows":
        """The rows of all parts, one at least, without what the source says of splits."""
        columns = zip(*(part[:4] for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def at(self, index: Index) -> "Rows":
        """The rows that a mask, places or a slice choose."""
        user, item, rating, timestamp, part = self
        chosen = None if part is None else part[index]
        return Rows(user[index], item[index], rating[index], timestamp[index], chosen)

    def table(self) -> pa.Table:
        """The columns as a table of schema.RAW_RATINGS, with `part` where there is one."""
        table = pa.table(list(self[:4]), schema=schema.RAW_RATINGS)
        return table if self.part is None else table.append_column("part", pa.array(self.part))


def merge_duplicates(ratings: Rows, how: Duplicates) -> Rows:
    """One row for each (user, item), sorted by both.

    Args:
        ratings: Rows in file order.
        how: last: the latest row stays, and of several at that time the last in the file. The
            mean, sum or count of the ratings, or the highest one, do not depend on the order of
            the file; they keep the latest time.
    """
    if not len(ratings.user):
        return ratings
    rows = ratings.at(order_by(ratings.user, ratings.item))
    begins = run_starts(rows.user, rows.item)
    if len(begins) == len(rows.user) and how != "count":
        return rows
    rows = rows.at(_by_time_in_runs(rows, begins, how != "last"))
    count = np.diff(begins, append=len(rows.user))
    latest = rows.at(begins + count - 1)
    match how:
        case "last":
            return latest
        case "count":
            ratings_now = count
        case "max":
            ratings_now = np.maximum.reduceat(rows.rating, begins)
        case _:
            ratings_now = np.add.reduceat(rows.rating.astype(np.float64), begins)
            ratings_now = ratings_now / count if how == "mean" else ratings_now
    return latest._replace(rating=ratings_now.astype(np.float32))


def _by_time_in_runs(rows: Rows, begins: NDArray[np.int64], by_rating: bool) -> NDArray[np.int64]:
    """The order in which each pair's repeated ratings, usually few, stand by their time.

    A mean or sum must not depend on the order of the file, so the rating decides between equal
    times; for the last of several the file's order does.
    """
    count = np.diff(begins, append=len(rows.user))
    repeated = np.flatnonzero(np.repeat(count > 1, count))
    some = rows.at(repeated)
    keys = (some.timestamp, some.item, some.user)
    order = np.arange(len(rows.user))
    in_order = np.lexsort((some.rating, *keys)) if by_rating else np.lexsort(keys)
    order[repeated] = repeated[in_order]
    return order


# -------------------------------------------------------------------------------- first task


@dataclass(frozen=True)
class ScannedRows:
    """A spill file of scanned ratings, sorted by hash slot of the user.

    Args:
        number: Its file range and chunk.
        offsets: Where the rows of each of the split.SLOTS slots begin, and the number of rows.
        feedback: Whether its ratings came after the source, from the ratings log.
    """

    number: tuple[int, int]
    offsets: list[int]
    feedback: bool


@dataclass(frozen=True)
class Scanned:
    """The scan of one file range, or of all of them together.

    Args:
        rows: Accepted rows.
        read: Rows, accepted or rejected.
        lines: Lines, without a header.
        files: The spill files, in the order of the rows in the source.
        rejected: The first rejected rows, as schema.REJECTED.
        reasons: How many rows each reason rejected.
        timed: Whether any row of the source has a time other than 0, which stands for unknown
            where it is the only one.
        unknown_times: Accepted rows of the source whose time is unknown.
    """

    rows: int
    read: int
    lines: int
    files: list[ScannedRows]
    rejected: pa.Table
    reasons: Counter[str]
    timed: bool
    unknown_times: int

    @property
    def has_log(self) -> bool:
        """Whether some of the rows came after the source, from the ratings log."""
        return any(file.feedback for file in self.files)


def scan(number: int, *, ranges: tuple[FileRange, ...], spill: SpillFolder) -> Scanned:
    """Parse one file range, chunk by chunk, and spill its rows.

    Args:
        number: Its place in `ranges`.
        ranges: All file ranges.
        spill: Where spill files go.

    Returns:
        Its counts; the lines of rejected rows count from 0 in the range.
    """
    file = ranges[number].file
    files, reasons = [], Counter[str]()
    rejected = [schema.REJECTED.empty_table()]
    texts: dict[str, list[pa.Table]] = {}
    lines, rows, read, timed, unknown, logged = 0, 0, 0, False, 0, file.part == "logged"
    for chunk, (begin, of_chunk) in enumerate(parsed(ranges[number])):
        reasons.update(of_chunk.rejected["reason"].to_pylist())
        kept = of_chunk.rejected.slice(0, schema.REJECTED_KEPT - sum(map(len, rejected)))
        kept = kept.add_column(0, "file", pa.array([file.name] * len(kept), pa.string()))
        rejected.append(_counted_from(kept, lines, begin))
        lines += of_chunk.lines
        rows, read = rows + len(of_chunk.table), read + of_chunk.rows
        if not logged:
            unknown += of_chunk.unknown_times
            timed = timed or bool(pc.any(pc.not_equal(of_chunk.table["timestamp"], 0)).as_py())
        hashed = _with_id_hashes(of_chunk.table, file.layout.text, texts)
        offsets = _write_by_slot(spill, hashed, (number, chunk), file.part)
        files.append(ScannedRows((number, chunk), offsets, logged))
    for role, tables in texts.items():
        distinct = pa.concat_tables(tables).group_by(["key", "text"]).aggregate([])
        spill.write(SpillFile.TEXTS, distinct, role, number)
    return Scanned(rows, read, lines, files, pa.concat_tables(rejected), reasons, timed, unknown)


def _counted_from(rejected: pa.Table, line: int, byte: int) -> pa.Table:
    """Rejected rows with their lines and bytes counted from an earlier place."""
    columns = {name: rejected[name] for name in rejected.column_names}
    columns |= {"line": pc.add(rejected["line"], line), "byte": pc.add(rejected["byte"], byte)}
    return pa.table(columns, schema=schema.REJECTED)


def _write_by_slot(
    spill: SpillFolder, table: pa.Table, number: tuple[int, int], part: str
) -> list[int]:
    """Write rows sorted by their user's slot; return where each slot begins."""
    slot = slot_of(table["raw_user"].to_numpy())
    # The sort is stable, so that the rows of a user stay in file order.
    table = table.take(pa.array(np.argsort(slot, kind="stable")))
    if part in schema.PARTS:
        code = np.full(len(table), schema.PARTS.index(part), np.int8)
        table = table.append_column("part", pa.array(code))
    spill.write(SpillFile.ROWS, table, *number)
    return [0, *np.cumsum(np.bincount(slot, minlength=SLOTS)).tolist()]


def _with_id_hashes(
    table: pa.Table, text: frozenset[str], texts: dict[str, list[pa.Table]]
) -> pa.Table:
    """Replace text ids by their hashes, and collect the texts."""
    for role in sorted(text):
        column = table[role].combine_chunks()
        key = pa.array(id_hash(column))
        place = table.schema.get_field_index(role)
        table = table.set_column(place, pa.field(role, pa.int64()), key)
        pairs = pa.table({"key": key, "text": column}).group_by(["key", "text"]).aggregate([])
        texts.setdefault(role, []).append(pairs)
    return table


def join_scans(source: Source, scans: list[Scanned], settings: DataSettings) -> Scanned:
    """Join the scans of all file ranges, in order; lines then count from 1 in the file.

    Raises:
        RecrayError: Too many rows cannot be read, or there are none.
    """
    reasons: Counter[str] = sum((scan.reasons for scan in scans), Counter())
    tables, first_line = [], dict[str, int]()
    for file_range, scan in zip(source.ranges, scans, strict=True):
        file = file_range.file
        begin = first_line.setdefault(file.name, 1 + file.layout.header)
        tables.append(_counted_from(scan.rejected, begin, 0))
        first_line[file.name] += scan.lines
    rejected = pa.concat_tables(tables).slice(0, schema.REJECTED_KEPT).combine_chunks()
    rows, read, bad = sum(s.rows for s in scans), sum(s.read for s in scans), sum(reasons.values())
    if bad > settings.max_rejected * (rows + bad):
        rows_shown = rejected.slice(0, 3).to_pylist()
        first = "; ".join(
            f"{r['file']} line {r['line']} {r['reason']}: {r['text']!r}" for r in rows_shown
        )
        remedies = "".join(f"; {a}" for a in advice(reason for reason, _ in reasons.most_common()))
        raise RecrayError(
            f"{source.name}: {bad:,} of {rows + bad:,} rows cannot be read, more than "
            f"data.max_rejected={settings.max_rejected:g} allows; {first}{remedies}"
        )
    if not rows:
        raise RecrayError(f"{source.name} is empty: it has no ratings")
    files = [file for scan in scans for file in scan.files]
    lines, timed = sum(scan.lines for scan in scans), any(scan.timed for scan in scans)
    unknown = sum(scan.unknown_times for scan in scans)
    return Scanned(rows, read, lines, files, rejected, reasons, timed, unknown)
