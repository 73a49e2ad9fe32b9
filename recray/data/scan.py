"""The first task of ingest: parse the ranges of ratings files and spill their rows.

Each file range is a task. Where fields in quotes may hold newlines, the first row of a range is
guessed, and the ends of the ranges before it tell whether the guess was right.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recray import schema
from recray.config import DataSettings
from recray.data.advice import advice
from recray.data.formats.layout import FileRange
from recray.data.formats.reading import parsed
from recray.data.ids import id_hash
from recray.data.source import Source
from recray.data.spill import SpillFile, SpillFolder
from recray.data.split import SLOTS, slot_of
from recray.errors import RecrayError
from recray.runtime.nodes import map_tasks


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
    span: range = range(0)

    @property
    def has_log(self) -> bool:
        """Whether some of the rows came after the source, from the ratings log."""
        return any(file.feedback for file in self.files)


def scan_ranges(ranges: tuple[FileRange, ...], spill: SpillFolder) -> list[Scanned]:
    """Scan all file ranges, as tasks; those again whose first row was guessed wrongly.

    A scan says where its range ends, which is right if its begin was. So after each round the first
    wrong range is right, and so are all up to the next one that the new ends prove wrong.
    """
    scans = map_tasks(partial(scan, ranges=ranges, spill=spill), len(ranges))
    while wrong := _wrong_entries(ranges, scans):
        ranges = tuple(replace(r, entry=wrong.get(n, r.entry)) for n, r in enumerate(ranges))
        numbers = sorted(wrong)
        task = partial(_scan_one_of, numbers=numbers, ranges=ranges, spill=spill)
        for number, scanned in zip(numbers, map_tasks(task, len(numbers)), strict=True):
            scans[number] = scanned
    return scans


def _scan_one_of(
    place: int, *, numbers: list[int], ranges: tuple[FileRange, ...], spill: SpillFolder
) -> Scanned:
    return scan(numbers[place], ranges=ranges, spill=spill)


def _wrong_entries(ranges: tuple[FileRange, ...], scans: list[Scanned]) -> dict[int, int]:
    """Number of each range that does not begin where the one before it ended, to that byte."""
    return {
        n: scans[n - 1].span.stop
        for n in range(1, len(ranges))
        if ranges[n].file == ranges[n - 1].file and scans[n].span.start != scans[n - 1].span.stop
    }


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
    files, reasons, rows, read, lines = [], Counter[str](), 0, 0, 0
    rejected = [schema.REJECTED.empty_table()]
    texts: dict[str, list[pa.Table]] = {}
    timed, unknown, first, end = False, 0, -1, 0
    for chunk, (span, of_chunk) in enumerate(parsed(ranges[number])):
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
        hashed = _with_id_hashes(of_chunk.table, file.layout.text, texts)
        offsets = _write_by_slot(spill, hashed, (number, chunk), file.part)
        files.append(ScannedRows((number, chunk), offsets, file.part == "logged"))
    for role, tables in texts.items():
        distinct = pa.concat_tables(tables).group_by(["key", "text"]).aggregate([])
        spill.write(SpillFile.TEXTS, distinct, role, number)
    rejections, bytes_ = pa.concat_tables(rejected), range(max(first, 0), end)
    return Scanned(rows, read, lines, files, rejections, reasons, timed, unknown, bytes_)


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
