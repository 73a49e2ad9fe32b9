"""Typed columns, as parquet files and frames have them, to ratings and rejected rows."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recray import schema
from recray.data.formats.archives import open_parquet
from recray.data.formats.layout import IDS, FileRange, RatingsFile, RatingsFormat
from recray.data.formats.values import (
    PADDING,
    ParsedRatings,
    check_fields,
    is_in_order,
    rejected_rows,
)

CHUNK_ROWS = 1 << 20
"""Rows of a parquet file that are held at once."""


def row_group_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a parquet file into its row groups."""
    with open_parquet(file.path) as opened:
        return [FileRange(file, n, n + 1) for n in range(opened.num_row_groups)]


def parsed_row_groups(file_range: FileRange) -> Iterator[ParsedRatings]:
    """Parse row groups in bounded chunks.

    Raises:
        RecrayError: The file is damaged.
    """
    file = file_range.file
    columns = dict(zip(file.layout.columns, file.layout.names, strict=True))
    columns.pop("", None)
    with open_parquet(file.path) as opened:
        stop = opened.num_row_groups if file_range.stop is None else file_range.stop
        groups, names = list(range(file_range.start, stop)), list(columns.values())
        for batch in opened.iter_batches(CHUNK_ROWS, groups, names, use_threads=False):
            yield parse_table({role: batch[n] for role, n in columns.items()}, file.layout)


def parse_table(columns: Mapping[str, pa.Array], layout: RatingsFormat) -> ParsedRatings:
    """Check typed columns by the rules that hold for text.

    Args:
        columns: Role to (R,) values; times of any type.
        layout: The scale, and which ids are text.

    Returns:
        The good rows; a rejected row's line is its number in the columns, its text the values.
    """
    columns = {r: c if r == "timestamp" else _plain(c) for r, c in columns.items()}
    table = pa.table(columns)
    if all(_is_clean(role, table[role], layout) for role in columns):
        nothing = schema.REJECTED.remove(0).empty_table()
        return ParsedRatings(layout.as_raw(table), nothing, len(table), len(table))
    texts = {
        role: pc.utf8_trim(pc.fill_null(column.cast(pa.string()), ""), PADDING)
        for role, column in columns.items()
        if role != "timestamp"
    }
    times = {role: table[role] for role in columns if role == "timestamp"}
    good, reason = check_fields(texts | times, layout)
    bad = np.flatnonzero(reason != "")
    shown = pc.binary_join_element_wise(*(t.take(pa.array(bad)) for t in texts.values()), ",")
    rejected = rejected_rows(bad, np.zeros_like(bad), shown, reason)
    return ParsedRatings(good, rejected, len(table), len(table))


def _plain(column: pa.Array) -> pa.Array:
    """Numbers or strings, categories decoded."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    return column


def _is_clean(role: str, column: pa.ChunkedArray, layout: RatingsFormat) -> bool:
    """Whether every value is in order as it is; other columns are checked as text."""
    if role == "timestamp":
        return True
    kind = column.type
    if role in layout.text:
        if not pa.types.is_string(kind):
            return False
        padded = pc.not_equal(pc.utf8_trim(column, PADDING), column)
        return not pc.any(padded).as_py() and is_in_order(role, column, layout)
    number = pa.types.is_integer(kind) or (role == "rating" and pa.types.is_floating(kind))
    return number and is_in_order(role, column, layout)


def ids_of_table(table: pa.Table, layout: RatingsFormat) -> dict[str, list[str]]:
    """The ids in a table's first rows, as text, and its times unless their type tells the unit."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    first = {
        role: _plain(table[names[role]].combine_chunks())
        for role in (*IDS, "timestamp")
        if role in names
    }
    return {
        role: [str(v) for v in values.to_pylist() if v is not None]
        for role, values in first.items()
        if not pa.types.is_temporal(values.type)
    }
