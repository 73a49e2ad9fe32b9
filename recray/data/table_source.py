"""A table in memory as a source: of pandas, pyarrow, polars, or anything that Arrow can read.

Its columns keep their types: they go to a parquet file beside the output, which every node reads in
ranges as any parquet file of the user's. No value passes through text.
"""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recray import schema
from recray.config import Settings
from recray.data.formats.layout import COLUMN_NAMES, format_of_names
from recray.data.lists.beside import SideLists
from recray.data.lists.items import is_item_list, parse_table_of_items
from recray.data.lists.rows import IdRule
from recray.data.source import Source, detect_source
from recray.errors import RecrayError
from recray.storage import UNFINISHED, Folder, is_uri

Table: TypeAlias = Any
"""pandas.DataFrame, pyarrow.Table, RecordBatch or RecordBatchReader, or what gives Arrow data."""
NAME = "table"
"""Its name as a data set."""
FILE = "table.parquet"
ROWS = 1 << 20
"""Rows of a row group, which one task reads, and of a piece that is hashed."""


@contextmanager
def table_source(
    ratings: Table, items: Table | None, out: str, settings: Settings
) -> Iterator[Source]:
    """Recognise a table of ratings, which lies in a file beside `out` while the block runs.

    Args:
        ratings: Its columns are recognised as those of a file; other columns are not read.
        items: Titles: item, title, genres and year, the first two needed.
        out: Folder of the data set to be made; every node reaches what lies beside it.
        settings: data.columns and data.ids are used.

    Raises:
        RecrayError: There is no user or item column, or a column holds values of several kinds.
    """
    if settings.split.kind == "given":
        raise RecrayError("split.kind=given needs a folder or archive with two files, not a table")
    used = _used_columns(ratings, settings)
    if not len(used):
        raise RecrayError("the table of ratings is empty: it has no rows")
    folder = _beside(Folder(out))
    try:
        with folder.write_stream(FILE) as stream:
            pq.write_table(used, stream, compression="zstd", row_group_size=ROWS)
        found = detect_source(f"{folder.path}/{FILE}", settings)
        lists = found.lists if items is None else _items_of(items, settings, found.text)
        identity = hashlib.sha256()
        for table in (used, lists.movies):
            _digest(table, identity)
        yield replace(found, name=NAME, lists=lists, identity=identity.hexdigest())
    finally:
        folder.delete()


def _beside(out: Folder) -> Folder:
    """A folder of its own beside another one; where it is left over, `publish` removes it."""
    parent, _, name = out.path.rstrip("/").rpartition("/")
    prefix = "" if is_uri(out.path) else UNFINISHED
    return Folder(f"{parent}/{prefix}{name}-table-{uuid.uuid4().hex[:8]}")


def _used_columns(ratings: Table, settings: Settings) -> pa.Table:
    """The columns that mean something, by the names that the table gives them."""
    names, columns = _columns(ratings)
    layout = format_of_names("the table", names, settings.data.rating_columns)
    used = [place for place, role in enumerate(layout.columns) if role]
    return pa.table({names[place]: _arrow(names[place], columns[place]) for place in used})


def _columns(given: Table) -> tuple[list[str], list[Any]]:
    """Names and columns of any table; the named levels of a pandas index are columns, too."""
    if isinstance(given, pd.DataFrame):
        named = {name for name in given.index.names if name is not None}
        if levels := sorted(named.difference(given.columns), key=given.index.names.index):
            given = given.reset_index(levels)
        names = [str(name) for name in given.columns]
        return names, [given.iloc[:, place] for place in range(len(names))]
    table = given.read_all() if isinstance(given, pa.RecordBatchReader) else pa.table(given)
    return table.column_names, table.columns


def _arrow(name: str, column: Any) -> pa.ChunkedArray:
    """A column as Arrow has it, its type kept; NaN of pandas is null.

    Raises:
        RecrayError: Its values are of several kinds, or of one that Arrow has not.
    """
    if isinstance(column, pa.ChunkedArray):
        return column
    try:
        made = pa.Array.from_pandas(column)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = sorted({type(value).__name__ for value in column.head(ROWS)})
        raise RecrayError(
            f"column {name!r} of the table holds values of the kinds {', '.join(kinds[:5])}; make "
            f"it one kind, such as frame[{name!r}].astype(str)"
        ) from error
    return made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])


class _Hash:
    """A file that keeps no more than the hash of what is written."""

    closed = False

    def __init__(self, digest: "hashlib._Hash") -> None:
        self.write = digest.update

    def flush(self) -> None:
        """Nothing waits."""


def _digest(table: pa.Table, digest: "hashlib._Hash") -> None:
    """Add the content of a table to a hash: names, types and values, however it is cut."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(_Hash(digest), mode="w"), plain.schema) as writer:
        writer.write_table(plain, max_chunksize=ROWS)


def _items_of(given: Table, settings: Settings, text: frozenset[str]) -> SideLists:
    """A table of items as the list of a source, whose rows are judged as those of a file.

    Args:
        given: item (or as data.columns says) and title, and genres (lists, or text between
            bars) and year where there are any.
        settings: data.columns.item and .title also hold for it.
        text: Which ids of the source are text.

    Raises:
        RecrayError: It has no item or no title column, or one of several kinds of values.
    """
    names, columns = _columns(given)
    told = settings.data.columns or {}
    usual = (told.get("item", ""), *COLUMN_NAMES["raw_item"])
    rule = IdRule(tuple(filter(None, usual)), "raw_item" in text, told.get("title"))
    if not is_item_list(names, rule):
        raise RecrayError(
            f"the table of items has the columns {', '.join(names)[:200]}; an item column and a "
            "title are needed"
        )
    arrays = [_arrow(name, column) for name, column in zip(names, columns, strict=True)]
    movies, report = parse_table_of_items("items", pa.table(arrays, names), rule)
    return SideLists(movies, schema.listed_users("raw_user" in text).empty_table(), (report,))
