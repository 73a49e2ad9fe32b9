"""The first task of ingest: file ranges to spill files, counts and rejected rows."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recray import schema
from recray.config import DataSettings
from recray.data import parse, split
from recray.data.ids import id_hash
from recray.data.readers import FileRange
from recray.data.source import Source
from recray.data.spill import SpillFile, SpillFolder
from recray.errors import RecrayError


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
    """The scans of all file ranges together.

    Args:
        rows: Accepted rows.
        files: The spill files, in the order of the rows in the source.
        rejected: The first rejected rows, as schema.REJECTED.
        reasons: How many rows each reason rejected.
        timed: Whether any row has a time.
    """

    rows: int
    files: list[ScannedRows]
    rejected: pa.Table
    reasons: dict[str, int]
    timed: bool


def scan(number: int, *, ranges: tuple[FileRange, ...], spill: SpillFolder) -> dict[str, Any]:
    """Parse one file range, chunk by chunk, and spill its rows.

    Args:
        number: Its place in `ranges`.
        ranges: All file ranges.
        spill: Where spill files go.

    Returns:
        Counts, the spill files, and the first rejected rows, JSON-ready; see join.
    """
    files, reasons = [], Counter[str]()
    rejected: list[dict[str, Any]] = []
    texts: dict[str, list[pa.Table]] = {}
    lines = rows = 0
    timed = False
    file = ranges[number].file
    for chunk, (begin, parsed) in enumerate(parse.parsed(ranges[number])):
        reasons.update(parsed.rejected["reason"].to_pylist())
        for row in parsed.rejected.slice(0, schema.REJECTED_KEPT - len(rejected)).to_pylist():
            row |= {"line": row["line"] + lines, "byte": row["byte"] + begin}
            rejected.append(row)
        lines += parsed.lines
        rows += len(parsed.table)
        timed = timed or bool(pc.any(pc.greater(parsed.table["timestamp"], 0)).as_py())
        hashed = _with_id_hashes(parsed.table, file.layout.text, texts)
        offsets = _write_by_slot(spill, hashed, (number, chunk), file.part)
        files.append({"number": [number, chunk], "offsets": offsets})
    for role, tables in texts.items():
        distinct = pa.concat_tables(tables).group_by(["key", "text"]).aggregate([])
        spill.write(SpillFile.TEXTS, distinct, role, number)
    return {
        "rows": rows,
        "lines": lines,
        "timed": timed,
        "files": files,
        "reasons": reasons,
        "rejected": rejected,
    }


def _write_by_slot(
    spill: SpillFolder, table: pa.Table, number: tuple[int, int], part: str
) -> list[int]:
    slot = split.slot_of(table["raw_user"].to_numpy())
    # The sort is stable, so that the rows of a user stay in file order.
    table = table.take(pa.array(np.argsort(slot, kind="stable")))
    if part in schema.PARTS:
        code = np.full(len(table), schema.PARTS.index(part), np.int8)
        table = table.append_column("part", pa.array(code))
    spill.write(SpillFile.ROWS, table, *number)
    counts = np.bincount(slot, minlength=split.SLOTS)
    return [0, *np.cumsum(counts).tolist()]


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


def join(source: Source, results: list[Any], settings: DataSettings) -> Scanned:
    """Join the results of all file ranges, in order.

    Raises:
        RecrayError: Too many rows cannot be read, or there are none.
    """
    reasons: Counter[str] = sum((Counter(r["reasons"]) for r in results), Counter())
    rejected, first_line = [], dict[str, int]()
    for file_range, result in zip(source.ranges, results, strict=True):
        file = file_range.file
        begin = first_line.setdefault(file.name, 1 + file.layout.header)
        for row in result["rejected"]:
            rejected.append({"file": file.name, **row, "line": row["line"] + begin})
        first_line[file.name] += result["lines"]
    rows, bad = sum(r["rows"] for r in results), sum(reasons.values())
    if bad > settings.max_rejected * (rows + bad):
        first = "; ".join(f"line {r['line']} {r['reason']}: {r['text']!r}" for r in rejected[:3])
        raise RecrayError(
            f"{source.name}: {bad:,} of {rows + bad:,} rows cannot be read, more than "
            f"data.max_rejected={settings.max_rejected:g} allows; {first}"
        )
    if not rows:
        raise RecrayError(f"{source.name} is empty: it has no ratings")
    return Scanned(
        rows=rows,
        files=[
            ScannedRows(tuple(f["number"]), f["offsets"], file_range.file.part == "logged")
            for file_range, r in zip(source.ranges, results, strict=True)
            for f in r["files"]
        ],
        rejected=pa.Table.from_pylist(rejected[: schema.REJECTED_KEPT], schema.REJECTED),
        reasons=dict(sorted(reasons.items())),
        timed=any(r["timed"] for r in results),
    )
