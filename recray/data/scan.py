"""The first map of ingest: pieces of files to spill files, counts and rejected rows."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recray import schema
from recray.config import DataSettings
from recray.data import parse, source, split
from recray.data.rows import write_arrow
from recray.data.source import Piece, Source
from recray.errors import RecrayError
from recray.storage import Folder


@dataclass(frozen=True)
class Spilled:
    """A spill file: rows sorted by user slot, and where each of the 256 slots begins."""

    name: str
    begins: list[int]


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
        layout: How the lines look.
        spill: Where spill files go.
    """

    pieces: tuple[Piece, ...]
    layout: parse.RatingsFormat
    spill: Folder

    def __call__(self, number: int) -> dict[str, Any]:
        """Parse one piece, chunk by chunk; spill the rows and return counts."""
        spilled, reasons = [], Counter[str]()
        rejected: list[dict[str, Any]] = []
        lines = rows = 0
        timed = False
        for chunk, (begin, content) in enumerate(source.chunks(self.pieces[number], self.layout)):
            parsed = parse.parse_ratings(content, self.layout)
            reasons.update(parsed.rejected["reason"].to_pylist())
            for row in parsed.rejected.slice(0, schema.REJECTED_KEPT - len(rejected)).to_pylist():
                row |= {"line": row["line"] + lines, "byte": row["byte"] + begin}
                rejected.append(row)
            lines += parsed.lines
            rows += len(parsed.table)
            timed = timed or bool(pc.any(pc.greater(parsed.table["timestamp"], 0)).as_py())
            name = f"rows-{number:05d}-{chunk:05d}.arrow"
            spilled.append({"name": name, "begins": self._write(name, parsed.table)})
        return {
            "rows": rows,
            "lines": lines,
            "timed": timed,
            "spilled": spilled,
            "reasons": reasons,
            "rejected": rejected,
        }

    def _write(self, name: str, table: pa.Table) -> list[int]:
        slot = split.slot_of(table["raw_user"].to_numpy())
        # Stable, so that rows of a user stay in file order.
        table = table.take(pa.array(np.argsort(slot, kind="stable")))
        write_arrow(self.spill, name, table)
        counts = np.bincount(slot, minlength=split.SLOTS)
        return [0, *np.cumsum(counts).tolist()]


def join(given: Source, results: list[Any], settings: DataSettings) -> Scanned:
    """Put the results of all pieces together, in order.

    Raises:
        RecrayError: Too many rows cannot be read, or there are none.
    """
    reasons: Counter[str] = sum((Counter(r["reasons"]) for r in results), Counter())
    rejected, first_line = [], 1 + given.layout.header
    for piece, result in zip(given.pieces, results, strict=True):
        for row in result["rejected"]:
            rejected.append({"file": piece.file, **row, "line": row["line"] + first_line})
        first_line += result["lines"]
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
