"""Random tables written as csv, tsv, JSON lines and parquet: the same rows are read from each."""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from recray.data.formats.reading import parsed_in_order
from recray.data.source import detect_source

Row = tuple[str | int, str | int, float, int | None]
EXAMPLES = 40
COLUMNS = ("user", "item", "rating", "timestamp")

# What makes trouble in one format or another, beside all letters; blanks around are kept in quotes.
_LETTERS = st.sampled_from(",;|\t\"'\n\\:0 .aéЖ中😀") | st.characters(
    exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\u2028\u2029\x85"
)
TEXTS = st.text(_LETTERS, min_size=1, max_size=12).filter(
    lambda text: text.strip(' \t\n"').lower() not in MISSING
)
MISSING = {"", "nan", "null", "none", "na", "n/a", "<na>", "?", "-", "\\n"}
INTEGERS = st.integers(0, 10**18 - 1)
SCALES = st.sampled_from([(-1, 1, 2), (1, 5, 1), (0.5, 5, 0.5), (0, 100, 1), (-10, 10, 0.25)])


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Up to 30 ratings, with ids of letters or of digits and times since 1970 or none."""
    users, items = (draw(st.sampled_from([TEXTS, INTEGERS])) for _ in range(2))
    low, high, step = draw(SCALES)
    ratings = st.integers(0, int((high - low) / step)).map(lambda n: low + n * step)
    times = st.integers(900_000_000, 1_700_000_000)
    rows = draw(st.lists(st.tuples(users, items, ratings, times), min_size=1, max_size=30))
    # One id that is surely text, and one that is surely none, decide alike in every format.
    first = tuple("x" if kind is TEXTS else 7 for kind in (users, items))
    return [(*first, low, 900_000_000), *rows]


def delimited(delimiter: str) -> Callable[[list[Row]], bytes]:
    def write(rows: list[Row]) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([COLUMNS, *rows])
        return out.getvalue().encode()

    return write


def json_lines(rows: list[Row]) -> bytes:
    return b"".join(
        json.dumps(dict(zip(COLUMNS, row, strict=True))).encode() + b"\n" for row in rows
    )


def parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        pa.table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))), sink
    )
    return sink.getvalue()


WRITERS = {
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "semicolons": delimited(";"),
    "json": json_lines,
    "parquet": parquet,
}


@settings(max_examples=EXAMPLES)
@given(tables())
def test_every_format_gives_the_rows_that_were_written(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            path = Path(folder) / name
            path.write_bytes(write(rows))
            found = detect_source(str(path))
            parts = [part for _, part in parsed_in_order(found.ranges)]
            read = [tuple(row.values()) for part in parts for row in part.table.to_pylist()]
            assert [part.rejected.to_pylist() for part in parts if len(part.rejected)] == [], name
            assert read == rows, name
            assert sum(part.rows for part in parts) == len(rows), name
