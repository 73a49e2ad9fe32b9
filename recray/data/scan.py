"""The first task of ingest: parse the ranges of ratings files and spill their rows.

Each file range is a task. Where fields in quotes may hold newlines, the first row of a range is
guessed, and the ends of the ranges before it tell whether the guess was right.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import DataSettings
from recray.data.advice import advice
from recray.data.formats.layout import FileRange
from recray.data.formats.reading import parsed
from recray.data.ids import id_hash
from recray.data.source import Source
from recray.data.spill import PART, TEXTS, SpillFile, SpillFolder, slices
from recray.data.split import SLOTS, slot_of
from recray.errors import RecrayError

RUN_ROWS = 1 << 22
"""A range of a file that cannot be divided may have any number of rows: so many are spilled at
once. All rows of other ranges are in one run.
"""


@dataclass(frozen=True)
class ScannedRows:
    """A spill file of scanned ratings, a slice for each hash slot of the user.

    Args:
        number: Its file range and run.
        offsets: The byte where each of the split.SLOTS slices begins, and the size of the file.
        part: What the source says of the split of its rows, empty if nothing, or `logged`: they
            came after the source, from the ratings log.
    """

    number: tuple[int, int]
    offsets: list[int]
    part: str

    @property
    def feedback(self) -> bool:
        """Whether its ratings came after the source, from the ratings log."""
        return self.part == "logged"

    @property
    def fields(self) -> pa.Schema:
        """The columns of its rows."""
        return schema.RAW_RATINGS.append(PART) if self.part in schema.PARTS else schema.RAW_RATINGS


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
        texts: Where the texts of users are text: the byte where the slice of each slot begins in
            the spill file of the range, and its size.
        span: The bytes of the file from the first row of the range to the first one behind it.
    """

    rows: int
    read: int
    lines: int
    files: list[ScannedRows]
    rejected: pa.Table
    reasons: Counter[str]
    timed: bool
    unknown_times: int
    texts: list[int] | None = None
    span: range = range(0)

    @property
    def has_log(self) -> bool:
        """Whether some of the rows came after the source, from the ratings log."""
        return any(file.feedback for file in self.files)


Read = Callable[[Sequence[int], Sequence[FileRange]], list[Scanned]]
"""Scans the file ranges of these numbers, among all of them."""


def scan_ranges(ranges: Sequence[FileRange], read: Read) -> list[Scanned]:
    """Scan all file ranges; those again whose first row was guessed wrongly.

    A scan says where its range ends, which is right if its begin was. So after each round the first
    wrong range is right, and so are all up to the next one that the new ends prove wrong.
    """
    scans = read(range(len(ranges)), ranges)
    while wrong := _wrong_entries(ranges, scans):
        ranges = [replace(r, entry=wrong.get(n, r.entry)) for n, r in enumerate(ranges)]
        for number, scanned in zip(wrong, read(list(wrong), ranges), strict=True):
            scans[number] = scanned
    return scans


def _wrong_entries(ranges: Sequence[FileRange], scans: list[Scanned]) -> dict[int, int]:
    """Number of each range that does not begin where the one before it ended, to that byte."""
    return {
        n: scans[n - 1].span.stop
        for n in range(1, len(ranges))
        if ranges[n].file == ranges[n - 1].file and scans[n].span.start != scans[n - 1].span.stop
    }


def scan(number: int, *, file_range: FileRange, spill: SpillFolder) -> Scanned:
    """Parse one file range, chunk by chunk, and spill its rows.

    Args:
        number: Its place among all ranges.
        file_range: The range.
        spill: Where spill files go.

    Returns:
        Its counts; the lines of rejected rows count from 0 in the range.
    """
    file = file_range.file
    reasons, rows, read, lines = Counter[str](), 0, 0, 0
    rejected = [schema.REJECTED.empty_table()]
    texts = _Texts(spill, number, file.layout.text)
    runs = _Runs(spill, number, file.part)
    timed, unknown, first, end = False, 0, -1, 0
    for span, of_chunk in parsed(file_range):
        first, end = (span.start if first < 0 else first), span.stop
        reasons.update(of_chunk.rejected["reason"].to_pylist())
        kept = of_chunk.rejected.slice(0, schema.REJECTED_KEPT - sum(map(len, rejected)))
        kept = kept.add_column(0, "file", pa.array([file.name] * len(kept), pa.string()))
        rejected.append(_counted_from(kept, lines, span.start))
        lines += of_chunk.lines
        rows, read = rows + len(of_chunk.table), read + of_chunk.rows
        if file.part != "logged":
            unknown += of_chunk.unknown_times
            timed = timed or bool(pc.any(pc.not_equal(of_chunk.table["timestamp"], 0)).as_py())
        runs.add(texts.hashed(of_chunk.table))
    rejections, bytes_ = pa.concat_tables(rejected), range(max(first, 0), end)
    files, text_offsets = runs.end(), texts.end()
    return Scanned(
        rows, read, lines, files, rejections, reasons, timed, unknown, text_offsets, bytes_
    )


def _counted_from(rejected: pa.Table, line: int, byte: int) -> pa.Table:
    """Rejected rows with their lines and bytes counted from an earlier place."""
    columns = {name: rejected[name] for name in rejected.column_names}
    columns |= {"line": pc.add(rejected["line"], line), "byte": pc.add(rejected["byte"], byte)}
    return pa.table(columns, schema=schema.REJECTED)


class _Runs:
    """The rows of a file range on their way to spill files, by their users' slots.

    Args:
        spill: Where spill files go.
        number: The file range.
        part: That of ScannedRows.
    """

    def __init__(self, spill: SpillFolder, number: int, part: str) -> None:
        self.spill, self.number, self.part = spill, number, part
        self.files: list[ScannedRows] = []
        self._chunks: list[tuple[pa.Table, NDArray[np.int64]]] = []

    def add(self, table: pa.Table) -> None:
        """Take the next rows of the range."""
        table, offsets = _by_slot(table, "raw_user")
        if self.part in schema.PARTS:
            code = np.full(len(table), schema.PARTS.index(self.part), np.int8)
            table = table.append_column(PART, pa.array(code))
        self._chunks.append((table, offsets))
        if sum(len(table) for table, _ in self._chunks) >= RUN_ROWS:
            self._write()

    def end(self) -> list[ScannedRows]:
        """Write what is left; return all files."""
        if self._chunks:
            self._write()
        return self.files

    def _write(self) -> None:
        number = self.number, len(self.files)
        file = ScannedRows(number, [], self.part)
        by_slot = zip(*(slices(table, at) for table, at in self._chunks), strict=True)
        tables = (pa.concat_tables(of_slot) for of_slot in by_slot)
        offsets = self.spill.write_slices(SpillFile.ROWS, file.fields, tables, *number)
        self.files.append(replace(file, offsets=offsets))
        self._chunks.clear()


class _Texts:
    """The text ids of a file range, which hashes stand for until the end of ingest.

    Args:
        spill: Where spill files go.
        number: The file range.
        roles: The columns of ids that are text.
    """

    def __init__(self, spill: SpillFolder, number: int, roles: frozenset[str]) -> None:
        self.spill, self.number = spill, number
        self._pairs: dict[str, list[pa.Table]] = {role: [] for role in sorted(roles)}

    def hashed(self, table: pa.Table) -> pa.Table:
        """Replace text ids by their hashes, and keep the texts."""
        for role, pairs in self._pairs.items():
            column = table[role].combine_chunks()
            key = pa.array(id_hash(column))
            place = table.schema.get_field_index(role)
            table = table.set_column(place, pa.field(role, pa.int64()), key)
            pairs.append(_distinct(pa.table([key, column], schema=TEXTS)))
        return table

    def end(self) -> list[int] | None:
        """Write them; return that of Scanned."""
        offsets = None
        for role, pairs in self._pairs.items():
            table = _distinct(pa.concat_tables([TEXTS.empty_table(), *pairs]))
            if role == "raw_user":
                of_slot = slices(*_by_slot(table, "key"))
                offsets = self.spill.write_slices(SpillFile.USER_TEXTS, TEXTS, of_slot, self.number)
            else:
                self.spill.write(SpillFile.ITEM_TEXTS, table, self.number)
        return offsets


def _distinct(texts: pa.Table) -> pa.Table:
    return texts.group_by(["key", "text"]).aggregate([]).select(TEXTS.names)


def _by_slot(table: pa.Table, column: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """Rows sorted by the slot of their users, and where each slot begins.

    The sort is stable, so that the rows of a user stay in file order.
    """
    slot = slot_of(table[column].to_numpy())
    order = pa.array(np.argsort(slot, kind="stable"))
    counts = np.bincount(slot, minlength=SLOTS)
    return table.take(order).combine_chunks(), np.concatenate([[0], np.cumsum(counts)])


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
