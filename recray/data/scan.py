"""The first map of ingest: pieces of files to spill files, counts and rejected rows."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recray import schema
from recray.config import DataSettings
from recray.data import readers, split
from recray.data.ids import keys_of
from recray.data.readers import Piece
from recray.data.source import Source
from recray.data.spill import write_arrow
from recray.errors import RecrayError
from recray.storage import Folder

LOGGED = "logged-rows-"
"""Begins the names of spill files with ratings that came after the source."""


@dataclass(frozen=True)
class Spilled:
    """A spill file: rows sorted by user slot, and where each of the 256 slots begins."""

    name: str
    begins: list[int]

    @property
    def logged(self) -> bool:
        """Whether its ratings came after the source."""
        return self.name.startswith(LOGGED)


@dataclass(frozen=True)
class Scanned:
    """All pieces together.

    Args:
        rows: Accepted rows.
        spilled: The spill files, in the order of the rows in the source.
        rejected: The first rejected rows, as schema.REJECTED.
        reasons: How many rows each reason rejected.
        timed: Whether any row has a time.
    """

    rows: int
    spilled: list[Spilled]
    rejected: pa.Table
    reasons: dict[str, int]
    timed: bool


@dataclass(frozen=True)
class Scan:
    """Parses pieces of the files and spills their rows.

    Args:
        pieces: All pieces.
        spill: Where spill files go.
    """

    pieces: tuple[Piece, ...]
    spill: Folder

    def __call__(self, number: int) -> dict[str, Any]:
        """Parse one piece, chunk by chunk; spill the rows and return counts."""
        spilled, reasons = [], Counter[str]()
        rejected: list[dict[str, Any]] = []
        texts: dict[str, list[pa.Table]] = {}
        lines = rows = 0
        timed = False
        piece = self.pieces[number]
        for chunk, (begin, parsed) in enumerate(readers.parsed(piece)):
            reasons.update(parsed.rejected["reason"].to_pylist())
            for row in parsed.rejected.slice(0, schema.REJECTED_KEPT - len(rejected)).to_pylist():
                row |= {"line": row["line"] + lines, "byte": row["byte"] + begin}
                rejected.append(row)
            lines += parsed.lines
            rows += len(parsed.table)
            timed = timed or bool(pc.any(pc.greater(parsed.table["timestamp"], 0)).as_py())
            kind = LOGGED if piece.file.part == "logged" else "rows-"
            name = f"{kind}{number:05d}-{chunk:05d}.arrow"
            keyed = _keyed(parsed.table, piece.file.layout.text, texts)
            spilled.append({"name": name, "begins": self._write(name, keyed, piece.file.part)})
        for role, tables in texts.items():
            distinct = pa.concat_tables(tables).group_by(["key", "text"]).aggregate([])
            write_arrow(self.spill, texts_name(role, number), distinct)
        return {
            "rows": rows,
            "lines": lines,
            "timed": timed,
            "spilled": spilled,
            "reasons": reasons,
            "rejected": rejected,
        }

    def _write(self, name: str, table: pa.Table, part: str) -> list[int]:
        slot = split.slot_of(table["raw_user"].to_numpy())
        # Stable, so that rows of a user stay in file order.
        table = table.take(pa.array(np.argsort(slot, kind="stable")))
        if part in schema.PARTS:
            code = np.full(len(table), schema.PARTS.index(part), np.int8)
            table = table.append_column("part", pa.array(code))
        write_arrow(self.spill, name, table)
        counts = np.bincount(slot, minlength=split.SLOTS)
        return [0, *np.cumsum(counts).tolist()]


def texts_name(role: str, piece: int) -> str:
    """The spill file with the texts of one kind of id in one piece."""
    return f"texts-{role}-{piece:05d}.arrow"


def _keyed(table: pa.Table, text: frozenset[str], texts: dict[str, list[pa.Table]]) -> pa.Table:
    """Replace ids that are text by their keys, and note the texts."""
    for role in sorted(text):
        column = table[role].combine_chunks()
        key = pa.array(keys_of(column))
        place = table.schema.get_field_index(role)
        table = table.set_column(place, pa.field(role, pa.int64()), key)
        pairs = pa.table({"key": key, "text": column}).group_by(["key", "text"]).aggregate([])
        texts.setdefault(role, []).append(pairs)
    return table


def join(given: Source, results: list[Any], settings: DataSettings) -> Scanned:
    """Put the results of all pieces together, in order.

    Raises:
        RecrayError: Too many rows cannot be read, or there are none.
    """
    reasons: Counter[str] = sum((Counter(r["reasons"]) for r in results), Counter())
    rejected, first_line = [], dict[str, int]()
    for piece, result in zip(given.pieces, results, strict=True):
        file = piece.file
        begin = first_line.setdefault(file.name, 1 + file.layout.header)
        for row in result["rejected"]:
            rejected.append({"file": file.name, **row, "line": row["line"] + begin})
        first_line[file.name] += result["lines"]
    rows, bad = sum(r["rows"] for r in results), sum(reasons.values())
    if bad > settings.max_rejected * (rows + bad):
        first = "; ".join(f"line {r['line']} {r['reason']}: {r['text']!r}" for r in rejected[:3])
        raise RecrayError(
            f"{given.name}: {bad:,} of {rows + bad:,} rows cannot be read, more than "
            f"data.max_rejected={settings.max_rejected:g} allows; {first}"
        )
    if not rows:
        raise RecrayError(f"{given.name} is empty: it has no ratings")
    return Scanned(
        rows=rows,
        spilled=[Spilled(s["name"], s["begins"]) for r in results for s in r["spilled"]],
        rejected=pa.Table.from_pylist(rejected[: schema.REJECTED_KEPT], schema.REJECTED),
        reasons=dict(sorted(reasons.items())),
        timed=any(r["timed"] for r in results),
    )
